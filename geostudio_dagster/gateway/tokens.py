"""Bearer tokens: JWTs whose signature, issuer, audience and life are checked, or none at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import httpx
import jwt

from geostudio_dagster.catalog.api_schema import EMAIL
from geostudio_dagster.gateway_settings import GatewaySettings

_KEYS_KEPT_S = 300.0
_ASKED_AGAIN_S = 10.0  # at the soonest, whatever unknown key ids clients send
_TIMEOUT_S = 5.0
_LARGEST_KEY_SET = 1024**2
_LONGEST_TOKEN = 16 * 1024
_LEEWAY_S = 10


class RefusedTokenError(Exception):
    """The token proves nothing."""


class TokenVerifier:
    """Verifies JWTs against the issuer's published keys, which are fetched when needed.

    Args:
        settings: address of the keys, and what a token must say.
        clock: seconds, monotonic.
    """

    def __init__(
        self, settings: GatewaySettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -_KEYS_KEPT_S

    def email_of(self, token: str) -> str:
        """The verified e-mail address of whoever holds the token.

        Raises:
            RefusedTokenError: it is no token of the configured issuer for us, or not now.
        """
        if self._settings.jwks_url is None or len(token) > _LONGEST_TOKEN:
            raise RefusedTokenError
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self._settings.jwt_algorithms:
                raise RefusedTokenError
            claims = jwt.decode(
                token,
                self._key(str(header.get("kid", ""))),
                algorithms=list(self._settings.jwt_algorithms),
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise RefusedTokenError from error
        email = claims.get(self._settings.jwt_email_claim)
        if not is_email(email) or claims.get("email_verified") is False:
            raise RefusedTokenError
        return str(email).lower()

    def _key(self, key_id: str) -> jwt.PyJWK:
        with self._lock:
            age = self._clock() - self._fetched_at
            if age >= _KEYS_KEPT_S or (key_id not in self._keys and age >= _ASKED_AGAIN_S):
                self._fetched_at = self._clock()
                self._keys = self._fetch() or self._keys
            key = self._keys.get(key_id)
        if key is None:
            raise RefusedTokenError
        return key

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        """The issuer's keys by id; empty while it does not answer, so that the old ones stay."""
        try:
            with httpx.stream("GET", str(self._settings.jwks_url), timeout=_TIMEOUT_S) as answer:
                answer.raise_for_status()
                text = b""
                for chunk in answer.iter_bytes():
                    text += chunk
                    if len(text) > _LARGEST_KEY_SET:
                        return {}
            keys = jwt.PyJWKSet.from_dict(json.loads(text)).keys
        except (httpx.HTTPError, jwt.PyJWTError, ValueError, AttributeError, TypeError):
            return {}
        return {str(key.key_id or ""): key for key in keys if key.key_type != "oct"}


def is_email(value: object) -> bool:
    """Whether it can be an e-mail address, and one that the catalog can hold."""
    if not isinstance(value, str) or len(value) > EMAIL or not value.isprintable():
        return False
    name, at, host = value.partition("@")
    return bool(name and at and host) and "@" not in host and " " not in value
