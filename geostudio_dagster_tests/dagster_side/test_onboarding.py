"""An uploaded tune becomes a model that runs; what cannot says why; a kill loses nothing."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml

from geostudio_dagster.catalog import Viewer
from geostudio_dagster.catalog.api_schema import Tune
from geostudio_dagster.catalog.card_records import TuneRecord
from geostudio_dagster.errors import NotFound
from geostudio_dagster.installation import Installation
from geostudio_dagster.models.programs import ProgramFile
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver, path_of, submit, tasks_of
from geostudio_dagster_tests.models.tunes import BANDS, CKPT, SIZE, make_upload

ANN = Viewer("ann@example.org")
OPTIONS = {
    "model_input_data_spec": [
        {
            "bands": [
                {"index": str(place), "band_name": name, "scaling_factor": "1"}
                for place, name in enumerate(BANDS)
            ]
        }
    ],
    "geoserver_push": [
        {
            "geoserver_style": {
                "segmentation": [
                    {"color": "#ff0000", "label": "Fire", "opacity": 1, "quantity": "1"},
                ]
            }
        }
    ],
}


@pytest.fixture(scope="module")
def tune_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_upload(tmp_path_factory.mktemp("tunes") / "upload")


def upload(installation: Installation, base: str, checkpoint: str = CKPT) -> TuneRecord:
    return installation.catalog.create_tune(
        ANN,
        "burn-scars",
        "Made elsewhere",
        config_url=f"{base}/config_deploy.yaml",
        checkpoint_url=f"{base}/{checkpoint}",
        details={"train_options": OPTIONS},
    )


def after_ticks(driver: Driver, tune: TuneRecord, rounds: int = 1) -> TuneRecord:
    for _ in range(rounds):
        driver.tick()
    return driver.installation.catalog.tune(ANN, tune.id)


def test_a_tune_becomes_a_model_and_predicts(
    installation: Installation,
    driver: Driver,
    tune_files: Path,
    serve: Callable[[Path], str],
    make_scene: MakeScene,
) -> None:
    tune = after_ticks(driver, upload(installation, serve(tune_files)))
    assert (tune.status, tune.error) == ("Finished", None)
    model = installation.catalog.model(str(tune.model_id))
    assert (model.name, model.owner) == (tune.id, ANN.email)
    assert [band["name"] for band in model.manifest["bands"]] == list(BANDS)
    assert model.manifest["patch"] == {"size": SIZE, "overlap": 16, "trim": 8}
    programs = installation.settings.programs
    assert ProgramFile.at(programs, model.digest, SIZE).read() is not None, "no request waits"
    assert [(c["name"], c["colour"]) for c in model.manifest["classes"]][1] == ("Fire", "#ff0000")

    scene = make_scene("scene.tif", size=150, bands=BANDS)
    request = submit(installation, [scene], model.id)
    assert driver.until_over(request) == "COMPLETED"
    (task,) = tasks_of(installation, request)
    with rasterio.open(path_of(installation, task.id, "prediction")) as dataset:
        assert set(np.unique(dataset.read(1))) <= {0, 1, 2, 255}

    assert driver.tick() == 0  # and nothing is made a second time
    assert [record.name for record in installation.catalog.models()] == [tune.id]


def test_a_regression_of_three_dates_becomes_a_model(
    driver: Driver, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    files = make_upload(tmp_path / "upload", "regression", dates=3)
    tune = after_ticks(driver, upload(driver.installation, serve(files)))
    assert (tune.status, tune.error) == ("Finished", None)
    manifest = driver.installation.catalog.model(str(tune.model_id)).manifest
    assert (manifest["task"], manifest["dates"], manifest["classes"]) == ("regression", 3, [])


def test_new_styles_of_a_tune_use_its_files_again(
    installation: Installation,
    driver: Driver,
    tune_files: Path,
    serve: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(tune_files, tmp_path / "copy"))
    tune = after_ticks(driver, upload(installation, serve(copy)))
    first = tune.model_id
    shutil.rmtree(copy)  # the addresses are dead by now, as signed ones are
    style = {"segmentation": [{"color": "#00ff00", "label": "Scar", "quantity": 1}]}
    options = OPTIONS | {"geoserver_push": [{"geoserver_style": style}]}
    installation.catalog.update_tune(ANN, tune.id, {}, {"train_options": options})
    installation.catalog.request_onboarding(ANN, "tune", tune.id)
    tune = after_ticks(driver, tune)
    assert tune.status == "Finished"
    assert tune.model_id != first
    model = installation.catalog.model(str(tune.model_id))
    assert (model.version, model.manifest["classes"][1]["name"]) == (2, "Scar")


def test_a_model_card_is_deployed_under_its_own_name(
    installation: Installation, driver: Driver, tune_files: Path, serve: Callable[[Path], str]
) -> None:
    catalog = installation.catalog
    card = catalog.create_card(ANN, "Burn_Scars", {"description": "Scars", **OPTIONS})
    base = serve(tune_files)
    catalog.request_onboarding(
        ANN,
        "model",
        card.id,
        config_url=f"{base}/config_deploy.yaml",
        checkpoint_url=f"{base}/{CKPT}",
    )
    assert catalog.card(ANN, card.id).status == "DEPLOY_REQUESTED"
    driver.tick()
    card = catalog.card(ANN, card.id)
    assert card.status == "COMPLETED"
    assert card.manifest is not None
    assert card.manifest["name"] == card.internal_name


def test_a_file_that_is_not_there_is_the_reason(
    installation: Installation, driver: Driver, tune_files: Path, serve: Callable[[Path], str]
) -> None:
    tune = after_ticks(driver, upload(installation, serve(tune_files), "none.ckpt"))
    assert tune.status == "Failed"
    assert tune.error is not None
    assert tune.error.endswith("none.ckpt does not exist (HTTP 404); check the URL.")
    assert installation.catalog.models() == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"<html>Please log in</html>",
            ("tune_checkpoint_url: leads to no checkpoint of PyTorch; give the .ckpt file itself."),
        ),
        (
            None,
            (
                "best_state_dict.ckpt holds posix.mkdir, which is not loaded, for it could run any "
                "code; save the weights without it (state_dict alone is enough)."
            ),
        ),
    ],
)
def test_a_checkpoint_that_is_none_is_the_reason(
    *,
    driver: Driver,
    tune_files: Path,
    serve: Callable[[Path], str],
    tmp_path: Path,
    content: bytes | None,
    sentence: str,
) -> None:
    copy, victim = Path(shutil.copytree(tune_files, tmp_path / "copy")), tmp_path / "made"
    if content is None:
        torch.save({"state_dict": MakesFolder(str(victim))}, copy / CKPT)
    else:
        (copy / CKPT).write_bytes(content)
    tune = after_ticks(driver, upload(driver.installation, serve(copy)))
    assert (tune.status, tune.error) == ("Failed", sentence)
    assert not victim.exists()


class MakesFolder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_configuration_that_does_not_fit_is_the_reason(
    installation: Installation,
    driver: Driver,
    tune_files: Path,
    serve: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(tune_files, tmp_path / "copy"))
    path = copy / "config_deploy.yaml"
    config = yaml.safe_load(path.read_text())
    del config["data"]["init_args"]["means"], config["data"]["init_args"]["stds"]
    config["data"]["class_path"] = "terratorch.datamodules.FireScarsNonGeoDataModule"
    path.write_text(yaml.safe_dump(config))
    tune = after_ticks(driver, upload(installation, serve(copy)))
    assert (tune.status, tune.error) == (
        "Failed",
        (
            "tune_config: data.init_args.means: is missing, and FireScarsNonGeoDataModule does not "
            "tell them; write means and stds of the training data into the configuration."
        ),
    )


def test_a_run_that_died_is_followed_by_another(
    installation: Installation, driver: Driver, tune_files: Path, serve: Callable[[Path], str]
) -> None:
    catalog = installation.catalog
    tune = upload(installation, serve(tune_files))
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    catalog.claim_onboarding("tune", tune.id, "a-run-that-was-killed", long_ago)
    assert catalog.tune(ANN, tune.id).status == "In_progress"
    assert after_ticks(driver, tune).status == "Finished"


def test_kill_9_in_the_middle_of_a_download_loses_nothing(
    installation: Installation,
    driver: Driver,
    tune_files: Path,
    serve: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEOSTUDIO_SHARDS__LEASE_S", "1")
    catalog = installation.catalog
    with stalling() as (stalled, asked):
        tune = catalog.create_tune(
            ANN,
            "burn-scars",
            "",
            config_url=f"{serve(tune_files)}/config_deploy.yaml",
            checkpoint_url=f"{stalled}/{CKPT}",
            details={"train_options": OPTIONS},
        )
        code = (
            "from geostudio_dagster.installation import Installation as I;"
            "from geostudio_dagster.pipeline.onboarding import onboard;"
            f"onboard(I.open(), 'tune', '{tune.id}', 'killed')"
        )
        with subprocess.Popen([sys.executable, "-c", code]) as process:
            assert asked.wait(120), "the checkpoint was not asked for"
            process.kill()
    assert catalog.tune(ANN, tune.id).status == "In_progress"
    (left,) = installation.storage.scratch_entries()
    assert left.name == f"onboarding-{tune.id}"
    # The next run finds a server that answers; the wish itself is the same.
    with installation.catalog._write() as session:
        row = session.get(Tune, tune.id)
        assert row is not None
        row.checkpoint_url = f"{serve(tune_files)}/{CKPT}"
    deadline = time.monotonic() + 120
    while catalog.tune(ANN, tune.id).status == "In_progress":
        assert time.monotonic() < deadline, "nobody took it up"
        driver.tick()
    assert catalog.tune(ANN, tune.id).status == "Finished"
    assert list(installation.storage.scratch_entries()) == []


@contextmanager
def stalling() -> Iterator[tuple[str, threading.Event]]:
    """A server that sends the start of a file and no more; the event tells of the first request."""
    asked, over = threading.Event(), threading.Event()

    class Stalled(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"PK" * 1000)
            asked.set()
            over.wait(240)

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Stalled) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        over.set()
        server.shutdown()


def test_a_tune_whose_server_is_out_of_reach_is_given_up(
    installation: Installation, driver: Driver, tmp_path: Path
) -> None:
    catalog = installation.catalog
    tune = upload(installation, "http://127.0.0.1:9")  # nobody listens there
    assert after_ticks(driver, tune, rounds=5).status == "Failed"
    assert "127.0.0.1" in str(catalog.tune(ANN, tune.id).error)
    assert driver.tick() == 0


def test_a_tune_deleted_meanwhile_is_left_alone(
    installation: Installation, driver: Driver, tune_files: Path, serve: Callable[[Path], str]
) -> None:
    tune = upload(installation, serve(tune_files))
    installation.catalog.delete_tune(ANN, tune.id)
    assert driver.tick() == 0
    with pytest.raises(NotFound):
        installation.catalog.tune(ANN, tune.id)
