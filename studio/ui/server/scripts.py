"""The page's JavaScript: ES modules beside the Python code that uses them, and the code that mounts one.

    demo.launch(app_kwargs={"routes": routes()})     # GET scripts/<digest>/finetune/runs/runs.js
    gr.HTML(js_on_load=mounting("finetune/runs/runs.js", events=("act", "open")))

A module exports `mount(component, options)`; `component` holds Gradio's `element`, `props`, `trigger`, `watch` and
`server`. It arrives later than the component, so it starts with the present `props.value`. The digest of all modules is
part of every address, and relative imports keep it, so that browsers cache a version forever and never mix two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parents[1]
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
NEVER = {"Cache-Control": "no-store"}
# Addresses are relative to the page, which may be below a root path.
MOUNTING = """// Gradio reads the names of the events from this text: {events}
import(new URL({address}, document.baseURI).href)
  .then((module) => module.mount({{ element, props, trigger, watch, server }}, {options}))
  .catch((error) => {{
    console.error(error);
    const sentence = document.createElement("p");
    sentence.setAttribute("role", "alert");
    sentence.textContent = "This panel could not be loaded. Reload the page.";
    element.append(sentence);
  }});
"""


def routes() -> list[Route]:
    return [Route("/scripts/{path:path}", _answer, methods=["GET"])]


def mounting(module: str, events: Sequence[str] = (), **options: Any) -> str:
    """Return the `js_on_load` of a component that a module mounts.

    Args:
        module: path below `studio/ui`.
        events: names of the events that the module triggers.
        options: second argument of the module's `mount`, as JSON.

    Raises:
        KeyError: there is no such module.
    """
    address = f"{digest()}/{module}"
    if address not in _modules():
        raise KeyError(module)
    names = ", ".join(map(json.dumps, events)) or "none"
    return MOUNTING.format(events=names, address=json.dumps(f"scripts/{address}"), options=json.dumps(options))


@cache
def digest() -> str:
    """Return a short digest of all modules with their paths."""
    names = b"".join(f"{path} {sha256(text).hexdigest()}\n".encode() for path, text in _files().items())
    return sha256(names).hexdigest()[:16]


def _answer(request: Request) -> Response:
    text = _modules().get(request.path_params["path"])
    if text is None:
        return PlainTextResponse("There is no such script. Reload the page.", 404, NEVER)
    return Response(text, media_type="text/javascript", headers=FOREVER)


@cache
def _modules() -> dict[str, bytes]:
    """Return all modules by their address below `scripts/`. Requests only look up this dictionary."""
    return {f"{digest()}/{path}": text for path, text in _files().items()}


@cache
def _files() -> dict[str, bytes]:
    """Return all modules by their path below `studio/ui`."""
    return {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in sorted(FOLDER.rglob("*.js"))}
