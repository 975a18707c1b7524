"""The demo does not wait for a daemon that is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rich.console import Console

from geostudio_dagster.catalog import ModelRecord
from geostudio_dagster.demo.run import _wait
from geostudio_dagster.installation import Installation
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.services import ServiceError
from geostudio_dagster_tests.conftest import MakeScene


def test_a_daemon_that_ends_ends_the_demo(
    installation: Installation, model: ModelRecord, make_scene: MakeScene
) -> None:
    document = {
        "model": model.name,
        "spatial_domain": {"urls": [str(make_scene("s.tif", size=64))]},
    }
    request = admit(document, installation.catalog, installation.settings, owner="demo")
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]) as process:
        process.wait()
        with pytest.raises(ServiceError, match=r"The daemon ended by itself; see .*daemon\.log"):
            _wait(installation, [request], {"daemon": process}, Console(quiet=True))
