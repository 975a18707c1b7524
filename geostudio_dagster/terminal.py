"""What all commands share: where they print, and the installation that they work on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from geostudio_dagster.errors import GeostudioError, InvalidRequest

if TYPE_CHECKING:
    from geostudio_dagster.installation import Installation

out = Console()
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def opened_installation() -> Iterator[Installation]:
    """The installation of the environment; what a user can mend is told without a traceback."""
    from geostudio_dagster.installation import Installation

    try:
        with Installation.open() as installation:
            yield installation
    except GeostudioError as error:
        # As text, not markup: a user's words may hold brackets. One line, whatever they hold.
        sentence = " ".join(str(error).split())
        name = f"[bold red]{type(error).__name__}[/]"
        err.print(f"{name}: {escape(sentence)}", highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, InvalidRequest) else 1) from error


def listing(*columns: str, whole: str = "id") -> Table:
    """An empty table; what is in column ``whole`` is to be copied, so it is never cut."""
    table = Table(box=None)
    for name in columns:
        kept = name == whole
        table.add_column(name, no_wrap=kept, overflow="ignore" if kept else "fold")
    return table


def print_json(document: object) -> None:
    """Print for programs."""
    typer.echo(json.dumps(document, indent=2, default=str))
