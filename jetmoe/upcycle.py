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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jetmoe.config import ROPE_TYPES
from jetmoe.dense import GENERATION, DenseSource, load_weights, open_dense
from jetmoe.loading.checkpoint import GIB, CheckpointError
from jetmoe.loading.load import load
from jetmoe.models.jetmoe import JetMoeForCausalLM
from jetmoe.models.jetmoe_config import JetMoeConfig
from jetmoe.routers import collect_router_inputs, fit_router_rows

BLOCK_NORM_EPS = 1e-6
SHARD_BYTES = 500_000_000
OTHER_BYTES = 64_000_000
"""Room for the tokenizer and the configuration."""
LARGEST_ERROR = 1e-4
"""Largest norm of the difference of logits, divided by the norm of the dense model's logits."""
CHECKED = (4, 32)
"""Sequences, and tokens in each, on which the result is compared with the dense model."""
SAMPLE = "In 2024, it's 17 % more:\n\tnaïve café 😀 привет  <|im_end|></s>"
TOKENS_PER_REPLICA = 32
Progress = Callable[[float, str], None]


def upcycle(
    source: str | Path,
    directory: str | Path,
    replicas: int = 4,
    router_rows: Tensor | None = None,
    texts: list[Path] | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Path:
    """Write the JetMoE version of a dense checkpoint as 32-bit safetensors, with its tokenizer.

    What can be checked is checked before the weights are read. The result is loaded and compared with the dense model;
    it gets its name only if it computes the same logits. Peak memory is the larger of the two models in 32 bits, plus
    a shard of 0.5 GB: one is freed before the other is loaded.

    Args:
        source: a folder written by `save_pretrained`, or a .gguf file, which is dequantized.
        directory: a new or empty folder outside the source; created if missing.
        replicas: m, number of copies of each slot.
        router_rows: `[L, 2, m, D]`, MoA then MoE; e.g. those that ship with the starter model.
        texts: text files to fit the rows on if none are given. Without both, the rows are random.
        progress: called with the completed share and a message.

    Raises:
        CheckpointError: the checkpoint can't be read or converted exactly; the message has a remedy.
        OSError: the folder can't be written. Nothing is left in it.
    """
    source, directory = Path(source), Path(directory)
    progress(0.0, f"Reading {source.name}")
    _check_directory(source, directory)
    dense = open_dense(source)
    check_llama(dense.config, replicas)
    config = jetmoe_config(dense.config, replicas)
    if router_rows is not None:
        _check_rows(router_rows, dense.config, replicas)
    token_ids = fitting_tokens(dense, texts, replicas) if texts and router_rows is None else None
    _check_space(directory, config)
    final = directory.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as work:
        made = Path(work) / "model"
        made.mkdir()
        expected = _write(dense, made, config, router_rows, token_ids, progress)
        progress(0.9, "Comparing with the dense model")
        check_result(made, dense, expected)
        if final.exists():
            final.rmdir()  # it is empty
        made.replace(final)
    progress(1.0, "Model written")
    return directory


def _write(
    dense: DenseSource,
    directory: Path,
    config: dict[str, Any],
    router_rows: Tensor | None,
    token_ids: Tensor | None,
    progress: Progress,
) -> Tensor:
    """Write the model, and return the dense model's logits for the check `[4, S, V]`."""
    replicas = config["num_local_experts"] // config["num_experts_per_tok"]
    model = load_weights(dense)
    expected = _logits(model, dense.config)
    if not expected.isfinite().all():
        raise CheckpointError(f"The weights of {dense.path} give logits that are not finite. Download them again.")
    if token_ids is not None:
        progress(0.2, "Fitting routers")
        router_rows = fit_routers(model, token_ids, replicas)
    rows = random_rows(dense.config, replicas) if router_rows is None else router_rows
    tensors = jetmoe_tensors(model.state_dict(), dense.config, rows)
    save_shards(tensors, directory, lambda part: progress(0.3 + 0.6 * part, "Writing experts"), len(rows))
    dense.save_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / GENERATION).write_text(json.dumps(dense.generation, indent=2) + "\n")
    return expected


