"""Drives one request to its end in a process of its own, which tests may kill at any moment."""

from __future__ import annotations

import sys
from pathlib import Path

from dagster import DagsterInstance

from geostudio_dagster.installation import Installation
from geostudio_dagster_tests.driving import Driver


def main(request_id: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    with Installation.open() as installation, DagsterInstance.local_temp(str(home)) as instance:
        driver = Driver(installation, instance)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        driver.until_over(request_id, rounds=100_000)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
