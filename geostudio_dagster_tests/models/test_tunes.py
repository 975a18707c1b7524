"""What a tune's configuration and options say becomes the manifest of its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.models.bundle import BundleManifest
from geostudio_dagster.models.tune_config import parse_config, read_config
from geostudio_dagster.models.tune_options import read_options
from geostudio_dagster.models.tunes import TuneNames, manifest_of

NAMES = TuneNames("geotune-abc", "Floods", "Water after rain")
SPEC = [
    {
        "connector": "sentinel_aws",
        "bands": [
            {"index": "0", "band_name": "blue", "scaling_factor": "0.0001", "RGB_band": "B"},
            {"index": 1, "band_name": "green", "scaling_factor": 0.0001, "RGB_band": "G"},
            {"index": 2, "band_name": "red", "scaling_factor": 0.0001, "RGB_band": "R"},
            {"index": 3, "band_name": "nir", "scaling_factor": 1},
            {"index": 4, "band_name": "scl", "scaling_factor": 1},
        ],
    }
]
PUSH = [
    {"layer_name": "input_rgb", "geoserver_style": {"rgb": [{"label": "Red", "channel": 1}]}},
    {
        "layer_name": "pred",
        "geoserver_style": {
            "segmentation": [
                {"color": "#FA4D56", "label": "Flood", "opacity": "0.5", "quantity": "1"},
                {"color": "#000", "label": "No flood", "opacity": 0, "quantity": 0},
                {"color": "#4589FF", "label": "Permanent water", "opacity": 1, "quantity": 997},
            ]
        },
    },
]


def config(**changes: Any) -> dict[str, Any]:
    """A segmentation of four bands; ``model__init_args__ignore_index=0`` and the like change it."""
    document: dict[str, Any] = {
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {
                "model_args": {"backbone": "prithvi_eo_tiny", "num_classes": 2},
                "tiled_inference_parameters": {
                    "h_crop": 256,
                    "w_crop": 256,
                    "h_stride": 224,
                    "w_stride": 224,
                    "average_patches": True,
                },
            },
        },
        "data": {
            "class_path": "terratorch.datamodules.GenericNonGeoSegmentationDataModule",
            "init_args": {
                "means": [0.1, 0.2, 0.3, "1e-4"],
                "stds": [1.0, 2.0, 3.0, 4.0],
                "rgb_indices": [2, 1, 0],
            },
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = document
        for key in parents:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return document


def manifest(options: dict[str, Any] | None = None, **changes: Any) -> BundleManifest:
    told = {"model_input_data_spec": SPEC, "geoserver_push": PUSH} if options is None else options
    return manifest_of(parse_config(config(**changes)), read_options(told), NAMES)


def test_bands_of_the_file_are_found_scaled_and_normalised() -> None:
    found = manifest()
    assert [
        (band.name, band.index, band.integer_scale, band.mean, band.std, band.rgb)
        for band in found.bands
    ] == [
        ("blue", 0, 0.0001, 0.1, 1.0, "B"),
        ("green", 1, 0.0001, 0.2, 2.0, "G"),
        ("red", 2, 0.0001, 0.3, 3.0, "R"),
        ("nir", 3, 1.0, 0.0001, 4.0, None),
    ]
    assert (found.name, found.title, found.description) == (
        "geotune-abc",
        "Floods",
        "Water after rain",
    )
    assert (found.patch.size, found.patch.overlap, found.patch.trim) == (256, 32, 8)
    assert (found.runtime, found.task, found.dates) == ("terratorch", "segmentation", 1)


def test_classes_have_their_names_colours_and_opacities_and_masks_are_none() -> None:
    assert [(c.value, c.name, c.colour, c.opacity) for c in manifest().classes] == [
        (0, "No flood", "#000000", 0.0),
        (1, "Flood", "#fa4d56", 0.5),
    ]


def test_classes_without_a_style_are_told_apart_all_the_same() -> None:
    found = manifest({"model_input_data_spec": SPEC}, model__init_args__model_args__num_classes=12)
    assert [item.name for item in found.classes[:2]] == ["Class 0", "Class 1"]
    assert len({item.colour for item in found.classes}) == 12


def test_categories_of_the_data_set_stand_in_for_a_style() -> None:
    options = {
        "model_input_data_spec": SPEC,
        "label_categories": [{"id": "0", "name": "Land", "color": "#00ff00", "opacity": 1}],
    }
    assert manifest(options).classes[0].name == "Land"


def test_bands_by_name_win_over_their_places() -> None:
    found = manifest(
        data__init_args__dataset_bands=["BLUE", "GREEN", "RED", "NIR", "SCL"],
        data__init_args__output_bands=["NIR", "RED", "GREEN", "BLUE"],
    )
    assert [(band.name, band.index, band.mean) for band in found.bands] == [
        ("nir", 3, 0.1),
        ("red", 2, 0.2),
        ("green", 1, 0.3),
        ("blue", 0, 0.0001),
    ]


def test_bands_in_the_old_form() -> None:
    old = [
        {"bands": {"0": "B02", "1": "B03", "2": "B04", "3": "B08"}, "scaling_factor": [1, 1, 1, 2]}
    ]
    found = manifest({"model_input_data_spec": old, "geoserver_push": PUSH})
    assert [(band.name, band.integer_scale) for band in found.bands] == [
        ("B02", 1.0),
        ("B03", 1.0),
        ("B04", 1.0),
        ("B08", 2.0),
    ]
    assert found.rgb_bands == (2, 1, 0)


def test_a_regression_has_a_ramp_of_its_style() -> None:
    style = {
        "regression": [{"color": "#ffffff", "quantity": 100}, {"color": "#000", "quantity": 0}]
    }
    options = {"model_input_data_spec": SPEC, "geoserver_push": [{"geoserver_style": style}]}
    found = manifest(options, model__class_path="terratorch.tasks.PixelwiseRegressionTask")
    assert found.task == "regression"
    assert [(stop.value, stop.colour) for stop in found.ramp] == [(0, "#000000"), (100, "#ffffff")]


def test_several_dates_and_modalities() -> None:
    assert manifest(model__init_args__model_args__backbone_num_frames=3).dates == 3
    spec = [
        {"modality_tag": "S1GRD", "bands": [{"band_name": "VV"}, {"band_name": "VH"}]},
        {"modality_tag": "S2L2A", "bands": [{"band_name": "B04", "RGB_band": "R"}]},
    ]
    found = manifest(
        {"model_input_data_spec": spec, "geoserver_push": PUSH},
        data__class_path="terratorch.datamodules.GenericMultiModalDataModule",
        data__init_args__modalities=["S2L2A", "S1GRD"],
        data__init_args__means={"S2L2A": [5], "S1GRD": [1, 2]},
        data__init_args__stds={"S2L2A": [6], "S1GRD": [3, 4]},
        data__init_args__rgb_indices=None,
    )
    assert [(band.modality, band.name, band.mean, band.std) for band in found.bands] == [
        ("S2L2A", "B04", 5, 6),
        ("S1GRD", "VV", 1, 3),
        ("S1GRD", "VH", 2, 4),
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"precision": "16-mixed"}, "auto"),
        ({"precision": "bf16-mixed"}, "auto"),
        ({"precision": 16}, "auto"),
        ({"precision": "32-true"}, None),
        ({"precision": None}, None),
        ("no mapping", None),
    ],
)
def test_a_tune_of_mixed_precision_is_predicted_in_it(told: object, expected: str | None) -> None:
    assert manifest(trainer=told).precision == expected


def test_what_geostudio_does_without_settings_of_tiles() -> None:
    found = manifest(model__init_args__tiled_inference_parameters=None)
    assert (found.patch.size, found.patch.overlap) == (224, 16)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model__class_path": "os.system"},
            (
                "tune_config: model.class_path: names system, which gives no map here; "
                "use a tune of SemanticSegmentationTask or PixelwiseRegressionTask."
            ),
        ),
        (
            {"model": None},
            (
                "tune_config: model: is not a section with class_path and init_args; "
                "give the configuration that the tune was made with."
            ),
        ),
        (
            {"data__init_args__stds": [1.0]},
            (
                "tune_config: data.init_args.means: has 4 numbers, but stds has 1; "
                "give one of each a band."
            ),
        ),
        (
            {"data__init_args__stds": [1.0, 1.0, 1.0, 0.0]},
            "tune_config: data.init_args.stds: has a number that is not above 0; correct it.",
        ),
        (
            {"data__init_args__means": [1.0, 1.0, 1.0, float("nan")]},
            (
                "tune_config: data.init_args.means: has nan, which is not a number; "
                "give finite numbers."
            ),
        ),
        (
            {"data__init_args__means": "means.npy"},
            (
                "tune_config: data.init_args.means: is not a list ('means.npy'); "
                "write the values themselves into the configuration, as a list."
            ),
        ),
        (
            {"model__init_args__tiled_inference_parameters__h_stride": 300},
            (
                "tune_config: model.init_args.tiled_inference_parameters.h_stride: differs from "
                "w_stride; give squares: both the same."
            ),
        ),
        (
            {"model__init_args__model_args__num_classes": 1000},
            (
                "tune_config: model.init_args.model_args.num_classes: is 1000, more than the 255 "
                "that a byte holds; use a model of fewer classes."
            ),
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_sentence(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        manifest(**changes)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"model_input_data_spec": [{"bands": []}]}, "model_input_data_spec.0.bands"),
        (
            {"model_input_data_spec": [{"bands": [{"band_name": "a", "scaling_factor": "x"}]}]},
            "model_input_data_spec.0.bands.0.scaling_factor",
        ),
        (
            {"model_input_data_spec": [{"bands": [{"band_name": "a", "index": "-1"}]}]},
            "model_input_data_spec.0.bands.0.index",
        ),
        (
            {"model_input_data_spec": [{"bands": [{"band_name": "a"}, {"name": "b", "index": 0}]}]},
            "model_input_data_spec.0.bands",
        ),
        (
            {"geoserver_push": [{"geoserver_style": {"segmentation": [{"quantity": 1}]}}]},
            "geoserver_push.0.geoserver_style.segmentation.0.color",
        ),
        ({"model_input_data_spec": [{"bands": ["a"]}]}, "model_input_data_spec.0.bands"),
    ],
)
def test_options_that_cannot_be_used_name_their_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        manifest(options)
    assert refused.value.field == field


def test_a_configuration_executes_nothing(tmp_path: Path) -> None:
    path, victim = tmp_path / "config.yaml", tmp_path / "made"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{victim}']\n")
    with pytest.raises(InvalidRequest, match="tune_config: is not readable YAML"):
        read_config(path)
    assert not victim.exists()


def test_aliases_of_aliases_are_counted_for_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    lines = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 12)]
    path.write_text("\n".join([*lines, yaml.safe_dump(config())]))
    with pytest.raises(InvalidRequest, match="stands for more than 100000 values"):
        read_config(path)
