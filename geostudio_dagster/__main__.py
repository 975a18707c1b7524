"""``python -m geostudio_dagster``: the command line."""

from geostudio_dagster.cli import app

app()
