"""The progress of a download: bytes, speed and time left, from the progress bars of `huggingface_hub`."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

from tqdm import tqdm

from studio.backend.system.progress import Progress


def progress_bar(name: str, total_bytes: int, progress: Progress) -> type[tqdm]:
    """Return a tqdm class for one `snapshot_download` that shows no bar and reports all bytes to `progress`."""
    started, lock = time.monotonic(), threading.Lock()
    counts: dict[int, float] = {0: 0.0}

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "leave": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            with lock:
                # One bar counts the bytes received, another the bytes written, and a third the files.
                if self.unit == "B":
                    counts[id(self)] = self.n
                done = min(max(counts.values()), total_bytes)
            # After each file, too: Xet ignores what `progress` raises within a file.
            progress(done / max(total_bytes, 1), text(name, done, total_bytes, time.monotonic() - started))
            return shown

    return Bar


def text(name: str, done: float, total: float, seconds: float) -> str:
    """Return "Downloading NAME: 3.2 of 13.8 GB, 45 MB/s, 4 min left"."""
    speed = done / seconds if seconds > 0 else 0.0
    amount = f"Downloading {name}: {done / 1e9:.1f} of {total / 1e9:.1f} GB"
    if total < 1e9:
        amount = f"Downloading {name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB"
    if not speed:
        return amount
    left = (total - done) / speed
    time_left = f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
    return f"{amount}, {speed / 1e6:.1f} MB/s, {time_left} left"
