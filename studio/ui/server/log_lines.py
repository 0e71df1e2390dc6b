"""Log lines that nobody can forge or inflate: what a request or a library writes stays in one line of a fair length.

install()       # before the page is launched; for every logger, Gradio's and uvicorn's too
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Any

MOST = 2000
"""Characters of a message, and of a line of a traceback."""
MOST_LINES = 200
# Control characters, and those that reorder or break a line.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
MARGIN = "  | "


class SafeRecord(logging.LogRecord):
    """A record without control characters. The lines of its traceback have a margin, which no other line has."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*self.exc_info)).splitlines()  # type: ignore[arg-type]
            cut = [*lines[: MOST_LINES // 2], "…", *lines[-MOST_LINES // 2 :]] if len(lines) > MOST_LINES else lines
            self.exc_text = "\n".join(MARGIN + safe(line) for line in cut)

    def getMessage(self) -> str:
        return safe(super().getMessage())


def safe(text: str) -> str:
    """Return a text with its control characters escaped, at most `MOST` characters long."""
    cut = text if len(text) <= MOST else f"{text[:MOST]} … ({len(text):,} characters)"
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), cut)


def install() -> None:
    """Make every logger of this process write safe records."""
    logging.setLogRecordFactory(SafeRecord)