def _check_directory(source: Path, directory: Path) -> None:
    """Raise CheckpointError unless `directory` is new or an empty folder, outside the source, and can be replaced."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} is not empty. Name a new folder.")
    if directory.is_mount():
        raise CheckpointError(f"{directory} is a mounted disk. Name a new folder on it.")
    if source.is_dir() and directory.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(f"{directory} is inside {source}. Name a folder outside the source.")


def _check_rows(router_rows: Tensor, config: LlamaConfig, replicas: int) -> None:
    wanted = (config.num_hidden_layers, 2, replicas, config.hidden_size)
    if router_rows.shape != wanted:
        raise CheckpointError(f"router_rows has the shape {tuple(router_rows.shape)}; this model needs {wanted}.")


def _check_space(directory: Path, config: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = JetMoeForCausalLM(JetMoeConfig(**config))
    needed = sum(4 * parameter.numel() for parameter in model.parameters()) + OTHER_BYTES
    existing = next(folder for folder in directory.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"The disk is too full: {needed / GIB:.1f} GiB are needed under {existing} and {free / GIB:.1f} GiB are "
            "free. Free some space, name a folder on another disk, or use fewer replicas."
        )


@torch.inference_mode()
def _logits(model: Any, config: LlamaConfig) -> Tensor:
    """Return logits `[4, S, V]` on random tokens."""
    count, length = CHECKED
    shape = (count, min(length, config.max_position_embeddings))
    token_ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return model(token_ids, use_cache=False).logits


def check_result(directory: Path, dense: DenseSource, expected: Tensor) -> None:
    """Load a written model and compare its logits with `expected` `[4, S, V]`, and its tokenizer with the source's.

    Raises:
        CheckpointError: they differ.
    """
    model = load(JetMoeForCausalLM, directory, dtype=torch.float32)
    error = float((_logits(model, dense.config) - expected).norm() / expected.norm())
    if not error <= LARGEST_ERROR:
        raise CheckpointError(
            f"The converted model does not compute what {dense.path.name} computes: logits differ by {error:.1e}, at "
            f"most {LARGEST_ERROR:.0e} is accepted. The result is not kept. Please report this model."
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if tokenizer(SAMPLE).input_ids != dense.tokenizer(SAMPLE).input_ids:
        raise CheckpointError(
            f"The tokenizer of {dense.path.name} returns other tokens once it is saved with the model. The result is "
            "not kept. Please report this model."
        )


def dense_to_jetmoe(
    state_dict: dict[str, Tensor], config: LlamaConfig, router_rows: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the JetMoE state dict and config.json of a dense model in memory; `router_rows` is `[L, 2, m, D]`."""
    replicas = router_rows.shape[2]
    check_llama(config, replicas)
    _check_rows(router_rows, config, replicas)
    return dict(jetmoe_tensors(state_dict, config, router_rows)), jetmoe_config(config, replicas)


def check_llama(config: LlamaConfig, replicas: int) -> None:
    """Check that a configuration can be upcycled exactly.

    Raises:
        CheckpointError: it can't; the message lists every reason.
    """
    heads, kv_heads, width = config.num_attention_heads, _kv_heads(config), config.intermediate_size
    slots = max(heads // kv_heads, 1)
    rope = config.rope_parameters or {}
    kind, rotated = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    wrong = {
        f"num_attention_heads is {heads}, not a multiple of num_key_value_heads, which is {kv_heads}": heads % kv_heads,
        f"intermediate_size is {width}, not a multiple of the {slots} query heads per key/value head": width % slots,
        f"head_dim is {_channels(config)}; rotary embeddings need an even number": _channels(config) % 2,
        "attention_bias is on; JetMoE's projections have no bias": config.attention_bias,
        "mlp_bias is on; JetMoE's experts have no inner bias": config.mlp_bias,
        f"rope_type is {kind!r}; JetMoE has {', '.join(ROPE_TYPES)}": kind not in ROPE_TYPES,
        f"partial_rotary_factor is {rotated}; JetMoE rotates entire heads": rotated != 1.0,
        f"hidden_act is {config.hidden_act!r}; it must be 'silu'": config.hidden_act != "silu",
    }
    found = [sentence for sentence, applies in wrong.items() if applies]
    if found:
        raise CheckpointError(f"The model can't be converted to JetMoE: {'; '.join(found)}. Use another model.")
    if not 1 <= replicas <= 256 // slots:
        raise CheckpointError(f"replicas is {replicas}; {slots} slots allow 1 to {256 // slots}. Choose one of these.")


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
        "rope_parameters": dict(config.rope_parameters or {}),
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


def fit_routers(model: LlamaForCausalLM, token_ids: Tensor, replicas: int) -> Tensor:
    """Return router rows `[L, 2, m, D]`, each fitted to the inputs of its router on these tokens."""
    inputs = collect_router_inputs(model, token_ids)  # [L, 2, T, D]
    return torch.stack([torch.stack([fit_router_rows(x, replicas) for x in layer]) for layer in inputs])


def fitting_tokens(dense: DenseSource, texts: list[Path], replicas: int) -> Tensor:
    """Return the token ids `[T]` of text files.

    Raises:
        CheckpointError: a file is not text, or the texts are too short to fit `replicas` rows.
    """
    token_ids: list[int] = []
    for text in texts:
        try:
            token_ids += dense.tokenizer(text.read_text(encoding="utf-8")).input_ids
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{text} can't be read: {error}. Name a text file in UTF-8.") from error
    needed = TOKENS_PER_REPLICA * replicas
    if len(token_ids) < needed:
        raise CheckpointError(f"The texts have {len(token_ids)} tokens; {replicas} replicas need {needed}. Add text.")
    return torch.tensor(token_ids)


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
            if "layers" in name:
                progress(int(name.split(".")[2]) / layers)
    if pending:
        flush()
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    for index, name in enumerate(names):
        (directory / f"shard-{index}").replace(directory / name)
    weight_map = {key: names[index] for index, keys in enumerate(shards) for key in keys}
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    (directory / "model.safetensors.index.json").write_text(index_text + "\n")
