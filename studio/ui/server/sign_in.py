"""Sign-in with a Hugging Face account, available on Spaces whose README enables it.

    if offered():
        gr.LoginButton()
    owner_by(scope)             # "hf:ada", or "" if not signed in

Outside a Space, Gradio only mocks the sign-in, with a session that anyone can forge.
"""

from __future__ import annotations

import os
import time

from gradio import oauth
from gradio.utils import get_space
from starlette.datastructures import Headers
from starlette.types import Scope

from studio.backend.hosting.exposure import AUTH
from studio.ui.server.visitors import is_foreign

SCOPE = "contribute-repos"
"""Permission requested in addition to the name: create repositories and write to them."""
OWNER = "hf:"
"""Prefix of the owner for an account."""


def offered() -> bool:
    """Return whether sign-in is available. Not together with passwords, because Gradio would replace their logout."""
    # Use the values that Gradio read at import: if the secret was set later, anyone can sign a session.
    settings = oauth.OAUTH_CLIENT_ID, oauth.OAUTH_CLIENT_SECRET, oauth.OAUTH_SCOPES, oauth.OPENID_PROVIDER_URL
    return get_space() is not None and all(settings) and not os.environ.get(AUTH)


def is_host(owner: str) -> bool:
    """Return whether an owner is the account whose Space this is."""
    name = os.environ.get("SPACE_AUTHOR_NAME", "")
    return bool(name) and owner == f"{OWNER}{name}"


def owner_by(scope: Scope) -> str:
    """Return the owner of a signed-in request, or "". A session sent on behalf of another website does not count."""
    if not offered() or is_foreign(Headers(scope=scope)):
        return ""
    info = scope.get("session", {}).get("oauth_info") or {}
    name = info.get("userinfo", {}).get("preferred_username", "")
    return f"{OWNER}{name}" if name and info.get("expires_at", 0) > time.time() else ""
