"""Convert a dense Llama-architecture checkpoint to a JetMoE checkpoint that computes the same function.

    upcycle("SmolLM2-135M-Instruct", "smollm2-jetmoe", replicas=4)     # a Hugging Face folder or a .gguf file

The G query heads that share a key/value head become G slots, and so do G slices of the feed-forward layer. Each slot
has m replicas, which gives E = G * m experts, expert `e = slot * m + replica`, and K = G. All slots of a replica have
the same router row, so the best replica takes all G places with gates of 1/G each. The output projections contain a
factor of G, which cancels the gates. ANY router rows thus preserve the function; `fit_router_rows` finds meaningful
ones.

JetMoE's block norms use eps 1e-6. With s^2 = 1e-6 / eps of the source, a residual stream scaled by s is normed exactly
as before, so all weights that write into it are scaled by s. Shape letters: routing.py; V vocabulary, G slots,
m replicas, C channels per head, H key/value heads, I feed-forward width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from jetmoe.gguf_tokenizer import tokenizer_from_gguf
from jetmoe.loading.checkpoint import TOKENIZER_FILES
from jetmoe.routers import collect_router_inputs, fit_router_rows

BLOCK_NORM_EPS = 1e-6
SHARD_BYTES = 500_000_000
Progress = Callable[[float, str], None]


def upcycle(
    source: str | Path,
    directory: str | Path,
    replicas: int = 4,
    router_rows: Tensor | None = None,
    token_ids: Tensor | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Path:
    """Write the JetMoE version of a dense checkpoint as 32-bit safetensors, with its tokenizer.

    Args:
        source: a folder written by `save_pretrained`, or a .gguf file, which is dequantized.
        directory: output folder; created if missing.
        replicas: m, number of copies of each slot.
        router_rows: `[L, 2, m, D]`, MoA then MoE; e.g. those that ship with the starter model.
        token_ids: `[T]`, text to fit the rows on if none are given. Without both, the rows are random.
        progress: called with the completed share and a message.

    Raises:
        ValueError: the checkpoint can't be read, or its shape is not supported; the message names the problem.
    """
    source, directory = Path(source), Path(directory)
    progress(0.0, f"Reading {source.name}")
    model = load_dense(source)
    llama = check_llama(model.config, replicas)
    if router_rows is None and token_ids is not None:
        progress(0.2, "Fitting routers")
        router_rows = fit_routers(model, token_ids, replicas)
    if router_rows is None:
        router_rows = random_rows(llama, replicas)
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(source, directory)
    config = jetmoe_config(llama, replicas)
    tensors = jetmoe_tensors(model.state_dict(), llama, router_rows)
    save_shards(tensors, directory, lambda part: progress(0.3 + 0.7 * part, "Writing experts"), len(router_rows))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _generation_config(llama).save_pretrained(directory)
    progress(1.0, "Model written")
    return directory


def dense_to_jetmoe(
    state_dict: dict[str, Tensor], config: LlamaConfig, router_rows: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the JetMoE state dict and config.json of a dense model in memory; `router_rows` is `[L, 2, m, D]`."""
    replicas = router_rows.shape[2]
    check_llama(config, replicas)
    return dict(jetmoe_tensors(state_dict, config, router_rows)), jetmoe_config(config, replicas)


def load_dense(source: Path) -> PreTrainedModel:
    """Load the dense model in fp32.

    Raises:
        ValueError: `source` contains no readable checkpoint.
    """
    is_gguf = source.suffix == ".gguf"
    if not (source.is_file() if is_gguf else (source / "config.json").is_file()):
        raise ValueError(f"{source} is neither a .gguf file nor a folder with a config.json.")
    folder = source.parent if is_gguf else source
    options: dict[str, Any] = {"gguf_file": source.name} if is_gguf else {"use_safetensors": True}
    options |= {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    bars = StringIO()  # hides the bars of transformers; `progress` reports instead
    try:
        with redirect_stderr(bars):
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, KeyError, ValueError, IndexError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source} can't be read as a dense checkpoint: {error}") from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ValueError(f"{source} lacks {len(lacking)} weights or has them in another shape, first {lacking[0]}.")
    return model


def check_llama(config: PreTrainedConfig, replicas: int) -> LlamaConfig:
    """Return the config if it can be upcycled exactly.

    Raises:
        ValueError: it can't be upcycled; the message lists every reason.
    """
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"The checkpoint's architecture is {config.model_type}; upcycling needs llama.")
    heads, kv_heads, width = config.num_attention_heads, _kv_heads(config), config.intermediate_size
    slots = max(heads // kv_heads, 1)
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    wrong = {
        f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, which is {kv_heads}": heads % kv_heads,
        f"intermediate_size is {width}, not a multiple of the {slots} query heads per key/value head": width % slots,
        f"replicas is {replicas}; {slots} slots allow 1 to {256 // slots}": not 1 <= replicas <= 256 // slots,
        "attention_bias is on; JetMoE's projections have no bias": config.attention_bias,
        "mlp_bias is on; JetMoE's experts have no inner bias": config.mlp_bias,
        f"rope_type is {rope!r}; JetMoE has 'default' only": rope != "default",
        f"hidden_act is {config.hidden_act!r}; it must be 'silu'": config.hidden_act != "silu",
    }
    found = [sentence for sentence, applies in wrong.items() if applies]
    if found:
        raise ValueError("The dense model can't be converted to JetMoE: " + "; ".join(found) + ".")
    return config


def jetmoe_config(config: LlamaConfig, replicas: int) -> dict[str, Any]:
    """Return the content of config.json, with the field names of transformers' JetMoeConfig."""
    slots = config.num_attention_heads // _kv_heads(config)
    same = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_dropout", "initializer_range",
    )  # fmt: skip
    return {
        "architectures": ["JetMoeForCausalLM"],
        "model_type": "jetmoe",
        **{name: getattr(config, name) for name in same},
        "kv_channels": _channels(config),
        "intermediate_size": config.intermediate_size // slots,
        "num_local_experts": slots * replicas,
        "num_experts_per_tok": slots,
        "expert_groups": list(range(replicas)) * slots,
        "activation_function": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": (config.rope_parameters or {})["rope_theta"]},
        "rms_norm_eps": BLOCK_NORM_EPS,
        "dtype": "float32",
    }


