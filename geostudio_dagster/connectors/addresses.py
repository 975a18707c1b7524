"""What may be read: which addresses of scenes are acceptable, and which machines may be asked.

Nothing here opens a connection. Remote scenes are http or https; local ones lie in a folder
that the operator allows. Everything else (``/vsi...``, other schemes, GDAL's own prefixes) is
refused before GDAL could see it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from geostudio_dagster.errors import TaskError
from geostudio_dagster.settings import Settings

_CONTROL = re.compile(r"[\x00-\x20\x7f\\]")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Beyond what module ipaddress (of every 3.11) calls not global.
_CLOSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # public by number, yet answered by Azure's own host
        "192.0.0.0/24",  # protocol assignments, among them Oracle's metadata service
        "192.88.99.0/24",  # relays of 6to4
        "64:ff9b:1::/48",  # local NAT64
        "fec0::/10",  # once site-local
    )
)
_HIGHEST_PORT = 65535
SHARE = "share"  # the scheme of files that users uploaded here; only admission may write it
_SHARED = re.compile(rf"{SHARE}://([0-9a-f-]{{36}})/([A-Za-z0-9_][A-Za-z0-9._-]{{0,199}})")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UnacceptableAddressError(ValueError):
    """An address of a scene that is refused as it stands.

    Attributes:
        code: the task error's code, ``forbidden_address`` or ``outside_roots``.
        problem: what is wrong, as a clause that begins with the address.
        remedy: what to send instead, as a clause.
    """

    def __init__(self, code: str, problem: str, remedy: str) -> None:
        self.code = code
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}.")


@dataclass(frozen=True, slots=True)
class RemoteScene:
    """A scene behind http or https."""

    url: httpx.URL

    def __str__(self) -> str:
        return shown(str(self.url))


@dataclass(frozen=True, slots=True)
class LocalScene:
    """A scene in an allowed folder; ``path`` is free of symbolic links. It may be missing."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


def scene_address(text: str, settings: Settings) -> RemoteScene | LocalScene:
    """Tell what ``text`` addresses, without looking whether anything is there.

    Raises:
        UnacceptableAddressError: neither http(s) nor a path inside the allowed folders, or it
            carries credentials.
    """
    if text.startswith("/") and not text.startswith("//"):
        return _local(text, text, settings)
    scheme = _without_controls(text).partition(":")[0].lower()
    if scheme in ("http", "https"):
        url = http_url(text)
        refuse_closed_number(url.host, text, settings)
        return RemoteScene(url)
    if scheme == "file":
        return _local(_path_of(text), text, settings)
    if scheme == SHARE:
        return _shared(text, settings)
    raise UnacceptableAddressError(
        "forbidden_address",
        f"{shown(text)} is neither http(s) nor an absolute path",
        "give an http(s) URL, or a file in a folder that this installation allows",
    )


def http_url(text: str) -> httpx.URL:
    """Parse an http(s) URL, without its fragment.

    Raises:
        UnacceptableAddressError: malformed, another scheme, or with a user name or password in it.
    """
    _without_controls(text)
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UnacceptableAddressError(
            "forbidden_address", f"{shown(text)} is not a URL", "correct the URL"
        ) from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > _HIGHEST_PORT:
        raise UnacceptableAddressError(
            "forbidden_address", f"{shown(text)} is not an http(s) URL", "use http or https"
        )
    if url.userinfo:
        raise UnacceptableAddressError(
            "forbidden_address",
            f"{shown(text)} carries a user name or password",
            "use a presigned URL, or a public one",
        )
    return url.copy_with(fragment=None)


def shown(text: str) -> str:
    """``text`` as messages and logs may show it: no user name, no query string, 200 characters."""
    plain = _CONTROL.sub("?", text).split("#")[0]
    try:
        parts = urlsplit(plain)
    except ValueError:  # an unclosed bracket
        return plain.split("?")[0].rsplit("@", 1)[-1][:200]
    if not parts.netloc:
        return parts.path[:200] if not parts.scheme else f"{parts.scheme}:{parts.path}"[:200]
    host = parts.netloc.rsplit("@", 1)[-1]
    return f"{parts.scheme}://{host}{parts.path}"[:200]


def vetted_addresses(host: str, port: int, allowed_hosts: Collection[str]) -> list[str]:
    """Numeric addresses of ``host`` that may be connected to, in the resolver's order.

    Every address that the name resolves to must be public, unless the host is allowed by name.

    Raises:
        TaskError: ``forbidden_address``, or ``unreachable`` (retryable) where it has no address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TaskError(
            "unreachable", f"The host {host} has no address ({error}).", retryable=True
        ) from error
    numbers = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if host.lower().rstrip(".") in {name.lower().rstrip(".") for name in allowed_hosts}:
        return numbers
    for number in numbers:
        if not is_public(ipaddress.ip_address(number.split("%")[0])):
            raise TaskError(
                "forbidden_address",
                f"The host {host} leads to {number}, which is not a public address; if it is "
                "meant to, its name belongs in GEOSTUDIO_FETCH__ALLOWED_HOSTS.",
            )
    return numbers


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet: not private, local, reserved or multicast."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not any(address in network for network in _CLOSED)
    )


def refuse_closed_number(host: str, text: str, settings: Settings) -> None:
    """Refuse a bare number that is not public at once; names are looked up when it matters.

    Raises:
        UnacceptableAddressError: it leads into a private network, or to this machine.
    """
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(number) and host not in settings.fetch.allowed_hosts:
        raise UnacceptableAddressError(
            "forbidden_address",
            f"{shown(text)} leads to {number}, which is not a public address",
            "give a public URL, or have GEOSTUDIO_FETCH__ALLOWED_HOSTS name the host",
        )


def _without_controls(text: str) -> str:
    if _CONTROL.search(text):
        raise UnacceptableAddressError(
            "forbidden_address",
            f"{shown(text)} holds spaces, control characters or backslashes",
            "escape them as %20 and the like",
        )
    return text


def _path_of(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("file://unreadable")
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise UnacceptableAddressError(
            "forbidden_address",
            f"{shown(text)} is not a local file",
            "write file:///absolute/path, with # and ? escaped",
        )
    return unquote(parts.path)


def _shared(text: str, settings: Settings) -> LocalScene:
    """A file that a user uploaded; that it is the requester's own is admission's to see."""
    match = _SHARED.fullmatch(text)
    if match is None:
        raise UnacceptableAddressError(
            "forbidden_address", f"{shown(text)} is not a file shared here", "use its download URL"
        )
    return LocalScene(settings.storage_root.joinpath("shares", *match.groups()).resolve())


def _local(path: str, text: str, settings: Settings) -> LocalScene:
    if "\0" in path or not path.startswith("/") or path.startswith("//"):
        raise UnacceptableAddressError(
            "forbidden_address", f"{shown(text)} is not an absolute path", "give the whole path"
        )
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise UnacceptableAddressError(
            "outside_roots", f"{shown(text)} cannot be resolved", "give a path to a file"
        ) from error
    if path.startswith("/vsi") or not any(
        resolved.is_relative_to(root) for root in settings.scene_roots
    ):
        roots = ", ".join(str(root) for root in settings.scene_roots)
        raise UnacceptableAddressError(
            "outside_roots",
            f"{shown(text)} lies outside the folders that requests may read",
            f"put the file into one of {roots}, or have GEOSTUDIO_ALLOWED_ROOTS widened",
        )
    return LocalScene(resolved)
