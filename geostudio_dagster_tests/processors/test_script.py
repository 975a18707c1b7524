"""What is said of a script before it is registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from geostudio_dagster.errors import Unavailable
from geostudio_dagster.processors.script import ValidationReport, check_script
from geostudio_dagster.settings import ProcessorSettings
from geostudio_dagster_tests.conftest import shared_or_skip
from geostudio_dagster_tests.processors.flag_scripts import FLAGS
from geostudio_dagster_tests.processors.positional_scripts import POSITIONAL

SETTINGS = ProcessorSettings()
GOOD = "import sys\n\n\nif __name__ == '__main__':\n    print(sys.argv[1], sys.argv[2])\n"


def check(text: str | bytes, name: str = "script.py", **more: object) -> ValidationReport:
    content = text.encode() if isinstance(text, str) else text
    settings = SETTINGS.model_copy(update=more)
    return check_script(name, content, limits=settings)


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_scripts_are_known(name: str) -> None:
    report = check(POSITIONAL[name])
    assert (report.ok, report.contract, report.problems) == (True, "positional", [])
    assert report.contract_evidence


@pytest.mark.parametrize("name", FLAGS)
def test_flag_scripts_are_known(name: str) -> None:
    report = check(FLAGS[name])
    assert (report.ok, report.contract, report.problems) == (True, "flags", [])
    assert report.contract_evidence


def test_the_guides_template_as_printed() -> None:
    path = shared_or_skip("golden/processor_guide_template.py")
    report = check(path.read_bytes(), path.name)
    assert report.ok
    assert report.contract == "positional"
    assert report.warnings == []
    assert report.missing_imports == []
    assert (report.size, report.lines) == (4184, 141)


def test_an_explicit_contract_wins() -> None:
    chosen = check_script(
        "a.py", FLAGS["argparse"].encode(), limits=SETTINGS, contract="positional"
    )
    assert chosen.contract == "positional"
    assert "looks otherwise" in chosen.warnings[0]


def test_no_sign_of_a_contract_is_told() -> None:
    report = check("if __name__ == '__main__':\n    print(1)\n")
    assert (report.ok, report.contract) == (True, "positional")
    assert "no sign of either contract" in report.warnings[0]


def test_how_options_are_declared() -> None:
    assert check(FLAGS["switches"]).options == {
        "input": "value",
        "output": "value",
        "dry": "switch",
        "fast": "pair",
        "bands": "many",
    }
    assert check(FLAGS["click"]).options["fast"] == "pair"
    assert check(FLAGS["click_short"]).options["quiet"] == "switch"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("script.txt", GOOD, "does not end in .py"),
        ("../script.py", GOOD, "no plain file name"),
        ("a/b.py", GOOD, "no plain file name"),
        ("-c.py", GOOD, "no plain file name"),
        ("a\n.py", GOOD, "no plain file name"),
        ("x$(id).py", GOOD, "no plain file name"),
        ("a" * 200 + ".py", GOOD, "no plain file name"),
        ("a.py", "", "is empty"),
        ("a.py", b"\xff\xfeprint(1)", "not UTF-8: byte 0"),
        ("a.py", "print(1)\n", "no entry point"),
        ("a.py", "def f():\n    if __name__ == '__main__':\n        f()\n", "no entry point"),
        ("a.py", "# if __name__ == '__main__':\n", "no entry point"),
        ("a.py", "print 1\n", "does not parse: line 1"),
        ("a.py", "if True:\nprint(1)", "does not parse: line 2"),
        ("a.py", "a\0b", "does not parse"),
        ("a.py", "x = " + "(" * 5000 + ")" * 5000, "does not parse"),
        ("a.py", "x = " + "-" * 500_000 + "1", "does not parse"),
        ("a.py", "x = 1" + "+1" * 1_000_000, "does not parse"),
        ("a.py", "x = a" + ".a" * 1_000_000, "does not parse"),
        ("a.py", "x = " + "f'{" * 200 + "1" + "}'" * 200, "does not parse"),
    ],
)
def test_what_is_refused(name: str, content: str | bytes, problem: str) -> None:
    report = check(content, name)
    assert not report.ok
    assert len(report.problems) == 1
    assert problem in report.problems[0]


def test_size_is_bounded() -> None:
    filler = "#" * 9_999_000 + "\n" + GOOD
    assert check(filler).ok
    assert "at most 10000000" in check("#" * 10_000_001).problems[0]


def test_a_byte_order_mark_is_no_error() -> None:
    assert check(b"\xef\xbb\xbf" + GOOD.encode()).ok


def test_a_machine_without_limits_is_no_fault_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "prlimit"
    said = "prlimit: failed to set the CORE resource limit: Operation not permitted"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{said}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(program))
    with pytest.raises(Unavailable, match=f"cannot be checked on this machine .{said}.: let"):
        check(GOOD)


def test_missing_imports_are_told() -> None:
    report = check(f"import numpy.linalg\nimport tomatoes.red\nfrom . import x\n{GOOD}")
    assert report.imports == ["numpy", "sys", "tomatoes"]
    assert report.missing_imports == ["tomatoes"]
    assert "tomatoes" in report.warnings[0]


HEADER = '# /// script\n# requires-python = ">=3.9"\n# dependencies = [{}]\n# ///\n'


def test_declared_packages() -> None:
    text = HEADER.format('"humanize>=4", "tomatoes"') + GOOD
    refused = check(text)
    assert not refused.ok
    assert "does not allow" in refused.problems[0]
    allowed = check(text, allow_dependencies=True)
    assert allowed.ok
    assert allowed.dependencies == ["humanize>=4", "tomatoes"]
    assert allowed.requires_python == ">=3.9"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (HEADER.format('"x @ http://evil/x.whl"'), "names an address"),
        (HEADER.format('"-r /etc/passwd"'), "no package name"),
        (HEADER.format('"--index-url=http://evil"'), "no package name"),
        (HEADER.format('"./folder"'), "no package name"),
        (HEADER.format("1"), "list of strings"),
        (HEADER.format('"a'), "cannot be read"),
        (HEADER.format("") * 2, "two script blocks"),
        ('# /// script\n# requires-python = ">=9"\n# ///\n', "needs Python >=9"),
        ('# /// script\n# requires-python = "new"\n# ///\n', "no version specifier"),
    ],
)
def test_headers_that_are_refused(header: str, problem: str) -> None:
    report = check(header + GOOD, allow_dependencies=True)
    assert not report.ok
    assert problem in " ".join(report.problems)
