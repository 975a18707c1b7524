"""Whether a script may be registered, and what its author should know."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from geostudio_dagster.errors import Unavailable
from geostudio_dagster.processors.contract import Contract, OptionKind
from geostudio_dagster.processors.dependencies import check_requirements
from geostudio_dagster.processors.log import readable
from geostudio_dagster.processors.python import is_visible
from geostudio_dagster.processors.rlimits import bound, no_core, tool
from geostudio_dagster.settings import ProcessorSettings

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_ANALYSIS = Path(__file__).with_name("analysis.py")
_ANALYSIS_CPU_S = 20
_ANALYSIS_BYTES = 4 * 1024**3


class ValidationReport(BaseModel):
    """What was found in a script; ``ok`` when nothing stands against registering it.

    Attributes:
        problems: what must be mended first, one sentence each.
        warnings: what the author should know, one sentence each.
        contract: how it will be called.
        contract_evidence: the places in the script that say so.
        options: how it declares each ``--option``: value, many, switch or pair.
        missing_imports: modules that this installation does not offer to scripts.
        dependencies: packages that its PEP 723 header asks for.
    """

    model_config = ConfigDict(frozen=True)

    ok: bool
    name: str
    sha256: str
    size: int
    lines: int = 0
    problems: list[str] = []
    warnings: list[str] = []
    contract: Contract = "positional"
    contract_evidence: list[str] = []
    options: dict[str, OptionKind] = {}
    imports: list[str] = []
    missing_imports: list[str] = []
    dependencies: list[str] = []
    requires_python: str = ""


def check_script(
    name: str,
    content: bytes,
    *,
    limits: ProcessorSettings,
    contract: Contract | None = None,
) -> ValidationReport:
    """Judge a script without running any of it.

    ``contract`` is the author's explicit choice and wins over what the script looks like.

    Raises:
        Unavailable: this machine cannot read scripts within limits.
    """
    facts: dict[str, Any] = {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    problems = [*_name_problems(name), *_size_problems(content, limits.max_script_bytes)]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"The script is not UTF-8: byte {error.start} is no part of it.")
        text = ""
    if problems:
        return ValidationReport(ok=False, problems=problems, **facts)
    facts["lines"] = len(text.splitlines())
    found = _analyse(text)
    if "syntax_error" in found:
        problem = f"The script does not parse: {found['syntax_error']}."
        return ValidationReport(ok=False, problems=[problem], **facts)
    return _judged(found, facts, limits, contract)


def _judged(
    found: dict[str, Any],
    facts: dict[str, Any],
    limits: ProcessorSettings,
    chosen: Contract | None,
) -> ValidationReport:
    problems = []
    if not found["guard"]:
        problems.append(
            'The script has no entry point: end it with if __name__ == "__main__": and the call.'
        )
    if error := found.get("header_error"):
        problems.append(f"The script's dependency header (PEP 723) cannot be read: {error}.")
    wanted: list[str] = found["dependencies"]
    requires = found.get("requires_python", "")
    problems += check_requirements(wanted, requires, allowed=limits.allow_dependencies)
    contract, evidence, warnings = _contract(found["signs"], chosen)
    missing = [module for module in found["imports"] if not _offered(module)]
    if missing and not wanted:
        names = ", ".join(missing)
        warnings.append(f"The script imports what is not installed for processors: {names}.")
    return ValidationReport(
        ok=not problems,
        problems=problems,
        warnings=warnings,
        contract=contract,
        contract_evidence=evidence,
        options=found["options"],
        imports=found["imports"],
        missing_imports=missing,
        dependencies=wanted,
        requires_python=requires,
        **facts,
    )


def _name_problems(name: str) -> list[str]:
    if not name.endswith(".py"):
        return [f"The name {ascii(name)[:120]} does not end in .py: only Python scripts can run."]
    if not _NAME.fullmatch(name):
        allowed = "use at most 100 letters, digits, ., _ and -, and no folder"
        return [f"The name {ascii(name)[:120]} is no plain file name: {allowed}."]
    return []


def _size_problems(content: bytes, largest: int) -> list[str]:
    if not content.strip():
        return ["The script is empty."]
    if len(content) > largest:
        return [f"The script is {len(content)} bytes; at most {largest} are taken."]
    return []


def _analyse(text: str) -> dict[str, Any]:
    """Run the analysis in a process of its own, with bounds.

    Raises:
        Unavailable: this machine does not let the bounds be set, so nothing was read.
    """
    bounds = [bound("cpu", _ANALYSIS_CPU_S), bound("as", _ANALYSIS_BYTES), no_core()]
    command = [tool("prlimit"), *bounds, sys.executable, "-I", "-S", str(_ANALYSIS)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    if done.stderr.startswith(b"prlimit:"):
        said = readable(done.stderr).strip()
        raise Unavailable(
            f"Scripts cannot be checked on this machine ({said}): let its processes lower their "
            "own limits."
        )
    if done.returncode in {-signal.SIGXCPU, -signal.SIGKILL}:
        return {"syntax_error": f"it takes more than {_ANALYSIS_CPU_S} s to read"}
    return {"syntax_error": "it is nested too deeply or too large for the parser"}


def _contract(
    signs: dict[str, list[str]], chosen: Contract | None
) -> tuple[Contract, list[str], list[str]]:
    flags, positional = signs["flags"], signs["positional"]
    if chosen:
        return _chosen(signs, chosen)
    unsure = "Set the contract to be sure."
    if flags and positional:
        text = "The script shows signs of both contracts; it will be called with flags."
        return "flags", [*flags, *positional], [f"{text} {unsure}"]
    if flags or positional:
        return ("flags", flags, []) if flags else ("positional", positional, [])
    if likely := signs["likely_flags"]:
        text = "A library makes the script's command line; it will be called with flags."
        return "flags", likely, [f"{text} {unsure}"]
    text = "The script shows no sign of either contract; it will be called by positions."
    return "positional", [], [f"{text} {unsure}"]


def _chosen(signs: dict[str, list[str]], chosen: Contract) -> tuple[Contract, list[str], list[str]]:
    other: Contract = "positional" if chosen == "flags" else "flags"
    if signs[other] and not signs[chosen]:
        text = f"The contract was set to {chosen}, while the script looks otherwise"
        return chosen, signs[other], [f"{text} ({signs[other][0]})."]
    return chosen, signs[chosen], []


def _offered(module: str) -> bool:
    """Whether an isolated script can import it; found without importing anything."""
    if module in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return any(place in {"built-in", "frozen"} or is_visible(Path(place)) for place in places)
