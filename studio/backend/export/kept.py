"""The exports of a run, kept in its folder until the run is deleted, so that they can be downloaded and pushed.

make(store, run.id, "merged-bf16", cancel)        # in a separate process, with the merge proof
exported(store, run.id, "merged-bf16")            # the folder; None if it was not exported yet
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.backend.export.base import PROOF
from studio.backend.export.export import export
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.system.files import publish, read_json
from studio.backend.system.process import run_json
from studio.errors import StudioError

MERGED = {"merged-bf16": ["--merge"], "merged-nf4": ["--merge", "--four-bit"]}
"""Command line options by kind."""
KINDS = ("adapter", *MERGED)
PROVEN = ("error", "tolerance", "from_base", "change", "tokens")
"""Numbers in every merge proof."""


def make(store: RunStore, run_id: str, kind: str, cancel: threading.Event | None = None) -> Path:
    """Create an export, or replace the old one, because a resumed run has a new adapter.

    Raises:
        StudioError: there is no such kind or run, it has no adapter, or the merge proof failed.
    """
    if kind not in KINDS:
        raise StudioError(f"Choose what to export: {', '.join(KINDS)}.")
    run = store.get(run_id)
    folder = _folder(run, kind)
    with _beside(folder) as fresh:
        if kind in MERGED:
            run_json(["-m", "studio", "export", run.id, "--to", str(fresh), *MERGED[kind], "--json"], cancel)
        else:
            export(run.id, fresh)  # copies files and loads no model
        shutil.rmtree(folder, ignore_errors=True)
        publish(fresh, folder)
    return folder


def exported(store: RunStore, run_id: str, kind: str, owner: str = "") -> Path | None:
    """Return the folder of an export, or None if it was not exported yet.

    Raises:
        StudioError: the owner has no such run.
    """
    folder = _folder(store.get(run_id, owner), kind)
    return folder if folder.is_dir() else None


def proof(folder: Path) -> dict[str, Any] | None:
    """Return the merge proof, or None for an adapter.

    Raises:
        StudioError: the file is damaged.
    """
    file = folder / PROOF
    if not file.is_file():
        return None
    found = read_json(file) or {}
    if not all(isinstance(found.get(name), int | float) for name in PROVEN):
        raise StudioError("The merge proof of this export is damaged. Export the model again.")
    return found


def card(folder: Path) -> str:
    """Return the model card without its front matter."""
    text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    return text.split("---\n", 2)[-1] if text.startswith("---\n") else text


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Yield a folder for the new export, while the old one stays available; leftovers are deleted."""
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        yield Path(work) / folder.name


def _folder(run: Run, kind: str) -> Path:
    return run.folder / "exports" / kind
