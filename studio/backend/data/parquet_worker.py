"""Convert a parquet file to JSON lines: the column names, then one line per row. Run by `parquet_rows`:

    python -P studio/backend/data/parquet_worker.py FILE MOST_BYTES

It runs in a separate process because pyarrow may crash on a damaged file, and a small file can unpack to a lot of
memory.
"""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 64
MEMORY_BYTES = 4 << 30
DEPTH = 32


def main(path: str, most_bytes: int) -> None:
    limit_memory()
    try:
        write_rows(pq.ParquetFile(path), most_bytes)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        print(json.dumps({"error": f"is not a valid parquet file ({error}). Export it again."}))


def limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def write_rows(file: pq.ParquetFile, most_bytes: int) -> None:
    schema = file.schema_arrow
    columns = [field.name for field in schema if is_readable(field.type)]
    classes = class_names(schema.metadata or {})
    print(json.dumps({"names": schema.names, "columns": columns, "rows": file.metadata.num_rows}))
    for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
        for i in range(len(batch)):
            line = json.dumps(row(batch, i, classes))
            most_bytes -= len(line)
            if most_bytes < 0:
                print(json.dumps({"error": "unpacks to more than the size limit. Split it."}))
                return
            print(line)


def is_readable(kind: pa.DataType, depth: int = DEPTH) -> bool:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return depth > 0 and is_readable(kind.value_type, depth - 1)
    if types.is_struct(kind):
        return depth > 0 and all(is_readable(field.type, depth - 1) for field in kind)
    plain = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return any(test(kind) for test in plain)


def class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of the classes of each column that `datasets` stored as class ids, or as lists of them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: each if "names" in each else each.get("feature", {}) for name, each in features.items()}
        return {name: each["names"] for name, each in found.items() if isinstance(each.get("names"), list)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # metadata of another program


def named(cell: object, names: list[str]) -> object:
    """Return the name of a class id, or the names of a list of them; other cells stay as they are.

    The id -1 of `datasets` is no label.
    """
    if isinstance(cell, list):
        return [named(each, names) for each in cell]
    if cell == -1:
        return None
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def row(batch: pa.RecordBatch, i: int, classes: dict[str, list[str]]) -> dict:
    try:
        cells = {name: batch.column(name)[i].as_py() for name in batch.schema.names}
    except ValueError as error:
        return {"reason": f"can't be read ({error})"}
    return {"cells": cells | {name: named(cells[name], names) for name, names in classes.items() if name in cells}}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
