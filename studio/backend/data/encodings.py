"""Detect the encoding of a text file: byte order mark, UTF-8, or the most likely older code page.

    encoding, notices = detect(Path("rows.csv"))        # ("cp1251", ("rows.csv is not UTF-8 ...",))

`NAMES` are the encodings that a person can choose instead.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TextIO

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
    "iso8859_2": "ISO 8859-2 (Central European)", "mac_roman": "Mac Roman (Western)",
    "cp1251": "Windows-1251 (Cyrillic)", "koi8_r": "KOI8-R (Cyrillic)", "cp866": "DOS 866 (Cyrillic)",
    "mac_cyrillic": "Mac Cyrillic", "cp1253": "Windows-1253 (Greek)", "cp1254": "Windows-1254 (Turkish)",
    "cp1255": "Windows-1255 (Hebrew)", "cp1256": "Windows-1256 (Arabic)", "cp1257": "Windows-1257 (Baltic)",
    "cp1258": "Windows-1258 (Vietnamese)", "cp874": "Windows-874 (Thai)",
    "gb18030": "GB18030 and GBK (Chinese)", "big5": "Big5 (Chinese)", "cp932": "Shift-JIS (Japanese)",
    "euc_jp": "EUC-JP (Japanese)", "euc_kr": "EUC-KR (Korean)",
}  # fmt: skip
OLDER = [name for name in NAMES if not name.startswith("utf")]
LATIN = {"cp1250", "cp1252", "cp1254", "cp1257", "cp1258", "iso8859_2", "mac_roman"}
ASIAN = {"gb18030", "big5", "cp932", "euc_jp", "euc_kr"}
FEWEST_ASIAN = 8
"""Bytes of an Asian text at least: a single accent before a letter looks like one of its characters, too."""
NOT_WESTERN = re.compile(r"\w[ðýþÝÞÐ¹²³¼½¾¿×÷¸¤¡¢£¥±¶§\ufffd]\w|\b[¿¡]\w+[¿¡]|[a-zß-ÿ][À-ÖØ-ÞŠŽŒŸ][a-zß-ÿ]")
"""Symbols and capital letters inside words, as other code pages look in Windows-1252."""


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
    from charset_normalizer import from_bytes  # here, because the command line lists `NAMES` at each start

    is_short = sum(byte > 127 for byte in lines) < FEWEST_ASIAN
    found = [each.encoding for each in from_bytes(lines, cp_isolation=OLDER)]
    found = [encoding for encoding in found if not (is_short and encoding in ASIAN)]
    if not found or (found[0] in LATIN and not NOT_WESTERN.search(lines.decode("cp1252", "replace"))):
        return "cp1252"
    return found[0]
