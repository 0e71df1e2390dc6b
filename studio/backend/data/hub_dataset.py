"""Public data sets of the Hugging Face Hub, written to a file of rows once and read like any other file.

    path = fetch("hub:fancyzhx/ag_news:train[:1000]")       # <home>/datasets/fancyzhx--ag_news/<commit>/...jsonl

A reference is hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]. SPLIT is train unless named, and may be a slice of rows or of
percents: train[:1000], test[10%:20%]. Slices of rows are streamed, so that only what is used is downloaded.
"""

from __future__ import annotations

import json
import logging
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
from studio.backend.recipe import HUB_PREFIX
from studio.backend.system.files import atomic_write, sync, unwritable
from studio.backend.system.home import home
from studio.errors import StudioError

logger = logging.getLogger(__name__)
PATTERN = re.compile(
    rf"{HUB_PREFIX}(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<split>\w+)(?P<slice>\[\d*%?:\d*%?\])?)?"
)
# Readers of data alone. Other builders of the library unpack archives of any kind of file.
READERS = {"arrow", "csv", "json", "parquet", "text"}
COMMIT = re.compile("[0-9a-f]{40}")
TIMEOUT_S = 20
KEPT_BYTES = 2_000_000_000
"""Size above which the oldest files are deleted before another one is written."""


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
    return str(data).startswith(HUB_PREFIX)


def parse(text: str) -> Reference:
    """Return the parts of a reference; raise StudioError if it has another form."""
    found = PATTERN.fullmatch(text.strip())
    if found is None:
        raise StudioError(
            f"{text[:200]!r} names no data set of the Hub. Write hub:OWNER/NAME, with /CONFIG, @REVISION and :SPLIT as "
            "needed, for example hub:fancyzhx/ag_news:train[:1000]."
        )
    parts = found.groupdict()
    return Reference(parts["repo"], parts["config"], parts["revision"], parts["split"] or "train", parts["slice"] or "")


def fetch(text: str) -> Path:
    """Return the file of the rows, written first if there is none for this commit of the data set.

    If the Hub can't be reached, the last known commit of the same revision is used, and the log says so.

    Raises:
        StudioError: there is no such public data set, revision, configuration or split, it holds no rows of text, it is
            too large, or neither the Hub nor an earlier copy can be reached.
    """
    reference = parse(text)
    if demo.limits() and "%" in reference.slice:
        raise StudioError("A slice in percent downloads the whole data set. Take rows instead, such as train[:1000].")
    folder = home() / "datasets" / reference.repo.replace("/", "--")
    file = folder / _commit_of(reference, folder) / reference.file_name
    if not file.is_file():
        _make_room(folder.parent)
        _write(_rows(reference, file.parent.name), file, reference)
    return file


def _commit_of(reference: Reference, folder: Path) -> str:
    """Return the commit that the revision names now, or named when the Hub was last reached."""
    revision = reference.revision or "main"
    if COMMIT.fullmatch(revision) and (folder / revision).is_dir():
        return revision
    known = folder / "refs" / f"{re.sub(r'[^a-zA-Z0-9._-]', '_', revision)}.txt"
    commit, problem = _ask_hub(reference.repo, reference.revision, int(time.monotonic() // 60))
    if commit:
        if _known(known) != commit:
            _store(known, commit)
        return commit
    if not (commit := _known(known)):
        raise StudioError(
            f"The Hugging Face Hub can't be reached for {reference.repo} ({problem[:200]}). Check the network, or give "
            "a file."
        )
    logger.warning("The Hub can't be reached (%s): %s is read at commit %s.", problem, reference.repo, commit)
    return commit


def _known(file: Path) -> str:
    """Return the commit in a file, or "" if it is missing or damaged."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return text if COMMIT.fullmatch(text) else ""


def _store(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, text)
    except OSError as error:
        raise unwritable(file, error) from error


def _make_room(folder: Path) -> None:
    """Delete the oldest files while all together are too large; they can be downloaded again."""
    files = sorted(folder.glob("*/*/*.jsonl"), key=lambda file: file.stat().st_mtime)
    total = sum(file.stat().st_size for file in files)
    for file in files:
        if total <= KEPT_BYTES:
            return
        total -= file.stat().st_size
        file.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def _ask_hub(repo: str, revision: str | None, minute: int) -> tuple[str, str]:
    """Return the commit of a revision, or an empty one and the reason why the Hub can't be reached.

    Both are cached for a minute, because a page reads its data several times at each change of a form.

    Raises:
        StudioError: the Hub has no such public data set or revision.
    """
    import httpx2  # the client of huggingface_hub, whose connection errors pass through it
    from huggingface_hub import HfApi, errors

    try:
        # Without a token, because the users of a server must not read the private data of the person who runs it.
        found = HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT_S, token=False)
    except errors.RevisionNotFoundError as error:
        raise StudioError(f"The data set {repo} has no revision {revision!r}. Check the name.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise StudioError(
            f"The Hub has no public data set {repo}. Check the name; download a private or gated one with "
            f"`hf download {repo} --repo-type dataset` and give its file."
        ) from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, httpx2.HTTPError, OSError) as error:
        return "", str(error)
    if found.gated:
        raise StudioError(
            f"The data set {repo} is gated. Accept its terms, download it with `hf download {repo} --repo-type "
            "dataset` and give its file."
        )
    return str(found.sha), ""


def _rows(reference: Reference, commit: str) -> Iterator[dict[str, Any]]:
    """Yield the rows; raise StudioError if the configuration or split does not exist, or holds no rows of text."""
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
    """Return a function that replaces class ids by names, and drops columns of images, audio and bytes."""
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
    """Write one row more than is read at most, so that the reader reports the limit."""
    limits, shared = Limits(), demo.limits()
    most = shared.file_bytes if shared else limits.file_bytes
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    size = 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as target:
            for row in islice(rows, limits.rows + 1):
                size += target.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
                if size > most:
                    raise StudioError(
                        f"{reference.repo} has more than {most / 2**20:,.0f} MiB of rows. Take a slice, for example "
                        f"hub:{reference.repo}:{reference.split}[:1000]."
                    )
        if not size:
            raise StudioError(f"{reference.repo} has no rows in {reference.split}{reference.slice}. Choose others.")
        sync(part)
        part.rename(file)
    except OSError as error:
        raise unwritable(file, error) from error
    finally:
        part.unlink(missing_ok=True)
