"""What the studio runs in processes of its own, which take seconds to begin, in the tests' process."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from typer.testing import CliRunner

from studio.cli.main import app
from studio.ui.page import page_facts


def run_json(arguments: Sequence[str], cancel: threading.Event | None = None) -> Any:
    """Replaces `process.run_json`, which has its own tests; nothing is cancelled here."""
    if list(arguments) == ["-m", "studio.ui.page.page_facts"]:
        with redirect_stdout(io.StringIO()):  # Gradio prints the address of the MCP server
            return page_facts.facts()
    assert list(arguments[:2]) == ["-m", "studio"]
    result = CliRunner().invoke(app, arguments[2:])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])
