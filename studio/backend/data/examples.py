"""Examples in an Arrow table, in memory or mapped from a file, so that large data sets take no memory.

examples = Examples.of([Example(2, messages)])       # in memory
write_examples(examples, path)
Examples.open(path)[0].messages                      # mapped from the file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from studio.backend.data.formats import Messages

BATCH = 1000
"""Examples of a record batch."""
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("messages", pa.large_string()),
        ("labels", pa.list_(pa.string())),
        ("content", pa.uint64()),
        ("prompt", pa.uint64()),
    ]
)
"""`messages` is JSON; `content` and `prompt` are hashes of the messages, and of those before the last answer."""


@dataclass(frozen=True)
class Example:
    line: int
    messages: Messages
    labels: tuple[str, ...] = ()
    """As written in the file; only for labelled texts."""


class Examples(Sequence[Example]):
    """Immutable examples. A slice has no step."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """Return examples in memory."""
        return cls(pa.Table.from_batches(_batches(examples), SCHEMA))

    @classmethod
    def open(cls, path: Path) -> Examples:
        """Return the examples of a file, which is mapped into memory."""
        return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def __len__(self) -> int:
        return self.table.num_rows

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            return Examples(self.table.slice(rows.start, len(rows)))
        row = range(len(self))[index]
        columns = ("line", "messages", "labels")
        line, messages, labels = (self.table.column(name)[row].as_py() for name in columns)
        return Example(line, json.loads(messages), tuple(labels))

    def __iter__(self) -> Iterator[Example]:
        for batch in self.table.select(["line", "messages", "labels"]).to_batches(max_chunksize=BATCH):
            for line, messages, labels in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Example(line, json.loads(messages), tuple(labels))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def where(self, is_kept: Sequence[bool]) -> Examples:
        """Return the examples that are kept, by a value for each of them."""
        return Examples(self.table.filter(pa.array(is_kept, pa.bool_())))

    @property
    def contents(self) -> np.ndarray:
        """Hashes of the messages, ignoring case and whitespace, uint64 `[examples]`."""
        return self.table.column("content").to_numpy()

    @property
    def prompts(self) -> np.ndarray:
        """Hashes of the messages before the last answer, uint64 `[examples]`."""
        return self.table.column("prompt").to_numpy()


def write_examples(examples: Iterable[Example], path: Path) -> None:
    """Write examples to a file for `Examples.open`, in batches."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in _batches(examples):
            writer.write_batch(batch)


def group_numbers(keys: np.ndarray) -> np.ndarray:
    """Return the number of each key, where equal keys have the same number, counted by their first occurrence."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    numbers = np.empty(len(first), np.int64)
    numbers[np.argsort(first)] = np.arange(len(first))
    return numbers[inverse]


def digest(messages: Messages) -> int:
    """Return a hash of the messages that ignores case and whitespace."""
    said = [(message["role"], " ".join(message["content"].split()).casefold()) for message in messages]
    return int.from_bytes(hashlib.blake2b(json.dumps(said).encode(), digest_size=8).digest(), "little")


def _prompt(messages: Messages) -> Messages:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _batches(examples: Iterable[Example]) -> Iterator[pa.RecordBatch]:
    rest = iter(examples)
    while rows := [_columns(each) for each in islice(rest, BATCH)]:
        arrays = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _columns(each: Example) -> tuple[Any, ...]:
    messages = json.dumps(each.messages, ensure_ascii=False)
    return each.line, messages, each.labels, digest(each.messages), digest(_prompt(each.messages))
