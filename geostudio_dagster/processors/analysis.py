"""What a script says of itself, read from its syntax tree; nothing of it is run.

Runs as a program of its own (``python -I -S analysis.py < script``), since the parser recurses
and allocates: a script made to break it ends this process, not the one that asked. So it imports
the standard library only. Prints one JSON object.
"""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

_MANY = {"+", "*"}
_LAST_POSITION = 3


def analyse(source: str) -> dict[str, Any]:
    """Guard, imports, signs of either contract, declared options and packages of a script."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return {"syntax_error": f"line {error.lineno}: {error.msg}"}
    except ValueError as error:
        return {"syntax_error": str(error)}
    nodes = list(ast.walk(tree))
    return {
        "guard": any(isinstance(node, ast.If) and _is_guard(node.test) for node in tree.body),
        "imports": sorted(set(_imports(nodes))),
        "signs": _Signs(nodes).as_dict(),
        "options": _options(nodes),
        **_declared(source),
    }


def _is_guard(test: ast.expr) -> bool:
    for node in ast.walk(test):
        if isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = (node.left, node.comparators[0])
            names = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
            if names and any(_text(side) == "__main__" for side in sides):
                return True
    return False


def _text(node: ast.AST) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _imports(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


class _Signs:
    """What speaks for the contract by flags and what for the one by positions."""

    def __init__(self, nodes: list[ast.AST]) -> None:
        self._argv = _argv_names(nodes)
        self.flags: list[str] = []
        self.likely_flags: list[str] = []
        self.positional: list[str] = []
        self._arguments = 0
        for node in nodes:
            self._see(node)
        if self._arguments > 1:
            self.positional.append(f"{self._arguments} positional arguments are declared")

    def as_dict(self) -> dict[str, list[str]]:
        return {
            "flags": list(dict.fromkeys(self.flags)),
            "likely_flags": list(dict.fromkeys(self.likely_flags)),
            "positional": list(dict.fromkeys(self.positional)),
        }

    def _see(self, node: ast.AST) -> None:
        text = _text(node)
        if text in {"--input", "--output", "input=", "output="}:
            self.flags.append(f"line {_line(node)}: {text}")
        elif isinstance(node, ast.Call):
            self._see_call(node)
        elif isinstance(node, ast.Subscript):
            self._see_subscript(node)
        elif isinstance(node, ast.Assign) and self._is_argv(node.value):
            self._see_unpacking(node)
        elif isinstance(node, ast.Starred) and self._is_argv(node.value):
            self.positional.append(f"line {_line(node)}: sys.argv is spread over parameters")

    def _see_call(self, node: ast.Call) -> None:
        name = _called(node)
        if name == "add_argument" and node.args:
            self._arguments += not (_text(node.args[0]) or "-").startswith("-")
        elif name == "argument" or (name == "Argument" and _owner(node) == "typer"):
            self._arguments += 1
        elif name == "Fire" or (name == "run" and _owner(node) in {"typer", "tyro"}):
            self.likely_flags.append(f"line {_line(node)}: {_owner(node)}.{name}")

    def _see_subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.value, ast.Name | ast.Attribute) or not self._is_argv(node.value):
            return
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
            if 0 <= node.slice.value <= _LAST_POSITION and self._offset(node) <= node.slice.value:
                self.positional.append(f"line {_line(node)}: sys.argv[{node.slice.value}]")
        elif isinstance(node.slice, ast.Slice) and node.slice.upper is not None:
            self.positional.append(f"line {_line(node)}: a slice of sys.argv")

    def _offset(self, node: ast.Subscript) -> int:
        """The first index that is an argument: 1 in sys.argv itself, 0 in what was cut of it."""
        return 1 if isinstance(node.value, ast.Attribute) or node.value.id == "argv" else 0  # type: ignore[attr-defined]

    def _see_unpacking(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Tuple | ast.List) for target in node.targets):
            self.positional.append(f"line {_line(node)}: sys.argv is unpacked")

    def _is_argv(self, node: ast.AST) -> bool:
        return _is_sys_argv(node) or (isinstance(node, ast.Name) and node.id in self._argv)


def _is_sys_argv(node: ast.AST) -> bool:
    """``sys.argv``, or a slice of it."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        return _is_sys_argv(node.value)
    return isinstance(node, ast.Attribute) and node.attr == "argv"


def _argv_names(nodes: list[ast.AST]) -> set[str]:
    """Names that hold the arguments: ``from sys import argv``, ``args = sys.argv[1:]``."""
    names = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "sys"
        for alias in node.names
        if alias.name == "argv"
    }
    for node in nodes:
        if isinstance(node, ast.Assign) and _is_sys_argv(node.value):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _owner(node: ast.Call) -> str:
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    return owner.id if isinstance(owner, ast.Name) else ""


def _options(nodes: list[ast.AST]) -> dict[str, str]:
    """How each declared ``--option`` takes its value: value, many, switch or pair."""
    found: dict[str, str] = {}
    for node in nodes:
        if not isinstance(node, ast.Call) or _called(node) not in {"add_argument", "option"}:
            continue
        words = {word.arg: word.value for word in node.keywords if word.arg}
        for text in filter(None, map(_text, node.args)):
            if text.startswith("--"):
                on, _, off = text.partition("/")
                found[on[2:]] = "pair" if off else _kind(words)
    return found


def _kind(words: dict[str, ast.expr]) -> str:
    action = words.get("action")
    is_flag = words.get("is_flag")
    if isinstance(is_flag, ast.Constant) and is_flag.value is True:
        return "switch"
    if action is not None:
        if _text(action) in {"store_true", "store_false", "store_const", "count"}:
            return "switch"
        if getattr(action, "attr", getattr(action, "id", "")) == "BooleanOptionalAction":
            return "pair"
    many = words.get("nargs")
    if isinstance(many, ast.Constant) and (many.value in _MANY or isinstance(many.value, int)):
        return "many"
    return "value"


def _declared(source: str) -> dict[str, Any]:
    """The packages that a ``# /// script`` block (PEP 723) asks for."""
    blocks = list(_blocks(source.splitlines()))
    if not blocks:
        return {"dependencies": []}
    if len(blocks) > 1:
        return {"dependencies": [], "header_error": "there are two script blocks"}
    try:
        header = tomllib.loads("\n".join(line[2:] for line in blocks[0]))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {"dependencies": [], "header_error": str(error)}
    wanted = header.get("dependencies", [])
    if not isinstance(wanted, list) or not all(isinstance(item, str) for item in wanted):
        return {"dependencies": [], "header_error": "dependencies must be a list of strings"}
    return {"dependencies": wanted, "requires_python": str(header.get("requires-python", ""))}


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] | None = None
    for line in lines:
        if block is None:
            block = [] if line.rstrip() == "# /// script" else None
        elif line.rstrip() == "# ///":
            yield block
            block = None
        elif line == "#" or line.startswith("# "):
            block.append(line)
        else:
            block = None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(analyse(sys.stdin.buffer.read().decode("utf-8"))))
