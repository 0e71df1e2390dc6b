"""Signed cookies of visitors without a login."""

from __future__ import annotations

import hmac
import re
import time
import uuid
from hashlib import sha256

from itsdangerous import BadSignature, TimestampSigner

from studio.backend.hosting import demo

DAY_S = 24 * 3600
KEPT_DAYS = 365
"""Lifetime of a visitor cookie."""
RENEWED_DAYS = 30


class Visitors:
    """Recognise browsers without a login by a signed cookie."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._signer = TimestampSigner(secret, salt="visitor", key_derivation="hmac", digest_method=sha256)
        # Studios on one host share its cookies; a name per key keeps them apart.
        self.name = f"jetmoe-studio-{self._mac('name')[:8]}"
        # With https. Browsers take a cookie of this name from this host only, not from its subdomains.
        self.secure_name = f"__Host-{self.name}"

    def recognise(self, cookies: dict[str, str], https: bool = False) -> tuple[str, str]:
        """Return the owner and the cookie to set, which is empty if the browser's cookie is still good."""
        visitor, age_s = self._read(self._value(cookies))
        is_named = not https or self.secure_name in cookies
        if visitor and is_named and age_s < RENEWED_DAYS * DAY_S:
            return f"anon:{visitor}", ""
        visitor = visitor or uuid.uuid4().hex
        return f"anon:{visitor}", self._cookie(self.sign(visitor), KEPT_DAYS * DAY_S, https)

    def known(self, cookies: dict[str, str]) -> str:
        """Return the owner from a valid cookie, or ""."""
        visitor, _ = self._read(self._value(cookies))
        return f"anon:{visitor}" if visitor else ""

    def forgotten(self) -> list[str]:
        """Return cookies that delete the browser's cookies."""
        return [self._cookie("", 0, https=True), self._cookie("", 0, https=True, name=self.name)]

    def sign(self, visitor: str) -> str:
        """Return a signed cookie value for a visitor, with the current time."""
        return self._signer.sign(visitor).decode()

    def _value(self, cookies: dict[str, str]) -> str:
        return cookies.get(self.secure_name) or cookies.get(self.name, "")

    def _cookie(self, value: str, age_s: int, https: bool, name: str = "") -> str:
        # A Space runs in an iframe of another site.
        site = "SameSite=None; Secure; Partitioned" if demo.space_id() else "SameSite=Lax" + "; Secure" * https
        name = name or (self.secure_name if https else self.name)
        return f"{name}={value}; Path=/; Max-Age={age_s}; HttpOnly; {site}"

    def _read(self, value: str) -> tuple[str, float]:
        """Return the visitor id and the cookie's age in seconds; the id is "" if the cookie is forged or expired."""
        try:
            visitor, signed = self._signer.unsign(value, max_age=KEPT_DAYS * DAY_S, return_timestamp=True)
        except BadSignature:
            return self._read_legacy(value), float("inf")
        return visitor.decode(), time.time() - signed.timestamp()

    def _read_legacy(self, value: str) -> str:
        """Return the visitor id from a cookie of version 0.1, whose runs would otherwise be lost."""
        if not re.fullmatch(r"[0-9a-f]{32}\.[0-9]{1,12}\.[0-9a-f]{64}", value):
            return ""
        text, mac = value.rsplit(".", 1)
        visitor, signed = text.split(".")
        is_young = time.time() - int(signed) < KEPT_DAYS * DAY_S
        return visitor if is_young and hmac.compare_digest(mac, self._mac(text)) else ""

    def _mac(self, text: str) -> str:
        return hmac.new(self._secret, f"visitor {text}".encode(), sha256).hexdigest()
