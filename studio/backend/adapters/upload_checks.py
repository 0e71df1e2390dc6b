"""Copy the two files of an uploaded adapter, loose or in a .zip, into a folder. No other file is opened or stored.

collect([Path("pirate.zip")], folder)      # folder/adapter_config.json and folder/adapter_model.safetensors
require_finite(folder)
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from jetmoe.adapters.files import CONFIG, WEIGHTS
from studio.backend.system.files import BLOCK, require_space, unwritable
from studio.errors import StudioError

MOST_RATIO = 100
MAX_BYTES = {CONFIG: 64 << 10, WEIGHTS: 4 << 30}
# Enough for the names and shapes of a few thousand tensors; the format itself allows 100 MB.
MAX_HEADER = 4 << 20
MAX_ZIP_LIST = 1 << 20
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
FLOATS = {"F64", "F32", "F16", "BF16"}
WANTED = f"An adapter is {CONFIG} and {WEIGHTS}, or a .zip with the two in one folder"


File = TypeVar("File")


class _Source(NamedTuple):
    size: int
    open: Callable[[], IO[bytes]]


def collect(files: Sequence[Path], folder: Path) -> None:
    """Write the adapter's two files, given among other files or in one .zip, to an empty folder.

    Raises:
        StudioError: the two files are missing or too large, the .zip is damaged or harmful, or the disk is full.
    """
    with _sentences(folder):
        if len(files) == 1 and files[0].suffix.lower() == ".zip":
            with _SmallReads(files[0]) as file, zipfile.ZipFile(file) as archive:
                _write(_members(archive), folder)
        else:
            found = _adapter({PurePosixPath(file.name): file for file in files})
            _write(
                {name: _Source(file.stat().st_size, partial(io.FileIO, file)) for name, file in found.items()}, folder
            )
        with (folder / WEIGHTS).open("rb") as weights:
            header = int.from_bytes(weights.read(8), "little")
    if header > MAX_HEADER:
        raise StudioError(f"{WEIGHTS} is damaged: its header can't be {header:,} bytes. Save the adapter again.")


def require_finite(folder: Path) -> None:
    """Raise StudioError if the weights are not safetensors, or hold anything but finite floating-point numbers."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                dtype = weights.get_slice(name).get_dtype()
                if dtype not in FLOATS or not torch.isfinite(weights.get_tensor(name)).all():
                    raise StudioError(
                        f"The adapter's tensor {name[:99]} ({dtype}) holds values that are not finite floating-point "
                        "numbers: its training diverged, or the file is damaged. Upload one from a good checkpoint."
                    )
    except SafetensorError as error:
        raise StudioError(f"{WEIGHTS} is damaged ({str(error)[:200]}). Save or download the adapter again.") from error


def _adapter(files: Mapping[PurePosixPath, File]) -> dict[str, File]:
    """Return the adapter's two files by name, from the only, or the topmost, folder that holds both.

    Raises:
        StudioError: no folder holds both, or several on the same level do.
    """
    folders = [path.parent for path in files if path.name == CONFIG and path.with_name(WEIGHTS) in files]
    depth = min((len(folder.parts) for folder in folders), default=0)
    top = [folder for folder in folders if len(folder.parts) == depth]
    if len(top) > 1:
        listed = ", ".join(str(folder)[:60] for folder in top[:4])
        raise StudioError(f"The .zip holds several adapters, in {listed}. Zip one of these folders.")
    if not top:
        raise _missing(sorted(path.name for path in files))
    return {name: files[top[0] / name] for name in (CONFIG, WEIGHTS)}


def _missing(names: Sequence[str]) -> StudioError:
    if pickles := [name for name in names if PurePosixPath(name).suffix.lower() in PICKLES]:
        return StudioError(
            f"{pickles[0][:80]} is a pickle, which can run code when it is opened. Save the adapter as safetensors, as "
            "PEFT's save_pretrained does, and upload that."
        )
    got = ", ".join(name[:80] for name in names[:4]) or "nothing"
    return StudioError(f"{WANTED}; this is {got}{', …' if len(names) > 4 else ''}. Upload the two files.")


def _write(sources: dict[str, _Source], folder: Path) -> None:
    for name, source in sources.items():
        if source.size > MAX_BYTES[name]:
            raise StudioError(
                f"{name} has {source.size:,} bytes, and at most {MAX_BYTES[name]:,} are allowed. Upload a smaller "
                "adapter."
            )
    require_space(folder, sum(source.size for source in sources.values()))
    for name, source in sources.items():
        with source.open() as reading, (folder / name).open("xb") as writing:
            left = source.size
            while block := reading.read(BLOCK):
                left -= len(block)
                if left < 0:
                    raise StudioError(f"{name} is larger than its stated size. Save or zip the adapter again.")
                writing.write(block)


@contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise StudioError(f"The .zip is damaged ({str(error)[:200]}). {WANTED}: zip them again.") from error
    except OSError as error:
        raise unwritable(folder, error, "Or the uploaded files can't be read: upload them again.") from error


class _SmallReads(io.FileIO):
    """A file with bounded reads, because zipfile reads the whole list of members at its stated size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_LIST:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(-1 if size is None else size)


def _members(archive: zipfile.ZipFile) -> dict[str, _Source]:
    """Return the adapter's two files by name. Notes of macOS and hidden files are ignored, as all others are."""
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))  # some programs of Windows write backslashes
        if path.is_absolute() or ".." in path.parts or set(info.orig_filename) & set(":\0"):
            raise StudioError("The .zip names files outside of itself. Zip only the adapter's two files.")
        if info.is_dir() or any(part.startswith((".", "__MACOSX")) for part in path.parts):
            continue
        if path in files:
            raise StudioError(f"The .zip holds {path.name[:80]} twice. Zip the adapter's two files again.")
        files[path] = info
    found = _adapter(files)
    for info in found.values():
        _require_plain(info)
        _require_dense(info)
    return {name: _Source(info.file_size, partial(archive.open, info)) for name, info in found.items()}


def _require_dense(info: zipfile.ZipInfo) -> None:
    if info.file_size > MOST_RATIO * info.compress_size + BLOCK:
        raise StudioError(
            f"{PurePosixPath(info.filename).name[:80]} unpacks to more than {MOST_RATIO} times its size, as no trained "
            "weights do. Upload the two files without a .zip."
        )


def _require_plain(info: zipfile.ZipInfo) -> None:
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise StudioError("The .zip holds a link or a device. Zip the adapter's two files themselves.")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise StudioError("The .zip is encrypted or uses an unusual compression. Zip the adapter's two files again.")
