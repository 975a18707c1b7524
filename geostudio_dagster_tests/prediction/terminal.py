"""``geostudio-dagster predict`` as a user calls it, and the engine to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from geostudio_dagster.cli import app
from geostudio_dagster.models.bundle import load_bundle
from geostudio_dagster.prediction import predict


def call(
    bundle: Path, inputs: Sequence[Path | str], output: Path, *options: str, **environment: str
) -> Result:
    arguments = ["predict", "--model", bundle, "--input", *inputs, "--output", output, *options]
    return CliRunner().invoke(app, [str(item) for item in arguments], env=environment)


def engine(bundle: Path, source: Any, target: Path) -> bytes:
    """The bytes that the pipeline's call of the engine makes."""
    scratch = target.with_suffix(".scratch")
    scratch.mkdir()
    predict(source, load_bundle(bundle), target, scratch=scratch)
    return target.read_bytes()
