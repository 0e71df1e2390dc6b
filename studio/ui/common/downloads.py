"""Download routes for exported models and classified files. Zip files are streamed and never written to disk.

    demo.launch(app_kwargs={"routes": routes(jobs.store)})     # GET exports/<run id>/<kind>.zip, labelled/<id>.csv

Gradio's own downloads are copied into a cache that anyone who knows the URL can read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from zipfile import ZIP_STORED, ZipFile

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from studio.backend.data.uploads import find
from studio.backend.export.kept import KINDS, exported
from studio.backend.runs.store import RunStore
from studio.errors import StudioError
from studio.ui.server.identity import owner_of

BLOCK = 1 << 20
LABELLED_ENDING = ".labelled.csv"


def routes(store: RunStore) -> list[Route]:
    def download(request: Request) -> Response:
        run_id, kind = request.path_params["run_id"], request.path_params["kind"]
        try:
            # Require the full id, because the store also accepts its first characters.
            is_asked_well = kind in KINDS and len(run_id) == 36
            folder = exported(store, run_id, kind, owner_of(request)) if is_asked_well else None
        except StudioError:
            folder = None
        if folder is None:
            return PlainTextResponse("There is no such export. Create it on the run's page first.", 404)
        name = f"{kind}-{run_id[:8]}.zip"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)

    return [
        Route("/exports/{run_id}/{kind}.zip", download, methods=["GET"]),
        Route("/labelled/{result}.csv", labelled, methods=["GET"]),
    ]


def labelled(request: Request) -> Response:
    """Send a classified file, or the part of it that is already written."""
    file = labelled_file(request.path_params["result"], owner_of(request))
    if file is None:
        return PlainTextResponse("There is no such file; it is deleted after a day. Classify the file again.", 404)
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}", "Cache-Control": "no-store",
    }  # fmt: skip
    return StreamingResponse(_blocks(file), media_type="text/csv; charset=utf-8", headers=headers)


def labelled_file(result: object, owner: str = "") -> Path | None:
    """Return the owner's classified file with this id of 32 hexadecimal digits."""
    try:
        file = find(result, owner) if isinstance(result, str) else None
    except StudioError:
        return None
    return file if file is not None and file.name.endswith(LABELLED_ENDING) else None


def labelled_address(result: str) -> str:
    """Return the address of the download, relative to the page."""
    return f"labelled/{result}.csv"


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while block := source.read(BLOCK):
            yield block


def address(run_id: str, kind: str) -> str:
    """Return the address of the download, relative to the page."""
    return f"exports/{run_id}/{kind}.zip"


def zipped(folder: Path) -> Iterator[bytes]:
    """Yield the files of a folder as an uncompressed zip, block by block; weights don't compress."""
    sink = _Sink()
    with ZipFile(sink, "w", ZIP_STORED) as archive:
        for file in sorted(each for each in folder.iterdir() if each.is_file()):
            with file.open("rb") as source, archive.open(f"{folder.name}/{file.name}", "w", force_zip64=True) as entry:
                while block := source.read(BLOCK):
                    entry.write(block)
                    yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A buffer for a zip that is streamed: the writer can't seek back, and every block is taken out at once."""

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
