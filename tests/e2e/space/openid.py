"""The Hub's sign-in on this machine, as far as Gradio uses it: everybody who asks is signed in as `NAME`.

with serving_sign_in() as provider:         # OPENID_PROVIDER_URL is provider.url
    ...
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.builders.http_server import running

NAME, TOKEN, CLIENT = "ada", "hf_oauth_of_ada", "this-space"
SECONDS = 3600


class SignIn:
    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "1"})
        self.nonce = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"OAUTH_CLIENT_ID": CLIENT, "OAUTH_CLIENT_SECRET": "of-this-space", "OPENID_PROVIDER_URL": self.url,
                "OAUTH_SCOPES": "openid profile contribute-repos"}  # fmt: skip

    def answer(self, path: str) -> dict:
        if path == "/.well-known/openid-configuration":
            return {
                "issuer": self.url, "authorization_endpoint": f"{self.url}/oauth/authorize",
                "token_endpoint": f"{self.url}/oauth/token", "jwks_uri": f"{self.url}/oauth/jwks",
                "id_token_signing_alg_values_supported": ["RS256"],
            }  # fmt: skip
        if path == "/oauth/jwks":
            return {"keys": [self.key.as_dict(private=False)]}
        claims = {"iss": self.url, "aud": CLIENT, "sub": NAME, "preferred_username": NAME, "name": "Ada",
                  "picture": "", "profile": "", "nonce": self.nonce, "iat": int(time.time()),
                  "exp": int(time.time()) + SECONDS}  # fmt: skip
        identity = jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)
        return {"access_token": TOKEN, "token_type": "bearer", "expires_in": SECONDS, "id_token": identity,
                "scope": "openid profile contribute-repos"}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    provider: SignIn

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        asked = dict(parse_qsl(address.query))
        if address.path == "/oauth/authorize":
            self.provider.nonce = asked["nonce"]
            back = urlencode({"code": "1", "state": asked["state"]})
            self.send_response(302)
            joint = "&" if "?" in asked["redirect_uri"] else "?"
            self.send_header("Location", f"{asked['redirect_uri']}{joint}{back}")
            self.end_headers()
            return
        body = json.dumps(self.provider.answer(address.path)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving_sign_in() -> Iterator[SignIn]:
    provider = SignIn()
    with running(provider.server):
        yield provider
