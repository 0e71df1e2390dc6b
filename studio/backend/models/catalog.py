"""The catalog of models: where their weights come from, how much memory they need, and how to download or build them.

prepare("starter", progress)              # -> a folder that AutoModelForCausalLM loads after `import jetmoe`
[entry.id for entry in models()]          # the starter, the JetMoE releases, and every folder in <home>/models
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from studio.backend.models import starter
from studio.backend.system.files import require_space
from studio.backend.system.home import home
from studio.backend.system.progress import Progress
from studio.errors import StudioError

SAFE_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"]  # fmt: skip
CHAT_8B = "jetmoe/jetmoe-8b-chat"
UNSAFE_FILES = ["*.bin", "*.pt", "*.pth", "*.py", "*.pkl"]
GIB = 2**30

# Same as `jetmoe.nf4.parts.BYTES_PER_WEIGHT`, whose import would load torch, which is slow.
NF4_BYTES = 0.5 + 4 / 64


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalog. `source` is "built", a hub id or a folder; `needs_gib` is the memory for chat.

    `cpu_precision` is the default precision on a CPU: "nf4", or "bf16" if that is no slower or 4 bits cost too much
    quality.
    """

    id: str
    title: str
    family: str
    source: str
    description: str
    needs_gib: dict[str, float]
    download_gib: float = 0.0
    revision: str | None = None
    cpu_precision: str = "nf4"


STARTER = ModelEntry(
    id="starter",
    title="Starter (SmolLM2 135M as JetMoE)",
    family="jetmoe",
    source="built",
    description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights (Q4_1) dequantized and upcycled to 12 experts. The "
    "experts are copies, routed by the kind of text; they specialise only when the model is tuned.",
    needs_gib={"bf16": 1.5, "nf4": 1.0},
    download_gib=0.1,
    # In 4 bits, a model this small loses more quality than it saves memory; the README has both figures.
    cpu_precision="bf16",
)


def _jetmoe_8b(name: str, title: str, description: str, revision: str | None = None) -> ModelEntry:
    return ModelEntry(
        id=f"jetmoe/{name}",
        title=title,
        family="jetmoe",
        source=f"jetmoe/{name}",
        description=description,
        needs_gib={"bf16": 18.0, "nf4": 6.5},
        download_gib=16.0,
        revision=revision,
    )


RELEASED = [
    _jetmoe_8b("jetmoe-8b", "JetMoE 8B", "The base model: 8 experts, 2 at a time, 2.2B of 8.5B parameters active.",
               "d8fd02ccf7911aa8148a63c7984ffd2e465b0352"),
    _jetmoe_8b("jetmoe-8b-chat", "JetMoE 8B Chat", "The base model after supervised tuning and DPO; made for chat."),
    _jetmoe_8b("jetmoe-8b-sft", "JetMoE 8B SFT", "The base model after supervised tuning only."),
]  # fmt: skip


def models() -> list[ModelEntry]:
    """Return all entries, the default first."""
    folders = sorted((home() / "models").glob("*/config.json"))
    return [STARTER, *RELEASED, *(_local(file.parent) for file in folders if _is_local(file.parent))]


def entry(model_id: str) -> ModelEntry:
    """Return the entry with this id, or the entry of the folder at this path.

    Raises:
        StudioError: there is none; the message lists the models that exist.
    """
    known = {model.id: model for model in models()}
    if model_id in known:
        return known[model_id]
    if (Path(model_id) / "config.json").is_file():
        return _local(Path(model_id).resolve())
    raise StudioError(f"There is no model {model_id!r}. Pick one of {', '.join(known)}, or give a model's folder.")


def path(model_id: str) -> Path | None:
    """Return the model's folder, or None if a hub model has not been downloaded."""
    model = entry(model_id)
    if model.source == "built":
        return starter.path()
    if Path(model.source).is_absolute():
        return Path(model.source)
    try:
        return _snapshot(model, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def ready(model_id: str) -> bool:
    """Return whether the model is complete on disk, so that `prepare` is a no-op."""
    if entry(model_id).source == "built":
        return starter.ready()
    folder = path(model_id)
    return folder is not None and _is_whole(folder)


def prepare(model_id: str, progress: Progress = lambda fraction, text: None) -> Path:
    """Return the model's folder, after building or downloading the model if needed.

    Raises:
        StudioError: this fails; the message has the reason and a remedy.
    """
    model = entry(model_id)
    if model.source == "built":
        return starter.build(progress)
    folder = path(model_id) if ready(model_id) else None
    return folder or _download(model, progress)


def rows() -> list[dict]:
    """Return what `models --json` prints."""
    fields = ("id", "family", "source", "needs_gib")
    return [
        {name: getattr(model, name) for name in fields}
        | {"ready": ready(model.id), "path": str(path(model.id)) if ready(model.id) else None}
        for model in models()
    ]


def _download(model: ModelEntry, progress: Progress) -> Path:
    if Path(model.source).is_absolute():
        raise StudioError(f"The model in {model.source} is incomplete. Add the weight files that its index names.")
    home().mkdir(parents=True, exist_ok=True)
    require_space(home(), int(model.download_gib * GIB))
    progress(0.0, f"Downloading {model.source} ({model.download_gib:.0f} GiB)")
    try:
        folder = _snapshot(model)
    except GatedRepoError as error:
        remedy = "Accept its terms on the hub and run `hf auth login`."
        raise StudioError(f"{model.source} is a gated model. {remedy}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise StudioError(f"The hub has no {model.source} at {model.revision or 'main'}. Check the name.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise StudioError(
            f"{model.source} can't be downloaded ({type(error).__name__}). Check the network and the free disk space "
            "and start again: downloaded files are kept."
        ) from error
    if not _is_whole(folder):
        raise StudioError(
            f"{model.source} has no complete safetensors weights, and other formats can run code. Pick another model."
        )
    progress(1.0, f"{model.source} is downloaded")
    return folder


def _snapshot(model: ModelEntry, local_files_only: bool = False) -> Path:
    return Path(
        snapshot_download(
            model.source,
            revision=model.revision,
            allow_patterns=SAFE_FILES,
            ignore_patterns=UNSAFE_FILES,
            local_files_only=local_files_only,
        )
    )


def _is_whole(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    return all((folder / file).is_file() for file in set(json.loads(index.read_text())["weight_map"].values()))


def _is_local(folder: Path) -> bool:
    return folder != starter.path() and not folder.name.startswith(".")


def _local(folder: Path) -> ModelEntry:
    """Return the entry of a local model, with its memory estimated from the size of the weight files."""
    config = json.loads((folder / "config.json").read_text())
    four_bit = "quantization_config" in config
    item = (
        NF4_BYTES if four_bit else {"float32": 4, "float64": 8}.get(config.get("dtype") or config.get("torch_dtype"), 2)
    )
    parameters = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / item
    return ModelEntry(
        id=folder.name,
        title=folder.name,
        family=config.get("model_type", "unknown"),
        source=str(folder),
        description=f"A model in {folder}.",
        needs_gib={"bf16": round(parameters * 2.2 / GIB + 0.5, 1), "nf4": round(parameters * 0.65 / GIB + 0.5, 1)},
        cpu_precision="nf4" if four_bit else "bf16",
    )
