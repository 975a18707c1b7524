from __future__ import annotations

import pytest

from geostudio_dagster.catalog import Catalog
from geostudio_dagster.errors import NotFound
from geostudio_dagster_tests.catalog.driving import Driver, bundle


def test_the_same_bundle_is_one_version(drive: Driver) -> None:
    first = drive.model()
    again = drive.catalog.register_model(bundle(), uri="/elsewhere", owner="bob")
    assert again == first
    assert (first.name, first.version, first.uri, first.owner) == (
        "water",
        1,
        "/models/water",
        "ann",
    )
    assert first.manifest["bands"][0]["name"] == "B02"
    assert first.created_at.tzinfo is not None


def test_other_content_is_the_next_version(drive: Driver) -> None:
    drive.model()
    second = drive.model(digest="1" * 64)
    assert second.version == 2
    assert drive.catalog.model("water") == second
    assert drive.catalog.model("water@1").version == 1
    assert drive.catalog.model(second.id) == second
    drive.model("fire")
    assert [(m.name, m.version) for m in drive.catalog.models()] == [
        ("fire", 1),
        ("water", 2),
        ("water", 1),
    ]


def test_no_model_at_all(catalog: Catalog) -> None:
    with pytest.raises(NotFound) as error:
        catalog.model("water")
    assert str(error.value) == (
        "There is no model water: none is registered yet; "
        "add one with: geostudio-dagster models add FOLDER."
    )


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("watr", "There is no model watr; did you mean water?"),
        ("WATER", "There is no model WATER; did you mean water?"),
        ("zzz", "There is no model zzz; registered are burn-scars, water."),
        (
            "water@7",
            "There is no model water@7: the newest version of water is 2; use water@2.",
        ),
        (
            "water@99999999999999999999",
            (
                "There is no model water@99999999999999999999: "
                "the newest version of water is 2; use water@2."
            ),
        ),
        ("water@x", "There is no model water@x: the newest version of water is 2; use water@2."),
    ],
)
def test_what_comes_close(drive: Driver, reference: str, sentence: str) -> None:
    drive.model()
    drive.model(digest="1" * 64)
    drive.model("burn-scars")
    with pytest.raises(NotFound) as error:
        drive.catalog.model(reference)
    assert str(error.value) == sentence
