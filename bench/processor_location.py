"""How Dagster copes with many processors: ``python -m bench.processor_location``.

``load`` is a fresh process that builds the processors' location, as a code server does: imports,
definitions, and the snapshot that the webserver gets. ``visible_s`` is the time from an upload to
its asset in the answer of a real webserver that shows that many, the reload's pause included.
CPU seconds hold on a busy machine, wall seconds on a quiet one only.
"""

import argparse
import dataclasses
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import yaml

from geostudio_dagster.defs.processor_assets import processor_key
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.processor_uploads import parse_metadata, upload_processor
from geostudio_dagster.processor_reloading import LOCATION, reload_if_changed

OWNER = "bench@example.org"
LOAD_GOAL_S, VISIBLE_GOAL_S = 5, 10
SCRIPT = (
    "import sys\nif __name__ == '__main__':\n    print(sys.argv[1], sys.argv[2], sys.argv[3])\n"
)
LOAD = """
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext, DefinitionsLoadType)
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value
from geostudio_dagster.processor_location import defs
context = DefinitionsLoadContext(load_type=DefinitionsLoadType.INITIALIZATION)
with DefinitionsLoadContext.scoped(context):
    repository = defs().get_repository_def()
serialize_value(RepositorySnap.from_def(repository))
print(len(list(repository.asset_graph.get_all_asset_keys())))
"""
ASSETS = "{ assetNodes { assetKey { path } } }"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--processors", type=int, default=500, help="how many there are")
    arguments.add_argument("--rounds", type=int, default=5, help="loads and uploads measured")
    options = arguments.parse_args()
    figures = {"goal_load_s": LOAD_GOAL_S, "goal_visible_s": VISIBLE_GOAL_S}
    with tempfile.TemporaryDirectory() as name:
        os.environ["GEOSTUDIO_DATA_FOLDER"] = os.environ["DAGSTER_HOME"] = name
        port = _free_port()
        os.environ["GEOSTUDIO_DAGSTER_URL"] = f"http://127.0.0.1:{port}"
        with Installation.open() as installation:
            for count in (1, options.processors):
                _fill(installation, count)
                loads = [_load(count) for _ in range(options.rounds)]
                visible = _visible(installation, Path(name), port, options.rounds)
                figures[f"processors_{count}"] = {
                    "load_wall_s": _median(wall for wall, _ in loads),
                    "load_cpu_s": _median(cpu for _, cpu in loads),
                    "visible_s": _median(visible),
                    "visible_most_s": round(max(visible), 2),
                }
    print(json.dumps(figures, indent=2))


def _median(values):
    return round(statistics.median(values), 2)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _upload(installation, name, note=""):
    metadata = {
        "name": name,
        "description": f"Takes a class away. {note}",
        "processor_parameters": {"class": 1, "method": "mode", "factor": 0.5},
    }
    code = SCRIPT.encode()
    return upload_processor(installation, parse_metadata(metadata), "script.py", code, owner=OWNER)


def _fill(installation, count):
    """Have ``count`` processors; all but the first are rows like it, which is quicker."""
    first = _upload(installation, "processor-0")
    known = len(installation.catalog.active_processors())
    fields = {field.name for field in dataclasses.fields(_draft_type())}
    given = {name: getattr(first, name) for name in fields}
    for number in range(known, count):
        draft = _draft_type()(**{**given, "name": f"processor-{number}"})
        installation.catalog.register_processor(draft, owner=OWNER)


def _draft_type():
    from geostudio_dagster.catalog import ProcessorDraft

    return ProcessorDraft


def _load(count):
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert int(done.stdout.split()[-1]) >= count, done.stdout
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def _visible(installation, folder, port, rounds):
    workspace = folder / "workspace.yaml"
    module = {"module_name": "geostudio_dagster.processor_location", "location_name": LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": module}]}))
    command = [sys.executable, "-m", "dagster_webserver", "-w", str(workspace)]
    with (folder / "webserver.log").open("ab") as log:
        server = subprocess.Popen([*command, "-p", str(port)], stdout=log, stderr=log)
    try:
        while not _shown(port):
            time.sleep(0.2)
        reload_if_changed(installation)
        return [_seconds_until_shown(installation, port, number) for number in range(rounds)]
    finally:
        server.terminate()
        server.wait()


def _seconds_until_shown(installation, port, number):
    name = f"new-{time.time_ns()}"
    path = list(processor_key(OWNER, name).path)
    begin = time.perf_counter()
    record = _upload(installation, name)
    while path not in _shown(port):
        reload_if_changed(installation)
    seconds = time.perf_counter() - begin
    installation.catalog.delete_processor(record.id)
    return seconds


def _shown(port):
    try:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/graphql", json={"query": ASSETS}, timeout=60
        ).json()
    except httpx.HTTPError:
        return []
    return [node["assetKey"]["path"] for node in answer["data"]["assetNodes"]]


if __name__ == "__main__":
    main()
