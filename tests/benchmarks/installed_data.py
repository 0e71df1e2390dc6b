"""Open data sets for classification that a Debian machine has installed: nothing is downloaded.

    rows = SETS["sections"].read()         # the same rows in the same order every time
    rows[0].text, rows[0].label            # "A package's description", "games"

The one-line descriptions, sections, tags and sizes of packages are those of `apt-cache dumpavail` (one package of each
source, because packages of one source have similar descriptions). Paragraphs in eight languages are from the manual
pages in /usr/share/man. Docstrings are those of the Python libraries in this environment.
"""

from __future__ import annotations

import ast
import gzip
import importlib.util
import math
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

SEED = 0
EIGHT = ("admin", "games", "graphics", "mail", "net", "science", "sound", "text")
TWENTY = (*EIGHT, "database", "doc", "editors", "electronics", "fonts", "interpreters", "kernel", "math", "utils",
          "video", "web", "x11")  # fmt: skip
ROLES = {"role::shared-lib": "library", "role::program": "program"}
INTERFACES = ("commandline", "daemon", "graphical", "text-mode", "web")
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pl": "Polish",
             "pt_BR": "Portuguese", "sv": "Swedish"}  # fmt: skip
LIBRARIES = ("numpy", "scipy", "sklearn", "torch", "transformers", "gradio")
SHORTEST_DOCSTRING, LONGEST_DOCSTRING = 600, 4000
FILES = 300
"""Files read of each library."""
MAN_PAGES = Path("/usr/share/man")


class Row(NamedTuple):
    text: str
    label: str
    """Several labels are joined by ";"."""


@dataclass(frozen=True)
class InstalledSet:
    title: str
    kind: str
    """What a label is, as the name of the column."""
    rows: Callable[[], Iterator[Row]]
    most: int
    """Rows per label; 0 for a set without classes, of which `size` rows are drawn."""
    problem: str = "single_label"
    size: int = 2000

    def read(self) -> list[Row]:
        """Return the rows in random order, with each text once."""
        rows = sorted({row.text: row for row in self.rows()}.values())
        random.Random(SEED).shuffle(rows)
        if not self.most:
            return rows[: self.size]
        seen: Counter[str] = Counter()
        kept = []
        for row in rows:
            seen[row.label] += 1
            if seen[row.label] <= self.most:
                kept.append(row)
        return kept


@cache
def packages() -> list[dict[str, str]]:
    """Return the fields of one package of each source."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, str]] = {}
    for block in listed.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*(?:\n .*)*)", block, re.MULTILINE))
        if {"Package", "Description", "Section"} <= fields.keys():
            found.setdefault(fields.get("Source", fields["Package"]).split(" ")[0], fields)
    return [*found.values()]


def tags(package: dict[str, str]) -> list[str]:
    return [tag.strip() for tag in package.get("Tag", "").split(",")]


def sections(names: tuple[str, ...]) -> Callable[[], Iterator[Row]]:
    return lambda: (Row(each["Description"], each["Section"]) for each in packages() if each["Section"] in names)


def roles() -> Iterator[Row]:
    for package in packages():
        found = {ROLES[tag] for tag in tags(package) if tag in ROLES}
        if len(found) == 1:
            yield Row(package["Description"], *found)


def interfaces() -> Iterator[Row]:
    for package in packages():
        found = [name for name in INTERFACES if f"interface::{name}" in tags(package)]
        if found:
            yield Row(package["Description"], ";".join(found))


def sizes() -> Iterator[Row]:
    for package in packages():
        yield Row(package["Description"], f"{math.log10(max(int(package.get('Installed-Size', 1)), 1)):.3f}")


def paragraphs() -> Iterator[Row]:
    for code, name in LANGUAGES.items():
        for file in sorted((MAN_PAGES / code).rglob("*.gz")):
            page = gzip.decompress(file.read_bytes()).decode(errors="replace")
            for part in re.split(r"^[.'].*$", page, flags=re.MULTILINE):
                text = " ".join(re.sub(r"\\f.|\\[&-]|\\\(..", "", part).split())
                if 40 <= len(text) <= 200 and "\\" not in text:
                    yield Row(text, name)


def docstrings() -> Iterator[Row]:
    """The names of the libraries are removed from the texts."""
    named = re.compile("|".join(LIBRARIES) + "|scikit-learn|pytorch", re.IGNORECASE)
    for library in LIBRARIES:
        spec = importlib.util.find_spec(library)
        assert spec is not None and spec.origin is not None
        files = sorted(Path(spec.origin).parent.rglob("*.py"))
        for file in random.Random(SEED).sample(files, min(FILES, len(files))):
            for text in _docstrings(file):
                if SHORTEST_DOCSTRING <= len(text) <= LONGEST_DOCSTRING:
                    yield Row(named.sub("", text), library)


def _docstrings(file: Path) -> Iterator[str]:
    tree = ast.Module([], [])
    with suppress(SyntaxError):  # a file for a later version of Python
        tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield text


SETS = {
    "roles": InstalledSet("program or library", "kind of package", roles, 1000),
    "sections": InstalledSet("8 sections of packages", "section", sections(EIGHT), 240),
    "sections20": InstalledSet("20 sections of packages", "section", sections(TWENTY), 100),
    "languages": InstalledSet("8 languages", "language", paragraphs, 250),
    "docstrings": InstalledSet("docstrings of 6 libraries", "library", docstrings, 100),
    "interfaces": InstalledSet("interfaces of programs", "interface", interfaces, 0, "multi_label"),
    "sizes": InstalledSet("log10 of the installed size", "size", sizes, 0, "regression"),
}
