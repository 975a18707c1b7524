"""The requests that ``make demo`` submits."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from geostudio_dagster.demo.model import demo_bundle
from geostudio_dagster.demo.scenes import spyndex_scene, synthetic_scene
from geostudio_dagster.storage import sha256_of

_NAMESPACE = UUID("1d0f6b0e-6f6c-5c55-9d2b-0f6f2f2f4a51")
SPLIT = {"task_size": 2048, "shard_size": 2}


def demo_model(data_folder: Path) -> Path:
    """Folder of the demo model's bundle, made if it is not there."""
    return demo_bundle(data_folder / "demo" / "land-cover").folder


def demo_requests(data_folder: Path, model: str, digest: str) -> list[dict[str, Any]]:
    """Request documents for both demo scenes, which are made if they are not there.

    The large scene is split into tasks of 2048 x 2048 pixels, two to a shard. Ids follow from
    the contents of scene and model: the same demo again is the same requests.

    Args:
        data_folder: the installation's data folder.
        model: name or ``name@version`` of a registered model.
        digest: that model's digest.
    """
    folder = data_folder / "scenes" / "demo"
    real, large = folder / "sentinel2_spyndex.tif", folder / "synthetic_4096.tif"
    if not real.exists():
        spyndex_scene(real)
    if not large.exists():
        synthetic_scene(large)
    return [
        request_for(
            real,
            model,
            digest,
            name="Sentinel-2, 300 x 300",
            description="Real Sentinel-2 pixels from package spyndex at a nominal position.",
        ),
        request_for(
            large,
            model,
            digest,
            name="Made-up landscape, 4096 x 4096",
            description="A made-up scene, large enough to be split into tasks and shards.",
            **SPLIT,
        ),
    ]


def request_for(scene: Path | str, model: str, digest: str, **fields: Any) -> dict[str, Any]:
    """A request document on one scene whose id follows from its input, its model and ``fields``.

    ``scene`` is a local path (its contents count) or a URL (its text counts).
    """
    if isinstance(scene, Path):
        content, url = sha256_of(scene), scene.absolute().as_uri()
    else:
        content = url = scene
    options = ";".join(f"{key}={fields[key]}" for key in sorted(fields))
    identifier = uuid5(_NAMESPACE, f"{url}\n{content}\n{model}\n{digest}\n{options}")
    return {
        "id": str(identifier),
        "model": model,
        "spatial_domain": {"urls": [url]},
        "temporal_domain": [],
        **fields,
    }
