"""One run of a script: what it is given, how its end is told, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from geostudio_dagster.errors import Cancelled, TaskError, Unavailable
from geostudio_dagster.processors import bubblewrap
from geostudio_dagster.processors.outputs import collect
from geostudio_dagster.processors.rlimits import RlimitSandbox
from geostudio_dagster.processors.run import ScriptJob, ScriptResult, run_script
from geostudio_dagster.processors.sandbox import Room, Sandbox, choose_sandbox
from geostudio_dagster.processors.script import check_script
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits
from geostudio_dagster_tests.conftest import shared_or_skip, write_scene
from geostudio_dagster_tests.processors.attacks.test_attacks import isolated_or_skip, processes_of
from geostudio_dagster_tests.processors.limiting import bounded

LIMITS = ScriptLimits(wall_s=200, cpu_s=100, memory_bytes=1024**3)
TELL = """
import argparse, ast, json, os, sys

if __name__ == "__main__":
    print("before", file=sys.stderr)
    folder = os.path.dirname(os.environ["GEOSTUDIO_INPUT"])
    print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "variables": dict(os.environ),
                      "listed": sorted(os.listdir(folder))}))
"""


@pytest.fixture(params=["bubblewrap", "rlimits"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return isolated_or_skip() if request.param == "bubblewrap" else RlimitSandbox()


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path, "scene_pred.tif", size=64, bands=("class",))


def run(code: str, scene: Path, sandbox: Sandbox, **more: Any) -> ScriptResult:
    script = scene.parent / "script.py"
    script.write_text(code)
    cancelled = more.pop("cancelled", lambda: False)
    limits = more.pop("limits", LIMITS)
    job = ScriptJob(script, scene, scene.parent / "run", more.pop("contract", "flags"), **more)
    return run_script(job, limits, sandbox, cancelled=cancelled)


def test_what_a_script_is_given(scene: Path, sandbox: Sandbox) -> None:
    os.environ["GEOSTUDIO_SECRET"] = "x"
    try:
        result = run(TELL, scene, sandbox, parameters={"ü": [None, True]}, contract="positional")
    finally:
        del os.environ["GEOSTUDIO_SECRET"]
    told = result.printed
    given, output, parameters = told["argv"]
    assert Path(given).name == "scene_pred.tif"
    assert Path(output).name == "scene_pred_processed.tif"
    assert json.loads(parameters) == {"ü": [None, True]}
    own = {name: value for name, value in told["variables"].items() if name.startswith("GEOSTUDIO")}
    own.pop("GEOSTUDIO_RUN", None)
    assert own == {
        "GEOSTUDIO_INPUT": given,
        "GEOSTUDIO_OUTPUT": output,
        "GEOSTUDIO_PARAMETERS": parameters,
    }
    assert not [name for name in told["variables"] if "PYTHON" in name or "AWS" in name]
    assert result.log.splitlines()[0] == "before"
    if sandbox.name == "bubblewrap":
        assert (given, told["cwd"]) == ("/job/input/scene_pred.tif", "/job/work")
        assert told["listed"] == ["scene_pred.tif"]


def test_flags_get_a_folder(scene: Path, sandbox: Sandbox) -> None:
    result = run(TELL, scene, sandbox, parameters={"threshold": 80, "none": None})
    words = result.printed["argv"]
    assert words[:2] == ["--threshold", "80"]
    assert words[2::2] == ["--input", "--output"]
    assert words[5] == result.printed["variables"]["GEOSTUDIO_OUTPUT"]


def test_the_guides_template(scene: Path, sandbox: Sandbox) -> None:
    path = shared_or_skip("golden/processor_guide_template.py")
    report = check_script(path.name, path.read_bytes(), limits=ProcessorSettings())
    job = ScriptJob(path, scene, scene.parent / "run", report.contract, {"method": "threshold"})
    result = run_script(job, LIMITS, sandbox)
    assert (result.reason, result.message) == ("ok", "")
    assert result.printed["status"] == "success"
    taken = collect(result.output, scene, scene.parent / "taken", LIMITS, sandbox)
    assert [(one.name, one.kind) for one in taken] == [("scene_pred_processed.tif", "raster")]


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ("sys.exit(3)", "failed", "The processor ended with exit code 3."),
        ("raise ValueError('no water')", "failed", "ValueError: no water"),
        ('print(\'{"status": "error", "message": "dry"}\')', "reported", "said last: dry"),
        ("print('only words'); sys.exit(1)", "failed", "It said last: only words"),
        ("os.kill(os.getpid(), 11)", "signal", "was ended by SIGSEGV"),
    ],
)
def test_how_an_end_is_told(
    body: str, reason: str, message: str, scene: Path, sandbox: Sandbox
) -> None:
    result = run(f"import os, sys\nif __name__ == '__main__':\n    {body}\n", scene, sandbox)
    assert result.reason == reason
    assert message in result.message
    with pytest.raises(TaskError) as caught:
        result.raise_if_failed()
    assert caught.value.code == f"processor_{reason}"
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('words\n{"a": 1}\n{"b": 2}\n', {"b": 2}),
        ('words\n{\n "a": [1]\n}\n', {"a": [1]}),
        ('{"a": NaN}', {"a": None}),
        ("[1, 2]", {}),
        ("words", {}),
        ("", {}),
    ],
)
def test_what_is_printed_as_json(
    printed: str, expected: object, scene: Path, tmp_path: Path
) -> None:
    code = f"if __name__ == '__main__':\n    print({printed!r})\n"
    assert run(code, scene, RlimitSandbox()).printed == expected


def test_cancelling_ends_it(scene: Path, sandbox: Sandbox) -> None:
    asked = threading.Event()
    timer = threading.Timer(0.5, asked.set)
    timer.start()
    code = "import time\nif __name__ == '__main__':\n    time.sleep(600)\n"
    with pytest.raises(Cancelled):
        run(code, scene, sandbox, cancelled=asked.is_set)
    script = str(scene.parent / "run")
    lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if _readable(p)]
    assert not [line for line in lines if script.encode() in line]


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


_WORKER = """
import sys
from pathlib import Path
from geostudio_dagster.processors.run import ScriptJob, run_script
from geostudio_dagster.processors.sandbox import choose_sandbox
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits

