"""Uploaded files that expire while somebody names them in a request."""

from __future__ import annotations

import datetime as dt

from geostudio_dagster.catalog import Catalog

DAY = dt.timedelta(days=1)


def uploaded(catalog: Catalog) -> str:
    share = catalog.create_share("ann@example.org", "a.tif", "a.tif", DAY, "image/tiff")
    assert catalog.finish_upload(share.id, 10, "image/tiff", DAY)
    return share.id


def test_a_file_is_either_kept_for_a_request_or_goes(catalog: Catalog) -> None:
    kept, gone = uploaded(catalog), uploaded(catalog)
    later = dt.datetime.now(dt.UTC) + 2 * DAY
    found = [share.id for share in catalog.expired_shares(later, limit=10)]
    assert sorted(found) == sorted([kept, gone])

    assert catalog.keep_shares([kept], 7 * DAY) == {kept}
    assert not catalog.close_share(kept, later), "named after the list was made"
    assert catalog.close_share(gone, later)
    assert catalog.keep_shares([kept, gone, "none"], 7 * DAY) == {kept}
    assert catalog.close_share(gone, later), "a round that was cut off begins again"


def test_a_place_without_a_file_is_kept_for_nobody(catalog: Catalog) -> None:
    share = catalog.create_share("ann@example.org", "a.tif", "a.tif", DAY, "image/tiff")
    assert catalog.keep_shares([share.id], DAY) == set()
