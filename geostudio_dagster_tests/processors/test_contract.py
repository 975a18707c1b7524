"""Parameters arrive as they were given, by either contract."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.processors.contract import check_parameters, command_line, environment

HARD = {
    "null": None,
    "yes": True,
    "no": False,
    "nested": {"a": [1, {"b": None}], "ü": "ß"},
    "bands": [1, 2, 3],
    "text": "Zürich 東京 'quoted' \"double\" $(id); rm -rf / \n next",
    "number": -1.5e-9,
    "dash": "-x",
    "empty": "",
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_positional_is_one_json_document(parameters: dict[str, Any]) -> None:
    line = command_line("positional", "s.py", "in.tif", "out.tif", parameters)
    assert line[:3] == ["s.py", "in.tif", "out.tif"]
    assert json.loads(line[3]) == parameters
    assert json.loads(environment("i", "o", parameters)["GEOSTUDIO_PARAMETERS"]) == parameters


def test_no_parameters() -> None:
    assert command_line("positional", "s", "i", "o", None) == ["s", "i", "o", "{}"]
    assert command_line("flags", "s", "i", "o", None) == ["s", "--input", "i", "--output", "o"]


def test_flags_through_argparse(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import argparse, ast, json\n"
        "ap = argparse.ArgumentParser()\n"
        "for name in ['input', 'output', 'text', 'dash', 'empty']:\n"
        "    ap.add_argument('--' + name)\n"
        "ap.add_argument('--null', default=None)\n"
        "ap.add_argument('--yes', type=ast.literal_eval)\n"
        "ap.add_argument('--no', action='store_true')\n"
        "ap.add_argument('--nested', type=json.loads)\n"
        "ap.add_argument('--bands', nargs='+', type=int)\n"
        "ap.add_argument('--number', type=float)\n"
        "print(json.dumps(vars(ap.parse_args())))\n"
    )
    options = {"no": "switch", "bands": "many", "number": "value"}
    line = command_line("flags", str(script), "in.tif", "out", HARD, options=options)  # type: ignore[arg-type]
    said = subprocess.run([sys.executable, *line], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == {**HARD, "input": "in.tif", "output": "out"}


def test_what_geostudio_passes_for_booleans() -> None:
    line = command_line("flags", "s", "i", "o", {"a": True, "b": False, "c": [1, 2]})
    assert line[1:7] == ["--a", "True", "--b", "False", "--c", "[1, 2]"]


def test_switches_and_pairs() -> None:
    options = {"dry-run": "switch", "fast": "pair"}

    def line(parameters: dict[str, Any]) -> list[str]:
        return command_line("flags", "s", "i", "o", parameters, options=options)[1:-4]  # type: ignore[arg-type]

    assert line({"dry_run": True, "fast": True}) == ["--dry-run", "--fast"]
    assert line({"dry_run": False, "fast": False}) == ["--no-fast"]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("-c", 1, "cannot be the name of a flag"),
        ("", 1, "cannot be the name of a flag"),
        ("a b", 1, "cannot be the name of a flag"),
        ("a=b", 1, "cannot be the name of a flag"),
        ("x; touch /tmp/y", 1, "cannot be the name of a flag"),
        ("input", "/etc/passwd", "would collide"),
        ("OUTPUT", "x", "would collide"),
        ("help", True, "would collide"),
        ("a", "x\0y", "no command line can carry"),
        ("a", "\ud800", "no command line can carry"),
        ("a", float("nan"), "cannot be written as JSON"),
        ("a", {1, 2}, "cannot be written as JSON"),
        ("a", "x" * 100_001, "use at most 100000 bytes"),
    ],
)
def test_what_cannot_arrive_is_refused(key: str, value: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        check_parameters("flags", {key: value})


def test_positional_carries_any_key() -> None:
    parameters = {"-c": 1, "input": 2, "": None, "\0": "\ud800"}
    check_parameters("positional", parameters)
    line = command_line("positional", "s", "i", "o", parameters)
    assert json.loads(line[3]) == parameters
