"""Signing in with a Hugging Face account, which a Space offers whose README asks for it.

    if offered():
        gr.LoginButton()
    owner_by(scope)             # "hf:ada"; empty for who is not signed in

Elsewhere Gradio would play it, with a session that anybody can make.
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
"""What is asked for beside the name: to make repositories, and to write to those."""
OWNER = "hf:"
"""Before the name of an account."""


def offered() -> bool:
    """Not beside a login with passwords, whose way out Gradio would replace."""
    # As Gradio read them: a session that is signed with a secret that came later anybody could sign.
    settings = oauth.OAUTH_CLIENT_ID, oauth.OAUTH_CLIENT_SECRET, oauth.OAUTH_SCOPES, oauth.OPENID_PROVIDER_URL
    return get_space() is not None and all(settings) and not os.environ.get(AUTH)


def owner_by(scope: Scope) -> str:
    """Whose a request is. A browser sends its session with what other websites ask too, which is not their owner's."""
    if not offered() or is_foreign(Headers(scope=scope)):
        return ""
    info = scope.get("session", {}).get("oauth_info") or {}
    name = info.get("userinfo", {}).get("preferred_username", "")
    return f"{OWNER}{name}" if name and info.get("expires_at", 0) > time.time() else ""
