"""Closing a shard: each finished task gets its STAC item and its archive."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from geostudio_dagster.catalog import ArtifactRecord, Settlement, TaskRecord
from geostudio_dagster.catalog.states import PUSH
from geostudio_dagster.errors import TaskError
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.alone import ALONE
from geostudio_dagster.pipeline.stage import heartbeat, now
from geostudio_dagster.publish.archive import write_archive
from geostudio_dagster.publish.stac import MEDIA_TYPE, item_json, task_item
from geostudio_dagster.storage import task_key

log = logging.getLogger(__name__)

_PACKAGED = ("archive", "stac")


def package_shard(installation: Installation, shard_key: str, run_id: str) -> int:
    """Package every task whose processing is over and whose files changed; returns how many.

    A task that cannot be packaged is failed, and the others go on.

    Raises:
        OSError: reading or writing failed, and another attempt of the shard may do better.
    """
    catalog = installation.catalog
    count = 0
    failure: OSError | None = None
    with heartbeat(installation, run_id):
        last_attempt = (
            catalog.shard(shard_key).attempt + 1 >= installation.settings.shards.max_attempts
        )
        for task in catalog.shard_tasks(shard_key):
            push = next((step for step in task.steps if step.process_id == PUSH), None)
            if push is None or push.status not in ("READY", "RUNNING", "FINISHED"):
                continue
            try:
                count += _package(installation, task, run_id)
            except SQLAlchemyError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and not last_attempt:
                    failure = failure or error
                    continue
                log.exception("task %s cannot be packaged", task.id)
                catalog.reject_results(task.id, _not_packaged(error))
    if failure is not None:
        raise failure
    return count


def _not_packaged(error: Exception) -> TaskError:
    return TaskError(
        "not_packaged",
        f"Its archive or STAC item could not be written: {type(error).__name__}: {error}.",
    )


def settle(installation: Installation, shard_key: str, run_id: str) -> Settlement:
    """Close the shard if nothing is left in it, else leave it for another attempt."""
    delay = installation.settings.shards.retry_delay_s
    return installation.catalog.settle_shard(shard_key, run_id, now(), delay)


def _package(installation: Installation, task: TaskRecord, run_id: str) -> bool:
    """Write item and archive unless they were made from exactly these files already."""
    artifacts = [
        artifact
        for artifact in installation.catalog.artifacts(task.id)
        if not artifact.name.startswith(ALONE)
    ]
    made_from = _fingerprint(artifacts)
    known = {a.name: a.metadata.get("made_from") for a in artifacts if a.name in _PACKAGED}
    if all(known.get(name) == made_from for name in _PACKAGED):
        return False
    contents = [artifact for artifact in artifacts if artifact.name not in _PACKAGED]
    archive = _archive(installation, task, contents, made_from, run_id)
    item = _item(installation, task, [*contents, archive], made_from)
    installation.catalog.put_artifacts([archive, item])
    return True


def _fingerprint(artifacts: Sequence[ArtifactRecord]) -> str:
    parts = sorted(f"{a.name}={a.sha256 or a.key}" for a in artifacts if a.name not in _PACKAGED)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _archive(
    installation: Installation,
    task: TaskRecord,
    contents: Sequence[ArtifactRecord],
    made_from: str,
    run_id: str,
) -> ArtifactRecord:
    own = f"{task.request_id}/{task.id}/"
    files = [
        installation.storage.path(artifact.key)
        for artifact in contents
        if artifact.key.startswith(own)
    ]
    scratch_name = f"{task.id}-archive"
    try:
        target = installation.storage.scratch(scratch_name, run_id) / "archive.zip"
        write_archive(files, target)
        stored = installation.storage.commit(
            target, task_key(task.request_id, task.id, "archive.zip")
        )
    finally:
        installation.storage.discard_scratch(scratch_name, run_id)
    return ArtifactRecord(
        owner_id=task.id,
        name="archive",
        key=stored.key,
        media_type="application/zip",
        size=stored.size,
        sha256=stored.sha256,
        metadata={"made_from": made_from},
    )


def _item(
    installation: Installation,
    task: TaskRecord,
    artifacts: Sequence[ArtifactRecord],
    made_from: str,
) -> ArtifactRecord:
    request = installation.catalog.request(task.request_id)
    by_name = {artifact.name: artifact for artifact in artifacts}
    figures = dict(by_name["stats"].metadata)
    if "masked" in by_name:  # whose figures they are; the item describes the prediction's pixels
        figures.pop("classes", None)
    item = task_item(
        request,
        task,
        installation.catalog.model(request.model_id),
        artifacts,
        installation.path_of(by_name["prediction"]),
        scene=installation.path_of(by_name["scene"]),
        gateway_url=installation.settings.gateway_url,
        statistics=figures,
    )
    stored = installation.storage.commit_bytes(
        item_json(item), task_key(task.request_id, task.id, f"{task.id}.json")
    )
    return ArtifactRecord(
        owner_id=task.id,
        name="stac",
        key=stored.key,
        media_type=MEDIA_TYPE,
        size=stored.size,
        sha256=stored.sha256,
        metadata={"made_from": made_from},
    )
