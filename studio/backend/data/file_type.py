"""Detect the type of a file of rows, by its content first and its extension second.

    file_type = identify(Path("data.csv"), 200_000_000)    # FileType("csv", encoding="utf-8", separator=",")
    with file_type.open(Path("data.csv")) as file: ...

A wrong extension is fine if the content is of another known type. Archives, documents and other files without rows are
rejected with a message that names their type.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from studio.backend.data import encodings
from studio.backend.data.table_dialect import SEPARATORS, Dialect, sniff
from studio.errors import StudioError

BLOCK = 1 << 16
ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
SIGNATURES = {
    b"PK\x03\x04": "a zip archive (Excel and Word files are too). Unpack it, or save the sheet as csv",
    b"PK\x05\x06": "an empty zip archive. Save the rows as csv",
    b"\x1f\x8b": "a gzip archive. Unpack it",
    b"BZh": "a bzip2 archive. Unpack it",
    b"\xfd7zXZ": "an xz archive. Unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive. Unpack it",
    b"7z\xbc\xaf": "a 7z archive. Unpack it",
    b"%PDF": "a PDF. Copy its text into a .txt file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file. Save the sheet as csv",
    b"SQLite format 3\0": "a database. Export its table as csv",
}


@dataclass(frozen=True)
class FileType:
    kind: str
    """csv, tsv, json, jsonl, parquet or text."""
    encoding: str = "utf-8"
    separator: str = ","
    quoted: bool = True
    """Whether quotes around the cells of a table are not part of them."""
    notices: tuple[str, ...] = ()
    """Assumptions about the file, one sentence each."""

    def open(self, path: Path) -> TextIO:
        # Without a translation of line ends, which may be part of a cell.
        return encodings.open_text(path, self.encoding, newline="" if self.kind in SEPARATORS else None)


def identify(path: Path, most_bytes: int, encoding: str = "auto") -> FileType:
    """Detect the type of a file.

    Raises:
        StudioError: the file is missing, unreadable, empty, larger than `most_bytes`, or of a type without rows.
    """
    try:
        head = _head(path, most_bytes)
        if head.startswith(b"PAR1"):
            return FileType("parquet", notices=_ending_notice(path, "parquet"))
        encoding, notices = (encoding, ()) if encoding != "auto" else encodings.detect(path)
        with encodings.open_text(path, encoding, newline="") as file:
            text = file.read(BLOCK)
    except UnicodeDecodeError as error:
        raise StudioError(f"{path.name} is not valid UTF-16. Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise StudioError(f"{path} can't be read ({error}). Check its name and its permissions.") from error
    _require_text(path, text)
    kind, dialect = _kind(text, ENDINGS.get(path.suffix.lower(), ""))
    if kind == "parquet":
        raise StudioError(f"{path.name} is not a parquet file or any other supported type. Export it again.")
    notices = (*notices, *_ending_notice(path, kind), *_dialect_notices(dialect))
    return FileType(kind, encoding, dialect.separator, dialect.quoted, notices)


def _head(path: Path, most_bytes: int) -> bytes:
    """Return the first block of a file.

    Raises:
        StudioError: the file is missing, empty, too large, or of a type without rows.
    """
    if not path.is_file():
        raise StudioError(f"There is no file {path}. Check its name and folder.")
    size = path.stat().st_size
    if not size:
        raise StudioError(f"{path.name} is empty. Add a row for each example.")
    if size > most_bytes:
        raise StudioError(f"{path.name} has {size:,} bytes; the limit is {most_bytes:,}. Split it.")
    with path.open("rb") as file:
        head = file.read(BLOCK)
    for signature, what in SIGNATURES.items():
        if head.startswith(signature):
            raise StudioError(f"{path.name} is {what}.")
    return head


def _require_text(path: Path, head: str) -> None:
    """Raise StudioError if the text is blank or has too many control characters."""
    if not head.strip():
        raise StudioError(f"{path.name} is empty. Add a row for each example.")
    controls = len(re.findall("[\0-\x08\x0e-\x1a\x1c-\x1f]", head))
    if controls > max(8, len(head) / 20):
        raise StudioError(f"{path.name} is not a text file. Save its rows as csv or jsonl in UTF-8.")


def _kind(head: str, declared: str) -> tuple[str, Dialect]:
    """Return (kind, dialect) by the beginning of the text, with the type of the extension as the fallback."""
    json_kind = _json_kind(head, declared)
    if json_kind:
        return json_kind, Dialect("")
    dialect = sniff(head, declared, whole=len(head) < BLOCK)
    if dialect:
        return ("tsv" if dialect.separator == "\t" else "csv"), dialect
    return declared or "text", Dialect(SEPARATORS.get(declared, ",")[0])


def _json_kind(head: str, declared: str) -> str:
    if not re.match(r"\s*(\{\s*[\"}]|\[\s*(\{\s*[\"}]|\[\s*[\[{\"]))", head):
        return ""
    # Not splitlines(), which also splits at characters that JSON allows inside of texts.
    lines = [line for line in map(str.strip, head.split("\n")) if line]
    if len(lines) == 1:
        return declared if declared in ("json", "jsonl") else "json" if lines[0][0] == "[" else "jsonl"
    if lines[0][0] == "[":
        return "jsonl" if _is_json(lines[0]) else "json"
    whole = sum(line.startswith("{") and line.endswith("}") for line in lines)
    return "jsonl" if whole > len(lines) / 2 or (whole == len(lines) / 2 and declared != "json") else "json"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _ending_notice(path: Path, kind: str) -> tuple[str, ...]:
    if ENDINGS.get(path.suffix.lower()) == kind:
        return ()
    return (f"{path.name} was read as {kind}, based on its content.",)


def _dialect_notices(dialect: Dialect) -> tuple[str, ...]:
    separated = (f"Columns are separated by {dialect.separator!r}.",) if dialect.separator in (";", "|") else ()
    return separated if dialect.quoted else (*separated, "Quotes are part of the text: they don't enclose cells.")
