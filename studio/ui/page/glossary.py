"""The glossary as a page of this server, so that its link works without a network and behind a login.

demo.launch(app_kwargs={"routes": routes()})     # GET /glossary: docs/glossary.md as HTML
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

FILE = Path(__file__).parents[3] / "docs" / "glossary.md"
STYLE = (
    "body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.6 system-ui, sans-serif; } "
    ":root { color-scheme: light dark; } h2 { font-size: 1.1rem; margin: 1.6rem 0 0.3rem; } p { margin: 0.3rem 0; }"
)


def routes() -> list[Route]:
    return [Route("/glossary", _answer, methods=["GET"])]


def _answer(request: Request) -> HTMLResponse:
    return HTMLResponse(page())


@cache
def page() -> str:
    """Return the glossary as an HTML document, with an anchor for each term."""
    text = FILE.read_text(encoding="utf-8")
    # Other pages of the documentation are not served.
    text = re.sub(r"\[([^\]]+)\]\((?!#)[^)]*\)", r"\1", text)
    parser = MarkdownIt()
    tokens = parser.parse(text)
    for heading, title in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", anchor(title.content))
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Glossary of JetMoE Studio</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style><body>{body}</body></html>'
    )


def anchor(title: str) -> str:
    """Return the anchor that GitHub and the Hub give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
