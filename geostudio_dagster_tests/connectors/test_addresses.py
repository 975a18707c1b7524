"""What may be read, and from where."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from geostudio_dagster.connectors.addresses import (
    LocalScene,
    RemoteScene,
    UnacceptableAddressError,
    is_public,
    scene_address,
    shown,
    vetted_addresses,
)
from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import Settings


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.100.100.200", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "192.0.0.192", "198.18.0.1", "168.63.129.16",
        "::1", "::", "fe80::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.tif",
        "s3://bucket/a.tif",
        "gs://bucket/a.tif",
        "relative/a.tif",
        "a.tif",
        "~/a.tif",
        "//example.org/a.tif",
        "GTIFF_DIR:1:/etc/passwd",
        "NETCDF:/data/a.nc:band",
        "<VRTDataset></VRTDataset>",
        "javascript:alert(1)",
        "http://",
        "http:///a.tif",
        "https://exa mple.org/a.tif",
        "https://example.org/a\n.tif",
        "https://example.org\\@127.0.0.1/",
        "https://user@example.org/a.tif",
        "https://user:secret@example.org/a.tif",
        "file://server/share/a.tif",
        "file://localhost",
        "file:relative.tif",
        "http://[::1/a.tif",
        "http://example.org:99999/a.tif",
    ],
)
def test_addresses_that_are_refused_as_they_stand(url: str, place: Settings) -> None:
    with pytest.raises(UnacceptableAddressError) as refusal:
        scene_address(url, place)
    assert refusal.value.code == "forbidden_address"
    assert "secret" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/vsicurl/http://127.0.0.1/a.tif",
        "/vsizip/a.zip/a.tif",
        "file:///etc/passwd",
        "file:///etc/%2e%2e/etc/passwd",
    ],
)
def test_paths_outside_the_allowed_folders(path: str, place: Settings) -> None:
    with pytest.raises(UnacceptableAddressError) as refusal:
        scene_address(path, place)
    assert refusal.value.code == "outside_roots"
    assert "allowed" in str(refusal.value)


def test_paths_inside_the_allowed_folders(scene: Path, place: Settings) -> None:
    assert scene_address(str(scene), place) == LocalScene(scene)
    assert scene_address(scene.as_uri(), place) == LocalScene(scene)
    own = place.data_folder / "scenes" / "later.tif"
    assert scene_address(str(own), place) == LocalScene(own)


def test_dots_and_links_lead_out_of_the_allowed_folders(
    tmp_path: Path, scene: Path, place: Settings
) -> None:
    secret = tmp_path / "secret.tif"
    secret.write_bytes(b"x")
    link = scene.parent / "link.tif"
    link.symlink_to(secret)
    inside = scene.parent / "inside.tif"
    inside.symlink_to(scene)
    loop = scene.parent / "loop.tif"
    loop.symlink_to(loop)
    for path in (link, scene.parent / ".." / "secret.tif", loop):
        with pytest.raises(UnacceptableAddressError) as refusal:
            scene_address(str(path), place)
        assert refusal.value.code == "outside_roots"
    assert scene_address(str(inside), place) == LocalScene(scene)


def test_percent_escapes_and_spaces_of_file_urls(place: Settings, tmp_path: Path) -> None:
    path = tmp_path / "allowed" / "ä b#1.tif"
    assert scene_address(path.as_uri(), place) == LocalScene(path)
    assert scene_address(str(path), place) == LocalScene(path)


def test_what_messages_show_of_a_url(place: Settings) -> None:
    url = "https://u:p@host.org:8443/a/b.tif?X-Amz-Signature=secret#part"
    assert shown(url) == "https://host.org:8443/a/b.tif"
    remote = scene_address("https://host.org/b.tif?token=secret#part", place)
    assert isinstance(remote, RemoteScene)
    assert str(remote) == "https://host.org/b.tif"
    assert str(remote.url) == "https://host.org/b.tif?token=secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1"])
def test_spellings_of_this_machine(host: str) -> None:
    with pytest.raises(TaskError, match="not a public address") as error:
        vetted_addresses(host, 80, ())
    assert error.value.code == "forbidden_address"
    assert not error.value.retryable


def test_a_host_is_allowed_by_name_only() -> None:
    assert "127.0.0.1" in vetted_addresses("LOCALHOST", 80, ("localhost",))
    with pytest.raises(TaskError, match="not a public address"):
        vetted_addresses("127.0.0.1", 80, ("localhost",))


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, 80))
        for number in ("93.184.216.34", "10.0.0.7")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(TaskError, match=r"10\.0\.0\.7") as error:
        vetted_addresses("mixed.example.org", 80, ())
    assert error.value.code == "forbidden_address"


def test_a_name_without_address_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(TaskError, match="has no address") as error:
        vetted_addresses("nowhere.invalid", 80, ())
    assert (error.value.code, error.value.retryable) == ("unreachable", True)
