"""Routes that pages poll for training runs, answered in the server's event loop.

    demo.launch(app_kwargs={"routes": routes(RunViews(store))})
    # GET watch/runs?since=<version>, watch/runs/<id>?after=<seq>, watch/comparison?id=<id>&id=<id>
    # GET watch/runs/<id>/settings, watch/runs/<id>/log?after=<offset>, watch/runs/<id>/log.txt

Gradio's functions need a thread per request, so a hundred pages would queue behind the model. Here a thread reads new
data once a second, for all viewers.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.runs.views import RunViews
from studio.ui.server.identity import owner_of


def routes(views: RunViews) -> list[Route]:
    async def read(*run_ids: str) -> None:
        if views.is_due(*run_ids):
            await anyio.to_thread.run_sync(views.refresh, *run_ids)

    async def listing(request: Request) -> Response:
        await read()
        return _answer(views.listing(owner_of(request), request.query_params.get("since", "")[:40]))

    async def events(request: Request) -> Response:
        run_id, after = request.path_params["run_id"], _count(request.query_params.get("after", "0"))
        await read(run_id)
        return _answer(views.events(run_id if after is not None else "", after or 0, owner_of(request)))

    def settings(request: Request) -> Response:
        return _answer(views.settings(request.path_params["run_id"], owner_of(request)))

    def log(request: Request) -> Response:
        after = _count(request.query_params.get("after", "0"))
        return _answer(views.log(request.path_params["run_id"], -1 if after is None else after, owner_of(request)))

    def whole_log(request: Request) -> Response:
        run_id = request.path_params["run_id"]
        parts = views.whole_log(run_id, owner_of(request))
        if parts is None:
            return PlainTextResponse("There is no such run. It may have been deleted.", 404)
        headers = {"Content-Disposition": f'attachment; filename="log-{run_id[:8]}.txt"', "Cache-Control": "no-store"}
        return StreamingResponse(parts, media_type="text/plain; charset=utf-8", headers=headers)

    def comparison(request: Request) -> Response:
        return _answer(views.comparison(request.query_params.getlist("id"), owner_of(request)))

    return [
        Route("/watch/runs", listing, methods=["GET"]),
        Route("/watch/runs/{run_id}", events, methods=["GET"]),
        Route("/watch/runs/{run_id}/settings", settings, methods=["GET"]),
        Route("/watch/runs/{run_id}/log", log, methods=["GET"]),
        Route("/watch/runs/{run_id}/log.txt", whole_log, methods=["GET"]),
        Route("/watch/comparison", comparison, methods=["GET"]),
    ]


def _answer(answer: dict[str, Any]) -> Response:
    """Return a JSON response; numbers that are not finite become null."""
    return Response(orjson.dumps(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None
