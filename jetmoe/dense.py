"""Open a dense Llama-architecture checkpoint for upcycling: a Hugging Face folder or a .gguf file.

    source = open_dense(Path("SmolLM2-135M-Instruct"))    # configuration, shapes and tokenizer; no weights
    model = load_weights(source)                          # in fp32

Everything that can be checked without the weights is checked by `open_dense`.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from jetmoe.gguf_file import is_gguf, read_gguf
from jetmoe.gguf_tokenizer import tokenizer_from_metadata
from jetmoe.llama_config import llama_config
from jetmoe.loading.checkpoint import TOKENIZER_FILES, CheckpointError, name_list, stored_tensors

GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Older checkpoints store what the configuration determines.
WITHOUT_EFFECT = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class DenseSource:
    """A dense checkpoint without its weights."""

    path: Path
    config: LlamaConfig
    tokenizer: PreTrainedTokenizerBase
    generation: dict[str, Any]
    """The content of generation_config.json: end tokens, and sampling if the source has its own."""

    def save_tokenizer(self, directory: Path) -> None:
        """Copy the tokenizer files of a folder, or save the tokenizer of a .gguf file."""
        if is_gguf(self.path):
            self.tokenizer.save_pretrained(directory)
            return
        for name in TOKENIZER_FILES:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, directory / name)


def open_dense(path: Path) -> DenseSource:
    """Read and check everything but the weights.

    Raises:
        CheckpointError: there is no complete Llama-architecture checkpoint with a tokenizer; the message has a remedy.
    """
    if is_gguf(path) and path.is_file():
        file = read_gguf(path)
        source = DenseSource(path, file.config, tokenizer_from_metadata(path.name, file.metadata), file.generation)
        shapes = file.shapes
    elif (path / "config.json").is_file():
        config = _folder_config(path)
        shapes = {name: tensor.shape for name, tensor in stored_tensors(path).items()}
        tokenizer = _folder_tokenizer(path)
        source = DenseSource(path, config, tokenizer, _folder_generation(path, config, tokenizer))
    else:
        raise CheckpointError(f"{path} is neither a .gguf file nor a folder with a config.json. Check the spelling.")
    _check_shapes(path, source.config, shapes)
    _check_vocabulary(path, source)
    return source


def load_dense(path: Path) -> LlamaForCausalLM:
    """Check a checkpoint and load it in fp32; raise CheckpointError if that fails."""
    return load_weights(open_dense(path))


def load_weights(source: DenseSource) -> LlamaForCausalLM:
    """Load the weights in fp32.

    Raises:
        CheckpointError: they are damaged.
    """
    gguf = is_gguf(source.path)
    folder = source.path.parent if gguf else source.path
    options: dict[str, Any] = {"gguf_file": source.path.name} if gguf else {"use_safetensors": True}
    bars = StringIO()  # hides the bars of transformers; the caller reports progress instead
    try:
        with redirect_stderr(bars):
            model = LlamaForCausalLM.from_pretrained(
                folder, config=source.config, dtype=torch.float32, local_files_only=True, **options
            )
    except (OSError, KeyError, ValueError, IndexError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"The weights of {source.path} can't be read: {error}. Download them again.") from error
    return model.eval()


def _folder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder; raise CheckpointError if there is none, or it is damaged."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{folder} holds no tokenizer. Add the model's tokenizer.json and tokenizer_config.json.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # `tokenizers` raises nothing narrower for damaged files
        raise CheckpointError(f"The tokenizer of {folder} can't be read: {error}. Download its files again.") from error


def _folder_config(folder: Path) -> LlamaConfig:
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = fields.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged ({error}); download it again.") from error
    if kind != "llama":
        raise CheckpointError(f"{folder.name} is a {kind!r} model; upcycling needs the architecture 'llama'.")
    if "quantization_config" in fields:
        raise CheckpointError(f"{folder.name} is quantized. Use the folder of the 16-bit model, or its GGUF.")
    return llama_config(folder / "config.json", fields)


def _folder_generation(folder: Path, config: LlamaConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the source's generation config. Missing ids come from config.json, a missing end token from both."""
    found: dict[str, Any] = {}
    if (folder / GENERATION).is_file():
        try:
            found = dict(json.loads((folder / GENERATION).read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{folder / GENERATION} is damaged ({error}); download it again.") from error
    found.pop("_from_model_config", None)  # it would make transformers derive the ids from config.json again
    ids: dict[str, Any] = {name: getattr(config, name) for name in IDS}
    ends = ids["eos_token_id"] if isinstance(ids["eos_token_id"], list) else [ids["eos_token_id"]]
    ends = list(dict.fromkeys(end for end in (*ends, tokenizer.eos_token_id) if end is not None))
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    found = ids | {name: value for name, value in found.items() if value is not None}
    try:
        GenerationConfig.from_dict(found)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / GENERATION} has invalid fields: {error}. Correct or delete it.") from error
    return found


def _check_shapes(path: Path, config: LlamaConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError if the stored tensors are not those of the configuration."""
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).state_dict().items()}
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    found = {name: shape for name, shape in shapes.items() if not WITHOUT_EFFECT.fullmatch(name)}
    missing = sorted(wanted.keys() - found.keys() - optional)
    unknown = sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    problems = [
        f"{word} {name_list(names)[:300]}" for word, names in (("lacks", missing), ("also has", unknown)) if names
    ]
    problems += [f"has {other[0]} in the shape {found[other[0]]}, not {wanted[other[0]]}"] if other else []
    if problems:
        raise CheckpointError(
            f"The weights of {path} are not those of its configuration: the checkpoint {', '.join(problems)}. Use a "
            "complete, unmodified checkpoint of a Llama-architecture language model."
        )


def _check_vocabulary(path: Path, source: DenseSource) -> None:
    """Raise CheckpointError if a token has no row in the embedding."""
    rows = source.config.vocab_size
    largest = max(source.tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise CheckpointError(
            f"The tokenizer of {path} has tokens up to id {largest}, but the embedding has {rows} rows: tokens were "
            "added without resizing the model. Use the model's original tokenizer files, or call "
            "resize_token_embeddings and save the model again."
        )
    ends = source.generation["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    outside = [end for end in ends if end is not None and not (isinstance(end, int) and 0 <= end < rows)]
    if outside:
        raise CheckpointError(
            f"The end token {outside[0]!r} of {path} has no row in the embedding, which has {rows}. Correct "
            f"eos_token_id in {GENERATION} or config.json."
        )
