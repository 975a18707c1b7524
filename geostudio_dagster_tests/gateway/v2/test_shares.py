"""File shares: upload and download by signed links, and scenes that were uploaded."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from dagster import DagsterInstance

from geostudio_dagster.catalog.api_schema import Share
from geostudio_dagster.errors import InvalidRequest
from geostudio_dagster.pipeline.plans import plan_request
from geostudio_dagster.planning.admission import admit
from geostudio_dagster.planning.own_files import own_file
from geostudio_dagster.signing import Signer
from geostudio_dagster_tests.conftest import MakeScene
from geostudio_dagster_tests.driving import Driver
from geostudio_dagster_tests.gateway.v2.serving import ANN, BOB, PATIENCE_S, Api


@pytest.fixture
def driver(api: Api) -> Iterator[Driver]:
    """Real sensors and runs over the gateway's installation."""
    with DagsterInstance.ephemeral() as instance:
        yield Driver(api.installation, instance)


def put(url: str, **more: Any) -> httpx.Response:
    """Without a key."""
    return httpx.put(url, timeout=PATIENCE_S, **more)


def get(url: str) -> httpx.Response:
    """Without a key."""
    return httpx.get(url, timeout=PATIENCE_S)


def links(client: httpx.Client, name: str = "scene.tif") -> dict[str, Any]:
    answer = client.get("/v2/file-share", params={"object_name": name})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def uploaded(client: httpx.Client, content: bytes, name: str = "scene.tif") -> str:
    both = links(client, name)
    # As the SDK does it: no key, any type.
    answer = put(both["upload_url"], content=content, headers={"Content-Type": "image/tiff"})
    assert answer.status_code == 200, answer.text
    return str(both["download_url"])


def test_a_file_goes_up_and_comes_down_without_a_key(api: Api) -> None:
    content = bytes(range(256)) * 5000
    url = uploaded(api.client(), content)
    with httpx.Client(timeout=PATIENCE_S) as nobody:
        whole = nobody.get(url)
        assert (whole.status_code, whole.content) == (200, content)
        assert whole.headers["content-disposition"] == 'attachment; filename="scene.tif"'
        head = nobody.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
        part = nobody.get(url, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, content[1000:2000])
        assert part.headers["content-range"] == f"bytes 1000-1999/{len(content)}"
        assert nobody.get(url, headers={"Range": "bytes=9999999-"}).status_code == 416


def test_the_links_work_below_studio_gateway_too(api: Api) -> None:
    both = api.client().get("/studio-gateway/v2/file-share/?object_name=a-file.zip").json()
    assert urlsplit(both["upload_url"]).path.startswith("/studio-gateway/v2/file-share/")
    assert put(both["upload_url"], content=b"zip").status_code == 200
    assert get(both["download_url"]).content == b"zip"


@pytest.mark.parametrize(
    "name", ["abc.tar.gz", "data.2024.tif", "My Scene 1.TIF", "a_b-c.x", "best_state_dict.ckpt"]
)
def test_names_that_upstream_refuses_wrongly_are_taken(ann: httpx.Client, name: str) -> None:
    """Reference 1.6: its pattern rejects double extensions, years, spaces and capitals."""
    both = links(ann, name)
    assert set(both) == {"upload_url", "download_url", "message", "expires_at"}
    assert both["message"].startswith("Use upload_url to add data")


@pytest.mark.parametrize(
    "name",
    ["a.tif", "x" * 57 + ".tif", "../../etc.tif", "a/b/c.tif", "noextension", ".hidden", "a\nb.tif",
     "a<b>c.tif", "scene.tif\x00", "", 'a"b.tiff', "ünï.tiff"],
)  # fmt: skip
def test_other_names_are_refused_and_leave_no_row(
    inside: Api, ann: httpx.Client, name: str
) -> None:
    answer = ann.get("/v2/file-share", params={"object_name": name})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][0] == "query"
    with inside.installation.catalog._read() as session:
        assert session.query(Share).count() == 0


def test_equal_names_never_meet(api: Api) -> None:
    """S-9, S-11: upstream's same name on the same day overwrites another user's file."""
    first = uploaded(api.client(), b"of Ann")
    second = uploaded(api.client(), b"of Ann, later")
    third = uploaded(api.client(BOB), b"of Bob")
    assert [get(url).content for url in (first, second, third)] == [
        b"of Ann",
        b"of Ann, later",
        b"of Bob",
    ]


def test_an_upload_happens_once(api: Api) -> None:
    both = links(api.client())
    assert put(both["upload_url"], content=b"first").status_code == 200
    assert put(both["upload_url"], content=b"first").status_code == 200  # a retry
    other = put(both["upload_url"], content=b"other")
    assert other.status_code == 409
    assert other.headers["content-type"] == "application/problem+json"
    assert get(both["download_url"]).content == b"first"


def test_of_uploads_at_once_one_is_kept_whole(api: Api) -> None:
    both = links(api.client())
    contents = [bytes([n]) * 300_000 for n in range(4)]

    def status(content: bytes) -> int:
        return put(both["upload_url"], content=content).status_code

    with ThreadPoolExecutor(4) as pool:
        codes = sorted(pool.map(status, contents))
    assert codes == [200, 409, 409, 409]
    assert get(both["download_url"]).content in contents
    assert scratch_of(api) == []


def scratch_of(api: Api) -> list[str]:
    folder = api.installation.settings.data_folder / "scratch"
    return [path.name for path in folder.glob("upload-*")]


