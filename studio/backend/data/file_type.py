"""Detect the type of a file of rows, by its content first and its extension second.

    file_type = identify(Path("data.csv"), 200_000_000)    # FileType("csv", encoding="utf-8", separator=",")
    with file_type.open(Path("data.csv")) as file: ...

A wrong extension is fine if the content is of another known type. Archives, documents and other files without rows are
rejected with a message that names their type.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

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
SEPARATORS = {"csv": ",;|\t", "tsv": "\t,;|"}
"""Separators per file type, in the order in which they are tried."""
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
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
UNREADABLE = "[\ud800-\udfff]"
"""Lone surrogates. Undecodable bytes are read as these, so that they can be reported for their cell."""


@dataclass(frozen=True)
class FileType:
    kind: str
    """csv, tsv, json, jsonl, parquet or text."""
    encoding: str = "utf-8"
    separator: str = ","
    notices: tuple[str, ...] = ()
    """Assumptions about the file, one sentence each."""

    def open(self, path: Path) -> TextIO:
        return _open(path, self.encoding)


def identify(path: Path, most_bytes: int) -> FileType:
    """Detect the type of a file.

    Raises:
        StudioError: the file is missing, unreadable, empty, larger than `most_bytes`, or of a type without rows.
    """
    try:
        head = _head(path, most_bytes)
        if head.startswith(b"PAR1"):
            return FileType("parquet", notices=_ending_notice(path, "parquet"))
        encoding, notices = _encoding(path, head)
        with _open(path, encoding) as file:
            text = file.read(BLOCK)
    except UnicodeDecodeError as error:
        raise StudioError(f"{path.name} is not valid UTF-16. Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        raise StudioError(f"{path} can't be read ({error}). Check its name and its permissions.") from error
    _require_text(path, text)
    kind, separator = _kind(text, ENDINGS.get(path.suffix.lower(), ""))
    if kind == "parquet":
        raise StudioError(f"{path.name} is not a parquet file or any other supported type. Export it again.")
    return FileType(kind, encoding, separator, (*notices, *_ending_notice(path, kind), *_separator_notice(separator)))


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


def _encoding(path: Path, head: bytes) -> tuple[str, tuple[str, ...]]:
    """Return (encoding, notices): by byte order mark, else UTF-8, or cp1252 if no non-ASCII byte is valid UTF-8."""
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding, ()
    known = unknown = False
    with _open(path, "utf-8") as file:
        while block := file.read(BLOCK):
            if not block.isascii():
                unknown = unknown or bool(re.search(UNREADABLE, block))
                known = known or bool(re.search("[^\0-\x7f\ud800-\udfff]", block))
    if unknown and not known:
        return "cp1252", (f"{path.name} is not UTF-8 and was read as Windows-1252: check accents and quotes.",)
    return "utf-8", ()


def _open(path: Path, encoding: str) -> TextIO:
    errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
    return path.open(encoding=encoding, errors=errors)


def _require_text(path: Path, head: str) -> None:
    """Raise StudioError if the text is blank or has too many control characters."""
    if not head.strip():
        raise StudioError(f"{path.name} is empty. Add a row for each example.")
    controls = len(re.findall("[\0-\x08\x0e-\x1a\x1c-\x1f]", head))
    if controls > max(8, len(head) / 20):
        raise StudioError(f"{path.name} is not a text file. Save its rows as csv or jsonl in UTF-8.")


def _kind(head: str, declared: str) -> tuple[str, str]:
    """Return (kind, separator) by the beginning of the text, with the type of the extension as the fallback."""
    json_kind = _json_kind(head, declared)
    if json_kind:
        return json_kind, ""
    separator = _separator(head, declared)
    if separator:
        return ("tsv" if separator == "\t" else "csv"), separator
    return declared or "text", SEPARATORS.get(declared, ",")[0]


def _json_kind(head: str, declared: str) -> str:
    if re.match(r"\s*\[\s*\{\s*[\"}]", head):
        return "json"
    if not re.match(r"\s*\{\s*[\"}]", head):
        return ""
    lines = [line for line in map(str.strip, head.splitlines()) if line]
    if len(lines) == 1 and declared in ("json", "jsonl"):
        return declared
    whole = sum(line.startswith("{") and line.endswith("}") for line in lines)
    return "jsonl" if whole > len(lines) / 2 or (whole == len(lines) / 2 and declared != "json") else "json"


def _separator(head: str, declared: str) -> str:
    """Return the first separator in the header, or "".

    Without a csv or tsv extension, the header must consist of plain names, because prose has commas too.
    """
    first, *rest = head.lstrip().splitlines()
    for separator in SEPARATORS.get(declared, SEPARATORS["csv"]):
        names = first.split(separator)
        is_table = bool(rest) and separator in rest[0] and all(re.fullmatch(r'"?[^\W\d]\w*"?', name) for name in names)
        if len(names) > 1 and (declared in SEPARATORS or is_table):
            return separator
    return ""


def _ending_notice(path: Path, kind: str) -> tuple[str, ...]:
    if ENDINGS.get(path.suffix.lower()) == kind:
        return ()
    return (f"{path.name} was read as {kind}, based on its content.",)


def _separator_notice(separator: str) -> tuple[str, ...]:
    return (f"Columns are separated by {separator!r}.",) if separator in (";", "|") else ()
