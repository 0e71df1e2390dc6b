"""Exported models on their way to a person: zip files that are made while they are sent, so none lies on the disk.

    demo.launch(app_kwargs={"routes": routes(jobs.store)})     # GET exports/<run id>/<kind>.zip

Gradio's own downloads are copied into a cache that anybody may read who knows the address.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.exports import KINDS, exported
from studio.backend.runs import RunStore
from studio.errors import StudioError

BLOCK = 1 << 20


def routes(store: RunStore) -> list[Route]:
    def download(request: Request) -> Response:
        run_id, kind = request.path_params["run_id"], request.path_params["kind"]
        try:
            folder = exported(store, run_id, kind) if kind in KINDS else None
        except StudioError:
            folder = None
        if folder is None:
            return PlainTextResponse("There is no such export. Make it on the run's page first.", 404)
        name = f"{kind}-{run_id[:8]}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)

    return [Route("/exports/{run_id}/{kind}.zip", download, methods=["GET"])]


def address(run_id: str, kind: str) -> str:
    """Of the download, as seen from the page."""
    return f"exports/{run_id}/{kind}.zip"


def zipped(folder: Path) -> Iterator[bytes]:
    """The files of a folder as a zip, block by block; weights don't get smaller by packing."""
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            with file.open("rb") as source, archive.open(f"{folder.name}/{file.name}", "w", force_zip64=True) as entry:
                while block := source.read(BLOCK):
                    entry.write(block)
                    yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """Where a zip file is written to that can't go back: a pipe of one block."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data
