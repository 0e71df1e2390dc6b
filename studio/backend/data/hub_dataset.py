"""Public data sets of the Hugging Face Hub, written to a file of rows once and read like any other file.

    path = fetch("hub:fancyzhx/ag_news:train[:1000]")       # <home>/datasets/fancyzhx--ag_news/<commit>/...jsonl

A reference is hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]. SPLIT is train unless named, and may be a slice of rows or of
percents: train[:1000], test[10%:20%]. Slices of rows are streamed, so that only what is used is downloaded.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from studio.backend.data.rows import Limits
from studio.backend.hosting import demo
from studio.backend.system.home import home
from studio.errors import StudioError

PREFIX = "hub:"
PATTERN = re.compile(
    r"hub:(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<split>\w+)(?P<slice>\[\d*%?:\d*%?\])?)?"
)
# Readers of data alone. Other builders of the library unpack archives of any kind of file.
READERS = {"arrow", "csv", "json", "parquet", "text"}
TIMEOUT_S = 20
KEPT_BYTES = 2_000_000_000


class Reference(NamedTuple):
    repo: str
    config: str | None
    revision: str | None
    split: str
    slice: str
    """Such as "[:1000]" or "[10%:20%]"; empty for all rows."""

    @property
    def file_name(self) -> str:
        text = "-".join([self.repo.partition("/")[2], *([self.config] if self.config else []), self.split])
        return re.sub(r"[^\w.-]", "_", text + self.slice.strip("[]").replace(":", "_to_")) + ".jsonl"


def is_reference(data: object) -> bool:
    return str(data).startswith(PREFIX)


def parse(text: str) -> Reference:
    """Raises StudioError: it does not have the form of a reference."""
    found = PATTERN.fullmatch(text.strip())
    if found is None:
        raise StudioError(
            f"{text[:200]!r} names no data set of the Hub. Write hub:OWNER/NAME, with /CONFIG, @REVISION and :SPLIT as "
            "needed, for example hub:fancyzhx/ag_news:train[:1000]."
        )
    parts = found.groupdict()
    return Reference(parts["repo"], parts["config"], parts["revision"], parts["split"] or "train", parts["slice"] or "")


def fetch(text: str) -> Path:
    """Return the file of the rows; write it first if this commit of the data set is not here.

    Without a network the newest commit that is here is used.

    Raises:
        StudioError: there is no such public data set, revision, configuration or split, it holds no rows of text, it is
            too large, or neither the Hub nor an earlier copy can be reached.
    """
    reference = parse(text)
    if demo.limits() and "%" in reference.slice:
        raise StudioError("A slice in percent downloads the whole data set. Take rows instead, such as train[:1000].")
    folder = home() / "datasets" / reference.repo.replace("/", "--")
    try:
        commit = _commit(reference.repo, reference.revision, int(time.monotonic() // 60))
    except ConnectionError as error:
        earlier = sorted(folder.glob(f"*/{reference.file_name}"), key=lambda file: file.stat().st_mtime)
        if not earlier:
            raise StudioError(
                f"The Hugging Face Hub can't be reached for {reference.repo} ({str(error)[:200]}). Check the network, "
                "or give a file."
            ) from error
        return earlier[-1]
    file = folder / commit / reference.file_name
    if not file.is_file():
        _make_room(folder.parent)
        _write(_rows(reference, commit), file, reference)
    return file


def _make_room(folder: Path) -> None:
    """Delete the oldest files until a new one fits; they can be fetched again."""
    files = sorted(folder.glob("*/*/*.jsonl"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= KEPT_BYTES:
            return
        total -= file.stat().st_size
        file.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def _commit(repo: str, revision: str | None, minute: int) -> str:
    """The commit of a revision, asked for once a minute: a page reads its data at every change of a form.

    Raises:
        ConnectionError: the Hub can't be reached.
        StudioError: it has no such public data set or revision.
    """
    import httpx2  # the client of huggingface_hub, whose connection errors pass through it
    from huggingface_hub import HfApi, errors

    try:
        # Without a token: what the person who runs a server may read is not for everybody who uses it.
        found = HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_S, token=False)
    except errors.RevisionNotFoundError as error:
        raise StudioError(f"The data set {repo} has no revision {revision!r}. Check the name.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise StudioError(
            f"The Hub has no public data set {repo}. Check the name; download a private or gated one with "
            f"`hf download {repo} --repo-type dataset` and give its file."
        ) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        raise ConnectionError(str(error)) from error
    if found.gated:
        raise StudioError(
            f"The data set {repo} is gated. Accept its terms, download it with `hf download {repo} --repo-type "
            "dataset` and give its file."
        )
    return str(found.sha)


def _rows(reference: Reference, commit: str) -> Iterator[dict[str, Any]]:
    """Raises StudioError: no such configuration or split, or no rows of text."""
    import datasets

    where: dict[str, Any] = {"revision": commit, "token": False}
    try:
        builder = datasets.load_dataset_builder(reference.repo, reference.config, **where)
        reader = type(builder).__module__.rpartition(".")[2]
        if reader not in READERS:
            raise StudioError(f"{reference.repo} holds no tables of text (its reader is {reader}). Choose another.")
        bounds = reference.slice.strip("[]").split(":") if reference.slice else []
        if any(bound.endswith("%") for bound in bounds):
            split = reference.split + reference.slice
            rows = datasets.load_dataset(reference.repo, reference.config, split=split, **where)
            yield from map(_readable(rows.features), rows)
            return
        rows = datasets.load_dataset(reference.repo, reference.config, split=reference.split, streaming=True, **where)
        start, stop = (int(bound) if bound else None for bound in bounds or ("", ""))
        if start:
            rows = rows.skip(start)
        if stop is not None:
            rows = rows.take(max(stop - (start or 0), 0))
        yield from map(_readable(rows.features), rows)
    except StudioError:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StudioError(f"The data set {reference.repo} can't be read: {reason}") from error


def _readable(features: Any) -> Any:
    """Return a function that names the classes of a row and leaves out what is no text, number or list of them."""
    names = {name: each.names for name, each in (features or {}).items() if hasattr(each, "int2str")}
    binary = {name for name, each in (features or {}).items() if hasattr(each, "decode_example")} - names.keys()

    def readable(row: dict[str, Any]) -> dict[str, Any]:
        cells = {name: cell for name, cell in row.items() if name not in binary and not isinstance(cell, bytes)}
        for name, classes in names.items():
            index = cells.get(name)
            cells[name] = classes[index] if isinstance(index, int) and 0 <= index < len(classes) else None
        return cells

    return readable


def _write(rows: Iterable[dict[str, Any]], file: Path, reference: Reference) -> None:
    """Write one row more than is read at most, so that reading says what it leaves out."""
    limits, shared = Limits(), demo.limits()
    most = shared.file_bytes if shared else limits.file_bytes
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    size = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as target:
            for row in islice(rows, limits.rows + 1):
                size += target.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                if size > most:
                    raise StudioError(
                        f"{reference.repo} has more than {most / 2**20:,.0f} MiB of rows. Take a slice, for example "
                        f"hub:{reference.repo}:{reference.split}[:1000]."
                    )
        if not size:
            raise StudioError(f"{reference.repo} has no rows in {reference.split}{reference.slice}. Choose others.")
        part.rename(file)
    except OSError as error:
        raise StudioError(f"{file} can't be written ({error.strerror}). Free some disk space.") from error
    finally:
        part.unlink(missing_ok=True)
