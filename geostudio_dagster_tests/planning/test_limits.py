"""Limits: the figure and the limit in one sentence, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning.admission import admit, check_request
from geostudio_dagster.planning.trial import trial_plan
from geostudio_dagster.settings import LimitSettings, Settings
from geostudio_dagster_tests.conftest import MakeScene


def _with(settings: Settings, **limits: Any) -> Settings:
    return settings.model_copy(update={"limits": LimitSettings(**limits)})


@pytest.mark.parametrize(
    ("box", "square_km"),
    [([33.9, -4.7, 41.9, 5.5], "1003106.03"), ([179, -1, -179, 1], "49233.86")],
)
def test_an_area_above_the_limit_is_refused_with_both_figures(
    installation: Installation, model: ModelRecord, box: list[float], square_km: str
) -> None:
    settings = _with(installation.settings, max_area_km2=100)
    document = {"model": model.name, "spatial_domain": {"bbox": [box]}}
    with pytest.raises(InvalidRequest) as refused:
        admit(document, installation.catalog, settings, owner="tests")
    assert refused.value.field == "spatial_domain.bbox"
    assert refused.value.problem == (
        f"Inference area ({square_km} km²) exceeds the maximum allowed area of 100.00 km²"
    )
    assert installation.catalog.requests() == []


def test_too_many_scenes(installation: Installation, model: ModelRecord) -> None:
    urls = [f"https://example.org/{n}.tif" for n in range(3)]
    document = {"model": model.name, "spatial_domain": {"urls": urls}}
    settings = _with(installation.settings, max_urls=2)
    with pytest.raises(InvalidRequest, match="3 scenes are more than the 2 tasks allowed"):
        admit(document, installation.catalog, settings, owner="tests")


def test_what_only_the_scenes_tell_ends_the_request_when_it_is_planned(
    installation: Installation, model: ModelRecord, make_scene: MakeScene
) -> None:
    scene = make_scene("a_2024-05-01.tif")
    document = {"model": model.name, "spatial_domain": {"urls": [str(scene)]}}
    request = admit(document, installation.catalog, installation.settings, owner="tests")
    strict = Installation(
        _with(installation.settings, max_mpx=0.01), installation.catalog, installation.storage
    )
    with pytest.raises(InvalidRequest, match=r"0\.09 Mpx, and 0\.01 Mpx are allowed"):
        plan_request(strict, request.id)
    record = installation.catalog.request(request.id)
    assert (record.status, record.n_tasks) == ("FAILED", 0)


def test_very_many_scenes_are_tried_by_a_sample(
    installation: Installation, model: ModelRecord, make_scene: MakeScene
) -> None:
    scenes = [make_scene(f"s{n}.tif", size=32) for n in range(3)]
    copies = []
    for n in range(401):
        copy = scenes[0].with_name(f"copy{n}.tif")
        copy.hardlink_to(scenes[n % 3])
        copies.append(str(copy))
    document = {"model": model.name, "spatial_domain": {"urls": copies}}
    checked = check_request(document, installation.catalog, installation.settings, owner="tests")
    trial = trial_plan(installation, checked)
    assert trial.sampled == 134
    assert trial.plan.estimate["tasks"] == 401
    assert trial.plan.estimate["mpx"] == pytest.approx(401 * 32 * 32 / 1e6, rel=0.01)
