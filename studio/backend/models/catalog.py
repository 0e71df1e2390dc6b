"""The catalog of models: where their weights come from, how much memory they need, and how to download or build them.

prepare("starter", progress)              # -> a folder that AutoModelForCausalLM loads after `import jetmoe`
prepare("allenai/OLMoE-1B-7B-0924")       # any JetMoE or OLMoE model of the Hub; NAME@REVISION pins a revision
[entry.id for entry in models()]          # the starter, the releases, folders in <home>/models, downloaded models
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.backend.models import hub, starter
from studio.backend.system.home import home
from studio.backend.system.plan import total_memory
from studio.backend.system.progress import Progress
from studio.errors import StudioError

CHAT_8B = "jetmoe/jetmoe-8b-chat"
GIB = 2**30

# Same as `jetmoe.nf4.parts.BYTES_PER_WEIGHT`, whose import would load torch, which is slow.
NF4_BYTES = 0.5 + 4 / 64
# Parameters above which a model is in 4 bits by default, also on a CPU.
LARGE = 1e9


@dataclass(frozen=True)
class ModelEntry:
    """One model of the catalog. `source` is "built", a hub id or a folder; `needs_gib` is the memory for chat.

    `cpu_precision` is the default precision on a CPU: "nf4", or "bf16" if that is no slower or 4 bits cost too much
    quality. `chat_template` is None, and `needs_gib` empty, for a model that was not downloaded or looked up yet.
    """

    id: str
    title: str
    family: str
    source: str
    description: str
    needs_gib: dict[str, float]
    licence: str = "unknown"
    download_gib: float = 0.0
    revision: str | None = None
    cpu_precision: str = "nf4"
    chat_template: bool | None = None
    sampling: dict[str, float] = field(default_factory=dict)
    """Settings for answers that the model card recommends."""

    @property
    def reference(self) -> hub.Reference:
        """Where a model of the Hub is."""
        return hub.Reference(self.source, self.revision)


STARTER = ModelEntry(
    id="starter",
    title="Starter (SmolLM2 135M as JetMoE)",
    family="jetmoe",
    source="built",
    description="SmolLM2-135M-Instruct (Apache-2.0), 4-bit weights (Q4_1) dequantized and upcycled to 12 experts. The "
    "experts are copies, routed by the kind of text; they specialise only when the model is tuned.",
    needs_gib={"bf16": 1.5, "nf4": 1.0},
    licence="Apache-2.0",
    download_gib=0.1,
    # In 4 bits, a model this small loses more quality than it saves memory; docs/benchmarks.md has both figures.
    cpu_precision="bf16",
    chat_template=True,
    sampling={"temperature": 0.2, "top_p": 0.9},
)
# The weights in that precision, the keys and values of a full context, and working memory; tests compute them.
SIZES: dict[str, dict[str, Any]] = {
    "jetmoe": {"family": "jetmoe", "needs_gib": {"bf16": 18.0, "nf4": 6.5}, "download_gib": 15.9},
    "olmoe": {"family": "olmoe", "needs_gib": {"bf16": 14.5, "nf4": 5.5}, "download_gib": 12.9},
}
JETMOE_8B = "8 experts, 2 at a time, 2.2B of 8.5B parameters active."
OLMOE_1B = "64 experts, 8 at a time, 1.3B of 6.9B parameters active."
# Id, title, family, whether it has a chat template, description. Base models have none: they continue a text.
RELEASES = (
    ("jetmoe/jetmoe-8b", "JetMoE 8B", "jetmoe", False, f"The base model: {JETMOE_8B}"),
    (CHAT_8B, "JetMoE 8B Chat", "jetmoe", True, "The base model after supervised tuning and DPO; made for chat."),
    ("jetmoe/jetmoe-8b-sft", "JetMoE 8B SFT", "jetmoe", None, "The base model after supervised tuning only."),
    ("allenai/OLMoE-1B-7B-0924", "OLMoE 1B-7B", "olmoe", False, f"The base model: {OLMOE_1B}"),
    ("allenai/OLMoE-1B-7B-0924-Instruct", "OLMoE 1B-7B Instruct", "olmoe", True,
     "The base model after supervised tuning and DPO; made for chat."),
)  # fmt: skip
REVISIONS = {"jetmoe/jetmoe-8b": "d8fd02ccf7911aa8148a63c7984ffd2e465b0352"}
"""Pinned commits. The others are not known here: they load from the default branch."""
RELEASED = [
    ModelEntry(id=name, title=title, source=name, description=about, chat_template=template, licence="Apache-2.0",
               revision=REVISIONS.get(name), **SIZES[family])
    for name, title, family, template, about in RELEASES
]  # fmt: skip


def models() -> list[ModelEntry]:
    """Return all entries, the default first."""
    folders = sorted((home() / "models").glob("*/config.json"))
    known = [STARTER, *RELEASED, *(_local(file.parent) for file in folders if _is_local(file.parent))]
    released = {model.source for model in RELEASED}
    return [*known, *(_of_hub(ref, folder) for ref, folder in hub.downloaded() if ref.repo not in released)]


def entry(model_id: str) -> ModelEntry:
    """Return the entry with this id, or the entry of the folder at this path. Needs no network.

    An id of the Hub that was never downloaded gets an entry without sizes; `look` and `prepare` check whether the Hub
    has such a model.

    Raises:
        StudioError: there is none; the message lists the models that exist.
    """
    released = {model.id: model for model in (STARTER, *RELEASED)}
    if model_id in released:
        return released[model_id]
    known = {model.id: model for model in models()}
    if model_id in known:
        return known[model_id]
    if (Path(model_id) / "config.json").is_file():
        return _local(Path(model_id).resolve())
    if hub.is_reference(model_id):
        return _of_hub(hub.parse(model_id))
    raise StudioError(
        f"There is no model {model_id!r}. Pick one of {', '.join(known)}, or give a model's folder or its id on the "
        "Hub (owner/name)."
    )


def look(model: ModelEntry, token: bool | None = None) -> tuple[ModelEntry, int]:
    """Return the entry of a hub model with its sizes from the Hub, and the bytes that are still to be downloaded.

    Raises:
        StudioError: as of `hub.look`.
    """
    found = hub.look(model.reference, token)
    if model in RELEASED:
        return model, found.missing_bytes
    template = model.chat_template if found.has_chat_template is None else True
    sized = replace(
        model,
        family=str(found.config["model_type"]),
        licence=found.licence,
        download_gib=sum(found.sizes.values()) / GIB,
        chat_template=template,
        **_memory(found.config, found.weight_bytes),
    )
    return sized, found.missing_bytes


def path(model_id: str) -> Path | None:
    """Return the model's folder, or None if a hub model has not been downloaded."""
    return _path(entry(model_id))


