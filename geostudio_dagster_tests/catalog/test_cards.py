"""Cards, tunes, data sources and wishes for bundles, on both databases."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from geostudio_dagster.catalog import Catalog, Viewer
from geostudio_dagster.catalog.cards import SANDBOX, SANDBOX_ID, CardFilter
from geostudio_dagster.catalog.pages import Paging
from geostudio_dagster.catalog.tunes import TuneFilter
from geostudio_dagster.errors import Conflict, LeaseLost, NotFound
from geostudio_dagster_tests.catalog.driving import Driver

ANN, BOB = Viewer("ann@example.org"), Viewer("bob@example.org")
ALL = CardFilter()


def new_tune(catalog: Catalog, name: str = "tune", viewer: Viewer = ANN) -> str:
    return catalog.create_tune(
        viewer,
        name,
        "",
        config_url="https://example.org/c",
        checkpoint_url="https://example.org/w",
        details={"train_options": {"geoserver_push": []}},
    ).id


def test_versions_are_counted_one_after_the_other(catalog: Catalog) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: catalog.create_card(ANN, "flood", {}), range(8)))
    assert sorted(card.version for card in made) == list(range(1, 9))
    total, cards = catalog.cards(ANN, CardFilter(latest=True), Paging())
    assert (total, cards[0].version) == (1, 8)


def test_every_registered_bundle_has_a_card_that_everybody_sees(drive: Driver) -> None:
    first, second = drive.model(), drive.model(digest="1" * 64)
    total, cards = drive.catalog.cards(BOB, ALL, Paging(sort="version"))
    assert [(card.id, card.version, card.latest) for card in cards] == [
        (first.id, 1, False),
        (second.id, 2, True),
    ]
    assert total == 2
    assert cards[1].manifest == second.manifest
    assert drive.catalog.card_named(BOB, "water").id == second.id
    drive.catalog.delete_card(Viewer("root@example.org", admin=True), second.id)
    assert [model.version for model in drive.catalog.models()] == [1]
    assert drive.catalog.model("water").version == 1
    assert drive.catalog.model(second.id).version == 2  # requests go on to name it
    assert drive.catalog.card_named(BOB, "water").id == first.id
    drive.model(digest="1" * 64)  # registered again
    assert drive.catalog.model("water").version == 2


def test_text_is_found_in_names_and_descriptions(catalog: Catalog) -> None:
    catalog.create_card(ANN, "flood", {"description": "Water after 100% rain"})
    catalog.create_card(ANN, "fire", {"description": "Burn scars"})
    found = [catalog.cards(ANN, ALL, Paging(q=text))[0] for text in ("FLOO", "100%", "_", "burn")]
    assert found == [1, 1, 0, 1]


def test_ones_own_model_comes_before_anothers_of_the_name(catalog: Catalog) -> None:
    mine = catalog.create_card(ANN, "flood", {})
    theirs = catalog.create_card(BOB, "flood", {}, sharable=True)
    assert catalog.card_named(ANN, "flood").id == mine.id
    assert catalog.card_named(BOB, "flood").id == theirs.id
    assert catalog.card_named(Viewer("eve@example.org"), "flood").id == theirs.id
    with pytest.raises(NotFound):
        catalog.card(BOB, mine.id)


def test_the_sandbox_is_made_once(catalog: Catalog) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: catalog.ensure_sandbox(), range(4)))
    assert catalog.card_named(BOB, SANDBOX).id == SANDBOX_ID
    with pytest.raises(NotFound):
        catalog.delete_card(BOB, SANDBOX_ID)


def test_tunes_are_listed_to_who_may_see_them(catalog: Catalog) -> None:
    ids = [new_tune(catalog, name) for name in ("b", "a")]
    new_tune(catalog, "c", BOB)
    total, tunes = catalog.tunes(ANN, TuneFilter(), Paging(sort="name"))
    assert (total, [tune.id for tune in tunes]) == (2, ids[::-1])
    assert catalog.tunes(ANN, TuneFilter(shared=True), Paging())[0] == 0
    catalog.delete_tune(ANN, ids[0])
    assert catalog.tunes(ANN, TuneFilter(), Paging(q=ids[0]))[0] == 0


def test_data_sources_are_ones_own_or_an_administrators(catalog: Catalog) -> None:
    connector = f"stac-{uuid4()}"
    admin = Viewer(f"root-{uuid4()}@example.org", admin=True)
    mine = catalog.create_source(ANN, connector, "a", {"bands": []})
    catalog.create_source(admin, connector, "a", {"bands": []})
    with pytest.raises(Conflict):
        catalog.create_source(ANN, connector, "a", {"bands": []})
    seen = [s for s in catalog.sources(BOB) if s.connector == connector]
    assert [source.owner for source in seen] == [admin.email]
    with pytest.raises(NotFound):
        catalog.delete_source(BOB, mine.id)
    catalog.delete_source(ANN, mine.id)


def test_one_run_at_a_time_makes_a_bundle(drive: Driver) -> None:
    catalog, tune = drive.catalog, new_tune(drive.catalog)
    now = dt.datetime.now(dt.UTC)
    catalog.keep_alive("first", 60)
    assert catalog.claim_onboarding("tune", tune, "first").attempts == 1
    with pytest.raises(Conflict, match="Run first works on it"):
        catalog.claim_onboarding("tune", tune, "second")
    later = now + dt.timedelta(seconds=120)  # the first died
    assert catalog.claim_onboarding("tune", tune, "second", later).attempts == 2
    model = drive.model()
    with pytest.raises(LeaseLost):
        catalog.finish_onboarding("tune", tune, "first", model.id)
    catalog.finish_onboarding("tune", tune, "second", model.id)
    assert catalog.tune(ANN, tune).status == "Finished"
    with pytest.raises(Conflict, match="Finished already"):
        catalog.claim_onboarding("tune", tune, "third")
    assert catalog.onboardings(10) == []


def test_a_wish_that_is_repeated_begins_anew(catalog: Catalog) -> None:
    tune = new_tune(catalog)
    catalog.claim_onboarding("tune", tune, "run")
    with pytest.raises(Conflict, match="In_progress"):
        catalog.request_onboarding(ANN, "tune", tune)
    catalog.release_onboarding("tune", tune, "run", "The server did not answer.")
    assert catalog.tune(ANN, tune).error == "The server did not answer."
    wish = catalog.request_onboarding(ANN, "tune", tune)
    assert (wish.generation, wish.attempts, wish.status) == (1, 0, "Pending")
    assert [found.id for found in catalog.onboardings(10)] == [tune]
    with pytest.raises(NotFound):
        catalog.request_onboarding(BOB, "tune", tune)
    catalog.delete_tune(ANN, tune)
    assert catalog.onboardings(10) == []
    with pytest.raises(NotFound):
        catalog.claim_onboarding("tune", tune, "run")