folder = Path(sys.argv[1])
job = ScriptJob(folder / "lasting.py", folder / "scene_pred.tif", folder / "run", "positional")
run_script(job, ScriptLimits(), choose_sandbox(ProcessorSettings()))
"""


def test_a_killed_worker_takes_its_script_along(scene: Path) -> None:
    isolated_or_skip()
    folder = scene.parent
    (folder / "lasting.py").write_text(
        "import os, sys, time\nif __name__ == '__main__':\n"
        "    open(os.path.dirname(sys.argv[2]) + '/begun', 'w').close()\n    time.sleep(600)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", _WORKER, str(folder)])
    until((folder / "run" / "output" / "begun").exists)
    assert processes_of("lasting.py")
    worker.kill()
    worker.wait()
    until(lambda: not processes_of("lasting.py"))


_BOUNDED = """
import json, sys
from pathlib import Path
from geostudio_dagster.processors.run import ScriptJob, run_script
from geostudio_dagster.processors.sandbox import choose_sandbox
from geostudio_dagster.processors.script import check_script
from geostudio_dagster.settings import ProcessorSettings, ScriptLimits

settings = ProcessorSettings(isolation=sys.argv[2])
folder = Path(sys.argv[1])
script = folder / "script.py"
report = check_script(script.name, script.read_bytes(), limits=settings)
job = ScriptJob(script, folder / "scene_pred.tif", folder / "run", "flags")
result = run_script(job, ScriptLimits(), choose_sandbox(settings))
print(json.dumps([report.problems, result.reason, result.message, result.printed]))
"""


def test_scripts_run_where_cores_are_forbidden_and_files_are_small(
    scene: Path, sandbox: Sandbox
) -> None:
    (scene.parent / "script.py").write_text(
        "import json, resource\nif __name__ == '__main__':\n"
        "    print(json.dumps({name: resource.getrlimit(getattr(resource, f'RLIMIT_{name}'))\n"
        "                      for name in ('CORE', 'FSIZE', 'NOFILE')}))\n"
    )
    start = bounded("--core=0", f"--fsize={1 << 20}")
    done = subprocess.run(
        [*start, sys.executable, "-c", _BOUNDED, str(scene.parent), sandbox.name],
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""
    found = {"CORE": [0, 0], "FSIZE": [1 << 20, 1 << 20], "NOFILE": [256, 256]}
    assert json.loads(done.stdout) == [[], "ok", "", found]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_closed_input_is_readable_for_the_script(scene: Path, sandbox: Sandbox) -> None:
    scene.chmod(0o600)
    code = (
        "import sys, rasterio\nif __name__ == '__main__':\n"
        "    print('{\"size\": %d}' % rasterio.open(sys.argv[2]).width)\n"
    )
    assert run(code, scene, sandbox).printed == {"size": 64}
    assert scene.stat().st_mode & 0o777 == 0o600


def test_without_isolation_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    bubblewrap.working_bubblewrap.cache_clear()
    try:
        with pytest.raises(Unavailable, match="GEOSTUDIO_PROCESSORS__ISOLATION=rlimits"):
            choose_sandbox(ProcessorSettings())
        assert choose_sandbox(ProcessorSettings(isolation="rlimits")).name == "rlimits"
    finally:
        bubblewrap.working_bubblewrap.cache_clear()


def test_a_broken_sandbox_is_no_fault_of_the_script(scene: Path, tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: no permission' >&2\nexit 1\n")
    program.chmod(0o755)
    broken = bubblewrap.BubblewrapSandbox(str(program), user_namespace=True)
    with pytest.raises(Unavailable, match="bwrap: no permission"):
        run(TELL, scene, broken)


def test_a_visible_data_folder_is_hidden(scene: Path, tmp_path: Path) -> None:
    isolated = isolated_or_skip()
    assert isinstance(isolated, bubblewrap.BubblewrapSandbox)
    hidden = bubblewrap.BubblewrapSandbox(
        isolated.program, isolated.user_namespace, (Path("/usr/share/doc"),)
    )
    code = "import os\nif __name__ == '__main__':\n    os.listdir('/usr/share/doc')\n"
    result = run(code, scene, hidden)
    assert "Permission" in result.message or result.reason == "failed"


@pytest.fixture
def open_room() -> Iterator[Room]:
    folder = Path(tempfile.mkdtemp(prefix="geostudio-room-"))
    folder.chmod(0o755)
    room = Room(folder / "s.py", folder / "in", folder / "output", folder / "work")
    room.script.touch()
    room.input.touch()
    room.output.mkdir()
    room.work.mkdir()
    yield room
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_weaker_mode_does_not_stay_root(open_room: Room) -> None:
    command = [
        "/bin/sh",
        "-c",
        "id -u; grep processes /proc/self/limits; touch ../output/x; cat /etc/shadow",
    ]
    confined = RlimitSandbox().start(open_room, command, {}, ScriptLimits(processes=20))
    with confined.process as process:
        said, errors = process.communicate()
    assert confined.finish() == 1
    user, limits = said.decode().splitlines()
    assert int(user) > 1_000_000_000
    assert limits.split()[:4] == ["Max", "processes", "20", "20"]
    assert b"Permission denied" in errors
    assert (open_room.output / "x").exists()