def test_links_are_for_one_thing_and_end(api: Api) -> None:
    both = links(api.client())
    upload, download = both["upload_url"], both["download_url"]
    swapped = upload.split("grant=")[0] + "grant=" + download.split("grant=")[1]
    assert put(swapped, content=b"x").status_code == 403
    assert (
        put(upload[:-3] + ("AAA" if upload[-3:] != "AAA" else "BBB"), content=b"x").status_code
        == 403
    )
    assert put(upload.split("?")[0], content=b"x").status_code == 401
    assert get(download).status_code == 404  # nothing there yet
    share_id = urlsplit(upload).path.split("/")[3]
    expired = Signer.open(api.installation.settings).sign(
        f"upload:{share_id}", dt.timedelta(seconds=-1)
    )
    late = put(upload.split("?")[0] + f"?grant={expired}", content=b"x")
    assert late.status_code == 403
    assert "expired" in late.json()["detail"]


def test_a_key_opens_its_owners_files_only(api: Api) -> None:
    plain = uploaded(api.client(), b"mine").split("?")[0]
    assert api.client().get(plain).content == b"mine"
    assert api.client(BOB).get(plain).status_code == 404
    assert api.client("root@example.org", admin=True).get(plain).content == b"mine"


def test_too_large_a_file_leaves_nothing(api: Api) -> None:
    """Reference S-11: upstream's presigned PUT takes anything of any size."""
    limit = {"max_upload_bytes": 100_000}
    gateway = api.installation.settings.gateway.model_copy(update=limit)
    settings = api.installation.settings.model_copy(update={"gateway": gateway})
    from geostudio_dagster_tests.gateway.v2.serving import listening

    with listening(settings) as url:
        small = Api(api.installation, api.model, url)
        both = links(small.client())
        declared = put(both["upload_url"], content=b"x" * 200_000)
        assert declared.status_code == 413
        streamed = put(both["upload_url"], content=(b"x" * 1000 for _ in range(200)))
        assert streamed.status_code == 413
        assert put(both["upload_url"], content=b"x" * 100_000).status_code == 200
        assert scratch_of(api) == []
        small.close()


def test_what_was_uploaded_is_never_shown_in_a_browser(api: Api) -> None:
    url = uploaded(api.client(), b"<script>alert(1)</script>", "page.html")
    answer = get(url)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_other_peoples_share_ids_are_unknown(ann: httpx.Client) -> None:
    assert ann.get(f"/v2/file-share/{uuid4()}/scene.tif").status_code == 404
    assert ann.get("/v2/file-share/nonsense/scene.tif").status_code == 422


def test_an_uploaded_scene_is_predicted_by_its_download_link(
    api: Api, make_scene: MakeScene, driver: Driver
) -> None:
    """Also by one that expired meanwhile: our own address need not be one that is fetched."""
    scene = make_scene("up_2024-06-30.tif", size=96).read_bytes()
    url = uploaded(api.client(), scene, "up_2024-06-30.tif").split("grant=")[0] + "grant=0.expired"
    place = api.installation
    settings = place.settings.model_copy(
        update={"fetch": place.settings.fetch.model_copy(update={"allowed_hosts": ()})}
    )
    document = {"model": api.model.name, "spatial_domain": {"urls": [url]}}
    request = admit(document, place.catalog, settings, owner=ANN)
    (named,) = request.spec["spatial_domain"]["urls"]
    assert named.startswith("share://")
    assert driver.until_over(request.id) == "COMPLETED"
    (task,) = place.catalog.tasks(request.id)
    assert task.date == "2024-06-30"
    with pytest.raises(InvalidRequest, match=r"urls\.0: names no file that you uploaded"):
        admit(document, place.catalog, settings, owner=BOB)


def test_a_request_cannot_name_what_is_not_there_or_not_its_own(api: Api) -> None:
    place = api.installation
    both = links(api.client())

    def refused(url: str, owner: str) -> str:
        document = {"model": api.model.name, "spatial_domain": {"urls": [url]}}
        with pytest.raises(InvalidRequest) as error:
            admit(document, place.catalog, place.settings, owner=owner)
        return str(error.value)

    assert "nothing was uploaded as scene.tif yet" in refused(both["download_url"], ANN)
    put(both["upload_url"], content=b"not a scene")
    key = place.catalog.share(urlsplit(both["upload_url"]).path.split("/")[3]).key
    for url in (f"share://{key.removeprefix('shares/')}", both["download_url"]):
        assert "names no file that you uploaded" in refused(url, BOB)
    for url in (f"share://{uuid4()}/a.tif", f"share://{uuid4()}/../../catalog.db", "share://x/y"):
        assert "spatial_domain.urls.0" in refused(url, ANN)
    assert place.catalog.requests() == []
    path = own_file(both["download_url"], place.catalog, place.storage, ANN)
    assert path is not None
    assert path.read_bytes() == b"not a scene"
    foreign = f"https://other.example/v2/file-share/{uuid4()}/a.tif"
    assert own_file(foreign, place.catalog, place.storage, ANN) is None


def test_a_file_that_a_live_request_names_is_kept(api: Api, make_scene: MakeScene) -> None:
    place = api.installation
    scene = make_scene("s.tif", size=64).read_bytes()
    used, unused = (uploaded(api.client(), scene, f"{name}.tif") for name in ("used", "other"))
    document = {"model": api.model.name, "spatial_domain": {"urls": [used]}}
    request = admit(document, place.catalog, place.settings, owner=ANN)
    plan_request(place, request.id)
    much_later = dt.datetime.now(dt.UTC) + dt.timedelta(days=400)
    expired = place.catalog.expired_shares(much_later, 10)
    assert [record.name for record in expired] == ["other.tif"]
    assert get(unused).status_code == 200
    place.catalog.cancel(request.id)
    assert len(place.catalog.expired_shares(much_later, 10)) == 2
