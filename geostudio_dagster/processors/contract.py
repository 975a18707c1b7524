"""How a script is called: by positions, as GEOStudio's guide prints it, or by flags, as it runs.

- ``positional``: ``script.py <input> <output> <parameters>``. ``<output>`` is a file that does not
  exist yet, named after the input; ``<parameters>`` is one JSON document.
- ``flags``: ``script.py --<key> <value> ... --input <input> --output <output>``. ``<output>`` is an
  existing, empty folder. Strings and numbers are passed as they are, lists and objects as JSON,
  true and false as ``True`` and ``False`` (what GEOStudio's runner writes), and for null the flag
  is left out, so that the script's own default holds. Options that the script declares as switches
  or with several values are given as argparse wants them.

In both, ``GEOSTUDIO_INPUT`` and ``GEOSTUDIO_OUTPUT`` hold the same two paths and
``GEOSTUDIO_PARAMETERS`` all parameters as JSON. In either, files beside ``<output>`` in the same
folder are collected as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from geostudio_dagster.errors import InvalidRequest

Contract = Literal["positional", "flags"]
OptionKind = Literal["value", "many", "switch", "pair"]

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")  # what argparse does not take for an option
_RESERVED = {"input", "output", "help"}
_MAX_BYTES = 100_000  # Linux takes 128 KiB in one argument or variable
_FIELD = "processor_parameters"


def parameters_json(parameters: Mapping[str, Any] | None) -> str:
    """All parameters as one JSON document, in ASCII.

    Raises:
        InvalidRequest: they hold what JSON cannot say, or are too large for a command line.
    """
    try:
        text = json.dumps(dict(parameters or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"cannot be written as JSON ({error})"
        raise InvalidRequest(_FIELD, problem, "use plain JSON values") from error
    if len(text) > _MAX_BYTES:
        problem = f"are {len(text)} bytes of JSON"
        raise InvalidRequest(_FIELD, problem, f"use at most {_MAX_BYTES} bytes")
    return text


def check_parameters(contract: Contract, parameters: Mapping[str, Any] | None) -> None:
    """Refuse parameters that could not arrive intact, when a request comes.

    Raises:
        InvalidRequest: naming the parameter.
    """
    parameters_json(parameters)
    if contract == "flags":
        for key, value in (parameters or {}).items():
            _check_flag(key, value)


def _check_flag(key: str, value: Any) -> None:
    shown = ascii(key)[:80]
    if not _KEY.fullmatch(key):
        remedy = "name it with letters, digits, _ and -, first a letter"
        raise InvalidRequest(_FIELD, f"{shown} cannot be the name of a flag", remedy)
    if key.lower() in _RESERVED:
        problem = f"{shown} would collide with the flag of the same name"
        raise InvalidRequest(_FIELD, problem, "choose another name")
    texts = [value, *value] if isinstance(value, list) else [value]
    for text in texts:
        if isinstance(text, str) and ("\0" in text or not _is_unicode(text)):
            problem = f"{shown} holds characters that no command line can carry"
            raise InvalidRequest(_FIELD, problem, "remove NUL and lone surrogates")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def command_line(
    contract: Contract,
    script: str,
    input: str,
    output: str,
    parameters: Mapping[str, Any] | None,
    *,
    options: Mapping[str, OptionKind] | None = None,
) -> list[str]:
    """The script and its arguments, to follow the interpreter; never part of a shell's string.

    ``options`` says how the script declares its options, as ``ValidationReport.options`` has it.

    Raises:
        InvalidRequest: the parameters cannot arrive intact.
    """
    check_parameters(contract, parameters)
    if contract == "positional":
        return [script, input, output, parameters_json(parameters)]
    words = [script]
    for key, value in (parameters or {}).items():
        words += _flag(key, value, options or {})
    return [*words, "--input", input, "--output", output]


def _flag(key: str, value: Any, options: Mapping[str, OptionKind]) -> Iterator[str]:
    if value is None:
        return
    spellings = (key, key.replace("_", "-"), key.replace("-", "_"))
    name = next((spelling for spelling in spellings if spelling in options), key)
    kind = options.get(name, "value")
    if isinstance(value, bool) and kind in {"switch", "pair"}:
        if value:
            yield f"--{name}"
        elif kind == "pair":
            yield f"--no-{name}"
        return
    if isinstance(value, list) and kind == "many":
        yield f"--{name}"
        yield from map(_word, value)
        return
    word = _word(value)
    if word.startswith("-") and not _NUMBER.fullmatch(word):
        yield f"--{name}={word}"  # apart, argparse would take it for an option
    else:
        yield f"--{name}"
        yield word


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    return json.dumps(value, allow_nan=False)


def environment(
    input: str,
    output: str,
    parameters: Mapping[str, Any] | None,
) -> dict[str, str]:
    """The three documented variables."""
    return {
        "GEOSTUDIO_INPUT": input,
        "GEOSTUDIO_OUTPUT": output,
        "GEOSTUDIO_PARAMETERS": parameters_json(parameters),
    }
