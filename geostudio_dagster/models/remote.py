"""Models that another machine runs, asked batch by batch over HTTP.

Each batch is one POST with its own connection, through the guard that remote scenes go through:
private hosts only where ``GEOSTUDIO_FETCH__ALLOWED_HOSTS`` names them, no redirects. What is sent
and what must come back is the payload's matter: see :mod:`models.payloads`.
"""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

import httpcore
import httpx

from geostudio_dagster import __version__
from geostudio_dagster.connectors.addresses import shown
from geostudio_dagster.connectors.exchange import (
    TRANSIENT_STATUS,
    TransientError,
    header,
    network_errors,
    retry_after,
    retrying,
)
from geostudio_dagster.connectors.guard import GuardedPool
from geostudio_dagster.errors import TaskError
from geostudio_dagster.models.bundle import Bundle
from geostudio_dagster.models.contract import InputSpec
from geostudio_dagster.models.payloads import Payload, payload_of
from geostudio_dagster.settings import Settings, read_settings

if TYPE_CHECKING:
    from torch import Tensor

    from geostudio_dagster.models.endpoint import EndpointSettings

_EXCERPT = 200  # characters of a refusal that are worth showing


class RemoteRuntime:
    """An endpoint: see :class:`contract.Runtime`.

    Raises, when asked:
        TaskError: ``unreachable`` (retryable) after the last try; ``endpoint_refused``, it says
            that the request is wrong; ``endpoint_wrong``, its answer is not an output.
    """

    engine: ClassVar[str] = "endpoint"
    device: ClassVar[str] = "cpu"
    autocasts: ClassVar[bool] = False

    def __init__(
        self, endpoint: EndpointSettings, payload: Payload, spec: InputSpec, settings: Settings
    ) -> None:
        self._endpoint = endpoint
        self._payload = payload
        self._spec = spec
        self._settings = settings
        self._name = shown(endpoint.url)
        self._free = threading.BoundedSemaphore(endpoint.concurrency)
        self.concurrency = endpoint.concurrency
        self.batch_size = payload.batch_size or endpoint.batch_size

    def forward(self, pixels: Tensor) -> Any:
        """The endpoint's output for a batch, checked: float32 (N, channels, H, W)."""
        given = self._spec.arrange(pixels.cpu())
        assert not isinstance(given, dict), "the manifest refuses modalities"  # noqa: S101
        batch = given.contiguous().numpy()
        with self._free, self._payload.request(batch) as body:
            deadline = time.monotonic() + self._endpoint.deadline_s
            again = retrying(self._endpoint.attempts, deadline)
            answer = again(self._ask, body, deadline)
        return self._payload.output(answer, batch, self._name)

    def _ask(self, body: bytes, deadline: float) -> bytes:
        url = httpx.URL(self._endpoint.url)
        wait = dict.fromkeys(("connect", "read", "write", "pool"), self._endpoint.timeout_s)
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        with (
            network_errors(self._name),
            GuardedPool(self._settings.fetch, deadline) as pool,
            pool.stream(
                "POST",
                target,
                headers=self._headers(url, body),
                content=body,
                extensions={"timeout": wait},
            ) as response,
        ):
            data = self._body(response)
            self._check_status(response, data)
            return data

    def _headers(self, url: httpx.URL, body: bytes) -> list[tuple[str, str]]:
        headers = {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": f"geostudio-dagster/{__version__}",
            "Content-Type": self._payload.content_type,
            "Accept": self._payload.content_type,
            "Accept-Encoding": "identity",
            "Content-Length": str(len(body)),
        }
        token = self._settings.endpoints.tokens.get(url.host)
        # In clear text only to hosts that the operator knows as neighbours.
        safe = url.scheme == "https" or url.host in self._settings.fetch.allowed_hosts
        if token is not None and safe:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        return list(headers.items())

    def _body(self, response: httpcore.Response) -> bytes:
        most = self._settings.endpoints.max_response_bytes
        data = bytearray()
        for chunk in response.iter_stream():
            data += chunk
            if len(data) > most:
                raise TaskError(
                    "endpoint_wrong", f"{self._name} answers with more than {most} bytes."
                )
        return bytes(data)

    def _check_status(self, response: httpcore.Response, data: bytes) -> None:
        status = response.status
        if status == HTTPStatus.OK:
            return
        if status in TRANSIENT_STATUS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise TransientError(f"{self._name} answered HTTP {status}.", retry_after(response))
        if 300 <= status < 400:  # noqa: PLR2004 - redirects
            where = shown(header(response, b"location"))
            raise TaskError(
                "endpoint_refused",
                f"{self._name} redirects to {where}; name that address in the bundle if it is "
                "the endpoint.",
            )
        said = " ".join(data[:_EXCERPT].decode("utf-8", "replace").split())
        raise TaskError(
            "endpoint_refused", f"{self._name} refuses the batch (HTTP {status}): {said or '-'}"
        )


def load_endpoint(bundle: Bundle, _: str) -> RemoteRuntime:
    """The bundle's endpoint; nothing is asked yet.

    Raises:
        TaskError: ``model_unusable``, the payload needs a setting that isn't there.
    """
    manifest, settings = bundle.manifest, read_settings()
    endpoint = manifest.endpoint
    assert endpoint is not None, "the manifest makes sure of endpoint"  # noqa: S101
    payload = payload_of(manifest, endpoint, settings.endpoints)
    return RemoteRuntime(endpoint, payload, InputSpec.of(manifest), settings)
