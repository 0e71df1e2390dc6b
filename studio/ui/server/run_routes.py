"""Routes that pages poll for training runs, answered in the server's event loop.

    demo.launch(app_kwargs={"routes": routes(RunViews(store))})
    # GET watch/runs, watch/runs/<id>?after=<seq>, watch/comparison?id=<id>&id=<id>

Gradio's functions need a thread per request, so a hundred pages would queue behind the model. Here a thread reads new
data once a second, for all viewers.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from studio.backend.runs.views import RunViews
from studio.ui.server.identity import owner_of


def routes(views: RunViews) -> list[Route]:
    async def read(*run_ids: str) -> None:
        if views.is_due(*run_ids):
            await anyio.to_thread.run_sync(views.refresh, *run_ids)

    async def listing(request: Request) -> Response:
        await read()
        return _answer(views.listing(owner_of(request)))

    async def events(request: Request) -> Response:
        run_id, after = request.path_params["run_id"], _count(request.query_params.get("after", "0"))
        await read(run_id)
        return _answer(views.events(run_id if after is not None else "", after or 0, owner_of(request)))

    def comparison(request: Request) -> Response:
        return _answer(views.comparison(request.query_params.getlist("id"), owner_of(request)))

    return [
        Route("/watch/runs", listing, methods=["GET"]),
        Route("/watch/runs/{run_id}", events, methods=["GET"]),
        Route("/watch/comparison", comparison, methods=["GET"]),
    ]


def _answer(answer: dict[str, Any]) -> Response:
    """Return a JSON response; numbers that are not finite become null."""
    return Response(orjson.dumps(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
