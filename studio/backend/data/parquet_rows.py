"""Read the rows of a parquet file in a separate process, so that a crash of pyarrow does no harm.

with ParquetRows(path, 200_000_000) as file:
    file.names, file.left_out, file.rows     # all columns; those without text, such as pictures; number of rows
    for found in file: ...                   # {"cells": {...}} or {"reason": why the row can't be read}
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from studio.errors import StudioError

WORKER = Path(__file__).with_name("parquet_worker.py")


class ParquetRows:
    """Iterate over the rows of a parquet file.

    Raises:
        StudioError: the file is damaged, or unpacks to more than `most_bytes`.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path = path
        # -P: the modules next to the worker must not shadow others of the same name.
        command = [sys.executable, "-P", str(WORKER), str(path.absolute()), str(most_bytes)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.lines = cast(TextIO, self.process.stdout)

    def __enter__(self) -> ParquetRows:
        head = next(iter(self))
        self.names: list[str] = head["names"]
        self.rows: int = head["rows"]
        self.left_out = [name for name in self.names if name not in head["columns"]]
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.lines.close()
        self.process.wait()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self.lines:
            found = json.loads(line)
            if "error" in found:
                self.close()
                raise StudioError(f"{self.path.name} {found['error']}")
            yield found
        if self.process.wait():
            raise StudioError(f"{self.path.name} is not a valid parquet file: its reader crashed. Export it again.")
