"""Files that users uploaded to this installation, named in requests by their download links.

They are read where they lie: our own address need not be one that scenes are fetched from, and
the link may have expired meanwhile.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from geostudio_dagster.connectors.addresses import SHARE
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.planning.request import RequestSpec
from geostudio_dagster.storage import LocalStorage

if TYPE_CHECKING:
    from geostudio_dagster.catalog import Catalog
    from geostudio_dagster.catalog.shares import ShareRecord

_ID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_DOWNLOAD = re.compile(
    rf"(?:(https?)://[^/?#\s]+(?:/[^/?#\s]+)?/v2/file-share/|({SHARE})://)({_ID})(?:[/?#]|$)"
)
_KEPT = dt.timedelta(days=7)


def with_own_files(spec: RequestSpec, catalog: Catalog, owner: str) -> RequestSpec:
    """The request with ``share://<id>/<name>`` in place of download links of its owner's files.

    Raises:
        InvalidRequest: a file is somebody else's, or not there.
    """
    urls = list(spec.spatial_domain.urls)
    links = {place: link for place, url in enumerate(urls) if (link := _link(url)) is not None}
    if not links:
        return spec
    records = catalog.shares([link[3] for link in links.values()])
    for place, link in links.items():
        record = _checked(link, records, owner, f"spatial_domain.urls.{place}")
        if record is not None:
            urls[place] = f"{SHARE}://{record.key.removeprefix('shares/')}"
    kept = catalog.keep_shares(sorted(records), _KEPT)
    for place, link in links.items():
        if link[3] in records and link[3] not in kept:
            raise InvalidRequest(
                f"spatial_domain.urls.{place}", "had expired and was removed", "upload it again"
            )
    domain = spec.spatial_domain.model_copy(update={"urls": tuple(urls)})
    return spec.model_copy(update={"spatial_domain": domain})


def own_file(
    url: str, catalog: Catalog, storage: LocalStorage, owner: str, field: str = "url"
) -> Path | None:
    """The uploaded file behind one of our download links; None for any other address.

    Raises:
        InvalidRequest: it is somebody else's, or not there; it names ``field``.
    """
    link = _link(url)
    if link is None:
        return None
    record = _checked(link, catalog.shares([link[3]]), owner, field)
    return None if record is None else storage.path(record.key)


def _link(url: str) -> re.Match[str] | None:
    if "/v2/file-share/" not in url and not url.startswith(SHARE):
        return None
    return _DOWNLOAD.match(url)


def _checked(
    link: re.Match[str], records: Mapping[str, ShareRecord], owner: str, field: str
) -> ShareRecord | None:
    record = records.get(link[3])
    if record is None and link[1]:
        return None  # another installation's
    if record is None or record.owner != owner:
        raise InvalidRequest(
            field, "names no file that you uploaded", "upload it, or give its own address"
        )
    if record.uploaded_at is None:
        raise InvalidRequest(
            field, f"nothing was uploaded as {record.name} yet", "PUT the file first"
        )
    return record
