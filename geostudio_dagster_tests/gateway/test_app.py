from __future__ import annotations

import subprocess
import sys

import pytest
import rasterio
from fastapi.testclient import TestClient

from geostudio_dagster_tests.gateway.conftest import REQUEST, World

KEY = f"{REQUEST}/{REQUEST}-task_0/{REQUEST}-task_0_pred.tif"


def test_it_is_alive_and_ready(client: TestClient) -> None:
    assert client.get("/health/livez").json()["status"] == "UP"
    assert client.get("/health/readyz").json() == {"status": "UP"}


def test_every_answer_forbids_foreign_scripts(published: World, client: TestClient) -> None:
    for path in (f"/maps/{REQUEST}", f"/layers/{REQUEST}", "/static/map.js", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_escapes_what_users_wrote(published: World, client: TestClient) -> None:
    page = client.get(f"/maps/{REQUEST}")
    assert page.status_code == 200
    assert "Danube &lt;b&gt;wetlands&lt;/b&gt; &amp; June" in page.text
    assert "<b>" not in page.text
    assert "style=" not in page.text
    assert page.text.count("<script") == page.text.count("<script src=")


def test_an_unknown_request_has_a_page_that_says_so(client: TestClient) -> None:
    page = client.get("/maps/<script>alert(1)")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "<script>" not in page.text
    assert "No such map" in page.text


def test_maplibre_comes_from_its_package(client: TestClient) -> None:
    script = client.get("/maplibre/maplibre-gl.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "MapLibre GL JS" in script.text[:200]
    assert client.get("/maplibre/maplibre-gl.css").status_code == 200
    assert client.get("/maplibre/__init__.py").status_code == 404
    assert client.get("/maplibre/..%2f__init__.py").status_code == 404


def test_files_answer_ranges(published: World, client: TestClient) -> None:
    whole = client.get(f"/files/{KEY}")
    assert whole.status_code == 200
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.content == published.storage.read_bytes(KEY)
    part = client.get(f"/files/{KEY}", headers={"Range": "bytes=4-19"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 4-19/{len(whole.content)}"
    assert part.content == whole.content[4:20]
    head = client.head(f"/files/{KEY}")
    assert int(head.headers["content-length"]) == len(whole.content)
    assert client.get(f"/files/{KEY}", headers={"Range": "bytes=99999999-"}).status_code == 416


@pytest.mark.parametrize(
    "key",
    [
        "nothing/here.tif",
        REQUEST,
        "../catalog.db",
        "..%2Fcatalog.db",
        f"{REQUEST}/%2e%2e/%2e%2e/catalog.db",
        "%2Fetc%2Fpasswd",
        f"{REQUEST}/.hidden",
        f"{REQUEST}/link.tif",
    ],
)
def test_only_committed_files_are_served(published: World, client: TestClient, key: str) -> None:
    secret = published.settings.data_folder / "secret.tif"
    secret.write_bytes(b"secret")
    (published.settings.storage_root / REQUEST / "link.tif").symlink_to(secret)
    (published.settings.storage_root / REQUEST / ".hidden").write_bytes(b"secret")
    answer = client.get(f"/files/{key}")
    assert answer.status_code == 404
    assert "secret" not in answer.text


def test_active_content_is_only_ever_downloaded(published: World, client: TestClient) -> None:
    published.storage.commit_bytes(b"<script>alert(1)</script>", f"{REQUEST}/page.html")
    answer = client.get(f"/files/{REQUEST}/page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_the_factory_is_light() -> None:
    code = (
        "import sys; from geostudio_dagster.gateway.app import create_app; create_app();"
        "heavy = {'torch', 'terratorch', 'torchvision', 'geopandas', 'maplibre', 'dagster',"
        " 'rio_tiler', 'titiler.core'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_served_cog_is_what_was_committed(published: World, client: TestClient) -> None:
    data = client.get(f"/files/{KEY}").content
    with rasterio.MemoryFile(data) as memory, memory.open() as dataset:
        assert dataset.crs.to_epsg() == 32633


def test_a_foreign_host_name_reads_nothing(client: TestClient) -> None:
    """A page elsewhere may let its own name resolve to this machine."""
    answer = client.get("/health/livez", headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert client.get("/health/livez", headers={"Host": "localhost:8091"}).status_code == 200
