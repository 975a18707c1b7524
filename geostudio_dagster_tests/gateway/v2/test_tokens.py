"""Bearer tokens of a real issuer: real keys, a real key server, and forgeries of every kind."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi.testclient import TestClient

from geostudio_dagster.gateway.app import create_app
from geostudio_dagster.gateway.tokens import RefusedTokenError, TokenVerifier
from geostudio_dagster.gateway_settings import GatewaySettings
from geostudio_dagster.settings import Settings

KEYS = "/v2/auth/api-keys"
ISSUER, AUDIENCE = "https://login.example.org", "geostudio"


@dataclass
class Issuer:
    """Signs tokens, and publishes its keys at ``url``."""

    url: str = ""
    asked: int = 0
    keys: dict[str, Any] = field(default_factory=dict)

    def add(self, key_id: str, key: Any) -> None:
        self.keys[key_id] = key

    def published(self) -> bytes:
        found = []
        for key_id, key in self.keys.items():
            algorithm = (
                jwt.algorithms.RSAAlgorithm
                if isinstance(key, rsa.RSAPrivateKey)
                else jwt.algorithms.ECAlgorithm
            )
            public = json.loads(algorithm.to_jwk(key.public_key()))
            found.append({**public, "kid": key_id, "use": "sig"})
        return json.dumps({"keys": found}).encode()

    def token(
        self, key_id: str = "rsa", algorithm: str = "RS256", key: Any = None, **claims: Any
    ) -> str:
        now = int(time.time())
        known = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": now + 60,
            "iat": now,
            "email": "Ann@Example.org",
        }
        wanted = {k: v for k, v in {**known, **claims}.items() if v is not None}
        signed_with = key if key is not None else self.keys.get(key_id)
        return jwt.encode(wanted, signed_with, algorithm=algorithm, headers={"kid": key_id})


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add("rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    issuer.add("ec", ec.generate_private_key(ec.SECP256R1()))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(issuer.published())

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    issuer.url = f"http://127.0.0.1:{server.server_port}/keys"
    yield issuer
    server.shutdown()
    server.server_close()


def trusting(issuer: Issuer) -> GatewaySettings:
    return GatewaySettings(jwks_url=issuer.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)


@pytest.fixture
def ask(settings: Settings, issuer: Issuer) -> Iterator[Callable[..., httpx.Response]]:
    """Lists the keys of whoever a token belongs to."""
    trusted = settings.model_copy(update={"gateway": trusting(issuer)})
    with TestClient(create_app(trusted), base_url="http://127.0.0.1") as client:

        def call(token: str, **headers: str) -> httpx.Response:
            return client.get(KEYS, headers={"Authorization": f"Bearer {token}", **headers})

        yield call


@pytest.mark.parametrize(("key_id", "algorithm"), [("rsa", "RS256"), ("ec", "ES256")])
def test_a_signed_token_is_its_holder(
    ask: Callable[..., httpx.Response], issuer: Issuer, key_id: str, algorithm: str
) -> None:
    answer = ask(issuer.token(key_id, algorithm))
    assert answer.status_code == 200
    assert answer.json() == {"total_records": 0, "page_count": 0, "results": []}


def test_the_address_of_the_token_counts_and_no_header(settings: Settings, issuer: Issuer) -> None:
    trusted = settings.model_copy(update={"gateway": trusting(issuer)})
    with TestClient(create_app(trusted), base_url="http://127.0.0.1") as client:
        headers = {
            "Authorization": f"Bearer {issuer.token()}",
            "x-forwarded-email": "root@example.org",
            "x-auth-request-email": "root@example.org",
        }
        made = client.post("/v2/groups", json={"name": "ours"}, headers=headers)
        assert made.json()["created_by"] == "ann@example.org"
        only = client.get(KEYS, headers={"x-forwarded-email": "root@example.org"})
        assert only.status_code == 401


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, signature)
    )


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def hmac_forgery(issuer: Issuer) -> str:
    """HS256 with the published key as its secret: what a verifier must not fall for."""
    public = (
        issuer.keys["rsa"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    unsigned = forged({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, claims_of(issuer.token()))
    head = unsigned.rpartition(".")[0]
    seal = hmac.digest(public, head.encode(), hashlib.sha256)
    return f"{head}.{base64.urlsafe_b64encode(seal).rstrip(b'=').decode()}"


def changed(issuer: Issuer) -> str:
    header, _, signature = issuer.token().split(".")
    claims = {**claims_of(issuer.token()), "email": "root@example.org"}
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{header}.{middle}.{signature}"


REFUSED: dict[str, Callable[[Issuer], str]] = {
    "no signature": lambda i: forged({"alg": "none", "kid": "rsa"}, claims_of(i.token())),
    "None in other case": lambda i: forged({"alg": "NoNe", "kid": "rsa"}, claims_of(i.token())),
    "the public key as a password": hmac_forgery,
    "another key under a known id": lambda i: i.token(
        key=rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ),
    "an unknown key id": lambda i: i.token("other", key=i.keys["rsa"]),
    "RSA announced for the EC key": lambda i: i.token("ec", "RS256", key=i.keys["rsa"]),
    "an algorithm not accepted": lambda i: i.token("rsa", "RS512"),
    "expired": lambda i: i.token(exp=int(time.time()) - 60),
    "no end": lambda i: i.token(exp=None),
    "not yet": lambda i: i.token(nbf=int(time.time()) + 600),
    "another audience": lambda i: i.token(aud="other"),
    "no audience": lambda i: i.token(aud=None),
    "another issuer": lambda i: i.token(iss="https://evil.example.org"),
    "no e-mail": lambda i: i.token(email=None),
    "an e-mail that is a list": lambda i: i.token(email=["ann@example.org"]),
    "an e-mail that is not verified": lambda i: i.token(email_verified=False),
    "changed claims": changed,
    "no token": lambda _: "garbage",
    "a very long token": lambda i: i.token(pad="x" * 20_000),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_token_that_proves_nothing_is_refused(
    ask: Callable[..., httpx.Response], issuer: Issuer, what: str
) -> None:
    answer = ask(REFUSED[what](issuer))
    assert answer.status_code == 401, what
    assert answer.json()["detail"] == "Authorization token is invalid or expired."


def test_without_an_issuer_no_token_is_taken(settings: Settings, issuer: Issuer) -> None:
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        for token in (issuer.token(), "a.eyJlbWFpbCI6ICJhbm5AZXhhbXBsZS5vcmcifQ.b"):
            answer = client.get(KEYS, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401


def test_a_new_key_is_fetched_but_unknown_ones_do_not_make_us_ask_all_the_time(
    issuer: Issuer,
) -> None:
    now = [0.0]
    verifier = TokenVerifier(trusting(issuer), clock=lambda: now[0])
    assert verifier.email_of(issuer.token()) == "ann@example.org"
    asked = issuer.asked
    issuer.add("new", ec.generate_private_key(ec.SECP256R1()))
    fresh = issuer.token("new", "ES256")
    for _ in range(5):
        with pytest.raises(RefusedTokenError):
            verifier.email_of(fresh)
    assert issuer.asked == asked
    now[0] = 11.0
    assert verifier.email_of(fresh) == "ann@example.org"
    assert issuer.asked == asked + 1


def test_while_the_issuer_is_silent_its_known_keys_count(issuer: Issuer) -> None:
    now = [0.0]
    verifier = TokenVerifier(trusting(issuer), clock=lambda: now[0])
    verifier.email_of(issuer.token())
    silent = trusting(issuer).model_copy(update={"jwks_url": "http://127.0.0.1:1/keys"})
    verifier._settings = silent
    now[0] = 1000.0
    assert verifier.email_of(issuer.token()) == "ann@example.org"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"jwks_url": "http://login.example.org/keys"}, "is not an https address"),
        ({"jwks_url": "https://login.example.org/keys"}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_algorithms": ("HS256",)}, "Input should be"),
        ({"jwt_algorithms": ("none",)}, "Input should be"),
        ({"key_days": 366}, "less than or equal to 365"),
    ],
)
def test_unsafe_settings_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        GatewaySettings(**given)
