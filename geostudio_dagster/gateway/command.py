"""The commands ``keys ...`` and ``gateway``."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from geostudio_dagster.errors import Conflict, InvalidRequest
from geostudio_dagster.gateway_settings import LOOPBACK
from geostudio_dagster.settings import Settings
from geostudio_dagster.terminal import AsJson, err, listing, opened_installation, out, print_json

if TYPE_CHECKING:
    from geostudio_dagster.catalog import Catalog

keys_app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

_EmailOption = Annotated[str | None, typer.Option("--email", help="Only this user's keys.")]


@keys_app.command("create")
def keys_create(
    email: Annotated[str, typer.Argument(help="Whose key, an e-mail address.")],
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int | None, typer.Option(min=1, max=365, help="Days until it ends.")] = None,
    admin: Annotated[
        bool | None, typer.Option("--admin/--no-admin", help="May the user see and do all?")
    ] = None,
) -> None:
    """Make a key; its value is printed, alone, on standard output, and never again."""
    from geostudio_dagster.gateway.tokens import is_email

    with opened_installation() as installation:
        if not is_email(email):
            raise InvalidRequest("email", f"{email!r} is no e-mail address", "write name@host")
        limits = installation.settings.gateway
        try:
            record, value = installation.catalog.create_key(
                email.lower(),
                days=days or limits.key_days,
                limit=limits.keys_per_user,
                label=label[:200],
                admin=admin,
            )
        except Conflict as error:
            raise Conflict(f"{email} has {limits.keys_per_user} keys; revoke one first.") from error
        err.print(f"Key {record.id} of {escape(record.email)}, until {record.expires_at:%Y-%m-%d}:")
        typer.echo(value)


@keys_app.command("list")
def keys_list(email: _EmailOption = None, as_json: AsJson = False) -> None:
    """List the keys, without their values."""
    with opened_installation() as installation:
        records = installation.catalog.keys(email)
        if as_json:
            fields = ("id", "email", "label", "active", "created_at", "expires_at", "last_used_at")
            print_json([{name: getattr(item, name) for name in fields} for item in records])
            return
        table = listing("id", "user", "key", "label", "active", "until", "last used")
        for item in records:
            used = f"{item.last_used_at:%Y-%m-%d %H:%M}" if item.last_used_at else "never"
            table.add_row(
                item.id,
                escape(item.email),
                f"{item.shown}...",
                escape(item.label),
                "yes" if item.active else "no",
                f"{item.expires_at:%Y-%m-%d}",
                used,
            )
        out.print(table)


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(help="The key's id.")]) -> None:
    """End a key, at once and for good."""
    with opened_installation() as installation:
        installation.catalog.revoke_key(key_id)
        typer.echo(f"{key_id}: revoked")


def gateway(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65_535)] = 8091,
    workers: Annotated[int, typer.Option(help="Processes that answer.", min=1, max=64)] = 1,
    first_key: Annotated[
        bool, typer.Option(help="Make an administrator's key if there is no key at all.")
    ] = True,
) -> None:
    """Serve the REST API, maps, layers and files."""
    import uvicorn

    with opened_installation() as installation:
        settings = installation.settings
        refuse_exposure(settings, host)
        url = f"http://{host}:{port}"
        for line in first_steps(installation.catalog, settings, url) if first_key else ():
            err.print(line, highlight=False, soft_wrap=True)
    with _counted_together() if workers > 1 else nullcontext():
        uvicorn.run(
            "geostudio_dagster.gateway.app:serve",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            http="geostudio_dagster.gateway.protocol:PatientProtocol",
            log_level="warning",
            access_log=False,  # metrics count the calls
            # The headers of a proxy are believed only from where the operator says so.
            forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1"),
            timeout_graceful_shutdown=10,
        )


@contextmanager
def _counted_together() -> Iterator[None]:
    """Whichever worker is asked for metrics tells those of all; see :mod:`gateway.metrics`."""
    with TemporaryDirectory(prefix="geostudio-metrics-") as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield


def refuse_exposure(settings: Settings, host: str) -> None:
    """See that a gateway without authentication is not reachable from elsewhere.

    Raises:
        InvalidRequest: it would be.
    """
    if settings.gateway.auth == "on":
        return
    if not _is_loopback(host):
        raise InvalidRequest(
            "GEOSTUDIO_GATEWAY__AUTH",
            f"is off, but {host} can be reached from other machines",
            "switch it on, or listen on 127.0.0.1",
        )


def first_steps(catalog: Catalog, settings: Settings, url: str) -> list[str]:
    """What to say at a start: how to come in; the first time with a new administrator's key."""
    if settings.gateway.auth == "off":
        danger = "every process on this machine may do everything"
        return [f"[bold yellow]Warning[/]: authentication is off; {danger}."]
    email = settings.gateway.default_user
    value = catalog.first_key(email, days=settings.gateway.key_days)
    if value is None:
        return ["API keys: geostudio-dagster keys create you@example.org"]
    return [
        f"[bold]An administrator's API key[/] was made for {escape(email)}; it is shown only now:",
        f"  {value}",
        f"Use it so:  curl -H 'X-API-Key: {value}' {url}/v2/models",
        f"or with the geostudio SDK:  BASE_GATEWAY_API_URL={url}  GEOSTUDIO_API_KEY={value}",
    ]


def _is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