def jetmoe_tensors(state_dict: dict[str, Tensor], config: LlamaConfig, router_rows: Tensor) -> Iterator:
    """Yield names and tensors layer by layer, so that at most one layer is in memory twice."""
    scale = (BLOCK_NORM_EPS / config.rms_norm_eps) ** 0.5
    norm = state_dict["model.norm.weight"]
    yield "model.embed_tokens.weight", state_dict["model.embed_tokens.weight"] * scale  # [V, D]
    for index, rows in enumerate(router_rows):
        prefix = f"model.layers.{index}."
        dense = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        for name, tensor in _layer(dense, config, rows, scale).items():
            yield prefix + name, tensor.contiguous()
    if config.tie_word_embeddings:
        yield "model.norm.weight", norm / scale  # the tied head is the scaled embedding
    else:
        yield "model.norm.weight", norm.clone()
        yield "lm_head.weight", state_dict["lm_head.weight"].clone()


def _layer(dense: dict[str, Tensor], config: LlamaConfig, rows: Tensor, scale: float) -> dict[str, Tensor]:
    D, H, C = config.hidden_size, _kv_heads(config), _channels(config)
    G, m = config.num_attention_heads // H, rows.shape[1]
    query, out = dense["self_attn.q_proj.weight"], dense["self_attn.o_proj.weight"]  # [H * G * C, D], [D, H * G * C]
    gate, up, down = (dense[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))  # [I, D], [I, D], [D, I]
    slots = {
        "self_attention.experts.input_linear.weight": query.view(H, G, C, D).transpose(0, 1).reshape(G, H * C, D),
        "self_attention.experts.output_linear.weight": out.view(D, H, G, C).permute(2, 0, 1, 3).reshape(G, D, H * C)
        * (G * scale),
        "mlp.input_linear.weight": torch.cat([gate.view(G, -1, D), up.view(G, -1, D)], dim=1),  # [G, 2 * I / G, D]
        "mlp.output_linear.weight": down.view(D, G, -1).transpose(0, 1) * (G * scale),  # [G, D, I / G]
    }
    return {
        "input_layernorm.weight": dense["input_layernorm.weight"],
        "post_attention_layernorm.weight": dense["post_attention_layernorm.weight"],
        "self_attention.kv_proj.weight": torch.cat(
            [dense["self_attn.k_proj.weight"], dense["self_attn.v_proj.weight"]]
        ),
        **{name: weight.repeat_interleave(m, dim=0) for name, weight in slots.items()},  # [G, ...] -> [E, ...]
        "self_attention.experts.router.layer.weight": rows[0].repeat(G, 1),  # [m, D] -> [E, D]
        "mlp.router.layer.weight": rows[1].repeat(G, 1),
        "self_attention.experts.bias": torch.zeros(D),
        "mlp.bias": torch.zeros(D),
    }


def _kv_heads(config: LlamaConfig) -> int:
    return config.num_key_value_heads or config.num_attention_heads


def _channels(config: LlamaConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def random_rows(config: LlamaConfig, replicas: int, seed: int = 0) -> Tensor:
    """Return random router rows `[L, 2, m, D]`."""
    shape = (config.num_hidden_layers, 2, replicas, config.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * config.hidden_size**-0.5


def fit_routers(model: PreTrainedModel, token_ids: Tensor, replicas: int) -> Tensor:
    """Return router rows `[L, 2, m, D]`, each fitted to the inputs of its router on these tokens."""
    inputs = collect_router_inputs(model, token_ids)  # [L, 2, T, D]
    return torch.stack([torch.stack([fit_router_rows(x, replicas) for x in layer]) for layer in inputs])


def fitting_tokens(source: str | Path, texts: list[Path]) -> Tensor:
    """Return the token ids `[T]` of text files, for `upcycle(token_ids=...)`.

    Raises:
        ValueError: the checkpoint has no readable tokenizer.
    """
    source = Path(source)
    tokenizer = tokenizer_from_gguf(source) if source.suffix == ".gguf" else _tokenizer(source)
    return torch.tensor([token for text in texts for token in tokenizer(text.read_text()).input_ids])


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no readable tokenizer: {error}") from error


def save_shards(tensors: Iterator, directory: Path, progress: Callable[[float], None], layers: int) -> None:
    """Write safetensors files of about SHARD_BYTES and their index, with one shard in memory at a time."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(pending, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        pending[name] = tensor
        total += tensor.nbytes
        if sum(value.nbytes for value in pending.values()) > SHARD_BYTES:
            flush()
            progress(int(name.split(".")[2]) / layers if "layers" in name else 0.0)
    if pending:
        flush()
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for index, name in enumerate(names):
        (directory / f"shard-{index}").replace(directory / name)
    weight_map = {key: names[index] for index, keys in enumerate(shards) for key in keys}
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / "model.safetensors.index.json").write_text(index_text + "\n")


def save_tokenizer(source: Path, directory: Path) -> None:
    """Save the tokenizer files of the source, or the tokenizer in the metadata of a .gguf file."""
    if source.suffix == ".gguf":
        tokenizer_from_gguf(source).save_pretrained(directory)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def _generation_config(config: LlamaConfig) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
