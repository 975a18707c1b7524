"""The gateway's part of the settings: who may ask, and how much at a time."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})


class GatewaySettings(BaseModel):
    """Variables ``GEOSTUDIO_GATEWAY__...``."""

    model_config = ConfigDict(frozen=True)

    auth: Literal["on", "off"] = Field(
        default="on", description="off lets everybody in as default_user; on loopback only."
    )
    default_user: str = Field(default="local@localhost", description="Who asks when auth is off.")
    secret: SecretStr | None = Field(
        default=None, description="Signs links; default is a file of its own in the data folder."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Host names, beside gateway_url's, that clients may use."
    )
    keys_per_user: int = Field(default=2, ge=1, description="API keys that a user may have.")
    key_days: int = Field(default=90, ge=1, le=365, description="Life of a new API key, days.")
    metrics_token: SecretStr | None = Field(
        default=None, description="Bearer token that may read /metrics, for Prometheus."
    )
    jwks_url: str | None = Field(
        default=None, description="Keys of the issuer of bearer tokens; without it none is taken."
    )
    jwt_issuer: str | None = Field(default=None, description="Required value of iss.")
    jwt_audience: str | None = Field(default=None, description="Required value of aud.")
    jwt_algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
        ...,
    ] = Field(default=("RS256", "ES256"), min_length=1, description="Signatures accepted.")
    jwt_email_claim: str = Field(default="email", description="Claim that holds the e-mail.")
    max_body_bytes: int = Field(default=32 * 1024**2, gt=0, description="Largest request body.")
    max_upload_bytes: int = Field(
        default=20 * 1024**3, gt=0, description="Largest file uploaded to a file share."
    )
    body_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds that a body may take; each piece of an upload."
    )
    max_json_depth: int = Field(default=64, ge=8, le=200, description="Nesting of JSON bodies.")
    link_hours: float = Field(
        default=84.0, gt=0, le=24 * 365, description="Life of signed links to outputs and logs."
    )
    share_hours: float = Field(
        default=8.0, gt=0, le=24 * 365, description="Life of the links of a file share."
    )
    retention_days: float = Field(
        default=7.0, ge=0, description="Days that files of deleted requests are still kept."
    )

    audit_days: int = Field(
        default=365, ge=0, description="Days that it is kept who did what; 0 writes nothing."
    )

    @field_validator("jwks_url")
    @classmethod
    def _safe_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
            return value
        raise ValueError("is not an https address; keys fetched in clear could be exchanged")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.jwks_url and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("jwks_url needs jwt_issuer and jwt_audience beside it")
        return self