def ready(model: str | ModelEntry) -> bool:
    """Return whether the model is complete on disk, so that `prepare` is a no-op."""
    found = entry(model) if isinstance(model, str) else model
    if found.source == "built":
        return starter.ready()
    folder = _path(found)
    return folder is not None and hub.is_whole(folder)


def prepare(model_id: str, progress: Progress = lambda fraction, text: None) -> Path:
    """Return the model's folder, after building or downloading the model if needed.

    Raises:
        StudioError: this fails; the message has the reason and a remedy.
    """
    model = entry(model_id)
    if model.source == "built":
        return starter.build(progress)
    if ready(model) and (folder := _path(model)):
        return folder
    if is_folder(model):
        raise StudioError(f"The model in {model.source} is incomplete. Add the weight files that its index names.")
    progress(0.0, f"Asking the Hub for {model.id} …")
    return hub.download(model.reference, progress, look(model)[1])


def rows() -> list[dict[str, Any]]:
    """Return what `models --json` prints; `fits` has the precisions that fit the main memory of this machine."""
    fields = ("id", "family", "source", "revision", "licence", "chat_template", "download_gib", "needs_gib")
    total = total_memory() / GIB
    return [
        {name: getattr(model, name) for name in fields}
        | {
            "ready": is_ready,
            "path": str(_path(model)) if is_ready else None,
            "fits": [precision for precision, need in model.needs_gib.items() if need <= total],
        }
        for model in models()
        for is_ready in [ready(model)]
    ]


def is_folder(model: ModelEntry) -> bool:
    return Path(model.source).is_absolute()


def _path(model: ModelEntry) -> Path | None:
    if model.source == "built":
        return starter.path()
    return Path(model.source) if is_folder(model) else hub.find(model.reference)


def _is_local(folder: Path) -> bool:
    return folder != starter.path() and not folder.name.startswith(".")


def _local(folder: Path) -> ModelEntry:
    """Return the entry of a local model, with its memory estimated from the size of the weight files."""
    return _estimated(folder, folder.name, str(folder), f"A model in {folder}.")


def _of_hub(reference: hub.Reference, folder: Path | None = None) -> ModelEntry:
    """Return the entry of a model of the Hub that is not in the catalog; `folder` is where it was downloaded."""
    about = f"A model of the Hub: {reference.id}."
    if folder is None:
        return ModelEntry(reference.id, reference.id, "unknown", reference.repo, about, {}, revision=reference.revision)
    return replace(_estimated(folder, reference.id, reference.repo, about), revision=reference.revision)


def _estimated(folder: Path, model_id: str, source: str, description: str) -> ModelEntry:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    memory = _memory(config, sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    family, template = config.get("model_type", "unknown"), _has_chat_template(folder)
    return ModelEntry(model_id, model_id, family, source, description, chat_template=template, **memory)


def _has_chat_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    return any(folder.glob("chat_template*")) or (settings.is_file() and b'"chat_template"' in settings.read_bytes())


def _memory(config: dict[str, Any], weight_bytes: int) -> dict[str, Any]:
    """Return `needs_gib`, estimated from the size of the weights, and `cpu_precision`."""
    is_4bit = "quantization_config" in config
    wide = {"float32": 4, "float64": 8}.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    parameters = weight_bytes / (NF4_BYTES if is_4bit else wide)
    needs = {"bf16": round(parameters * 2.2 / GIB + 0.5, 1), "nf4": round(parameters * 0.65 / GIB + 0.5, 1)}
    return {"needs_gib": needs, "cpu_precision": "nf4" if is_4bit or parameters > LARGE else "bf16"}
