"""Detect the encoding of a text file: byte order mark, UTF-8, or the most likely older code page.

    encoding, notices = detect(Path("rows.csv"))        # ("cp1251", ("rows.csv is not UTF-8 ...",))

`NAMES` are the encodings that a person can choose instead.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TextIO

from charset_normalizer import from_bytes

BLOCK = 1 << 16
SCANNED = 8 << 20
"""Bytes in which invalid UTF-8 is looked for. Later ones make bad cells."""
SAMPLE = 1 << 16
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
UNREADABLE = "[\ud800-\udfff]"
"""Lone surrogates. Undecodable bytes are read as these, so that they can be reported for their cell."""
NAMES = {
    "utf-8": "UTF-8", "utf-16": "UTF-16", "cp1252": "Windows-1252 (Western)",
    "cp1250": "Windows-1250 (Central European)",
    "cp1251": "Windows-1251 (Cyrillic)", "koi8_r": "KOI8-R (Cyrillic)", "cp1253": "Windows-1253 (Greek)",
    "cp1254": "Windows-1254 (Turkish)", "cp1255": "Windows-1255 (Hebrew)", "cp1256": "Windows-1256 (Arabic)",
    "gb18030": "GB18030 and GBK (Chinese)", "big5": "Big5 (Chinese)", "cp932": "Shift-JIS (Japanese)",
    "euc_jp": "EUC-JP (Japanese)", "euc_kr": "EUC-KR (Korean)",
}  # fmt: skip
OLDER = [name for name in NAMES if not name.startswith("utf")]
NOT_WESTERN = re.compile(r"\w[ðýþÝÞÐ¹²³¼½¾¿×÷¸¤¡¢£¥]\w|\b[¿¡]\w+[¿¡]")
"""Symbols inside words, as other code pages look in Windows-1252."""


def open_text(path: Path, encoding: str, newline: str | None = None) -> TextIO:
    errors = "surrogatepass" if encoding == "utf-16" else "surrogateescape"
    return path.open(encoding=encoding, errors=errors, newline=newline)


def detect(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return (encoding, notices). Raise UnicodeDecodeError or OSError if the file can't be read."""
    with path.open("rb") as file:
        head = file.read(4)
    for bom, encoding in BOMS.items():
        if head.startswith(bom):
            return encoding, ()
    lines = _suspicious(path)
    if lines is None:
        return "utf-8", ()
    encoding = _code_page(lines)
    notice = f"{path.name} is not UTF-8 and was read as {NAMES[encoding]}. Choose another encoding if it is wrong."
    return encoding, (notice,)


def _suspicious(path: Path) -> bytes | None:
    """Return the first lines that are not ASCII, or None if most non-ASCII characters are valid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    invalid = valid = scanned = 0
    sample = b""
    with path.open("rb") as file:
        while (block := file.read(BLOCK)) and scanned < SCANNED:
            scanned += len(block)
            text = decoder.decode(block)
            if text.isascii():
                continue
            bad = len(re.findall(UNREADABLE, text))
            invalid += bad
            valid += len(re.findall(r"[^\0-\x7f]", text)) - bad
            if bad and len(sample) < SAMPLE:
                sample += b"\n".join(line for line in block.split(b"\n") if not line.isascii())
    return sample[:SAMPLE] if invalid > valid else None


def _code_page(lines: bytes) -> str:
    """Return the most likely code page; Western unless the text shows another one."""
    found = [each.encoding for each in from_bytes(lines, cp_isolation=OLDER)]
    latin = {"cp1250", "cp1252", "cp1254"}
    if not found or (found[0] in latin and not NOT_WESTERN.search(lines.decode("cp1252", "replace"))):
        return "cp1252"
    return found[0]
