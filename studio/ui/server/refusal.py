"""The response to a refused request: a sentence, as JSON for scripts and as plain text for browsers."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope


def refusal(scope: Scope, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    kept = {"Cache-Control": "no-store", **(headers or {})}
    if "text/html" in Headers(scope=scope).get("accept", ""):
        return PlainTextResponse(sentence, status, kept)
    # Gradio's front end shows `detail`, its clients show `error`.
    return JSONResponse({"detail": sentence, "error": sentence}, status, kept)
