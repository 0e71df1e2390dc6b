"""Stock PEFT adapters on JetMoE's experts: configurations, hot experts, several adapters on a model, audit and merge.

    adapted = peft.get_peft_model(model, lora_config("all", r=16))      # trains, saves and loads as any PEFT model
    adapters = Adapters(model); adapters.load(folder, "pirate"); adapters.use("pirate")
    report = merge(model)

In memory and on disk the adapters are PEFT's: `target_modules` for key-value projections and routers,
`target_parameters` for the expert tensors `[E, out, in]`. `jetmoe.experts` computes what they add beside the product.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from jetmoe.experts import JetMoeExperts
from jetmoe.low_rank import LowRank, split_adapters
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4.parts import require_bitsandbytes
from jetmoe.nf4.tensor import NF4Tensor, copy_into, quantize

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Targets(NamedTuple):
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()


# Both kinds of experts have an input_linear and an output_linear; what stands before them tells them apart.
MOA = ("experts.input_linear.weight", "experts.output_linear.weight")
MOE = ("mlp.input_linear.weight", "mlp.output_linear.weight")
PRESETS = {
    "attention": Targets(("kv_proj",), MOA),
    "experts": Targets((), MOE),
    "moa": Targets((), MOA),
    "all": Targets(("kv_proj",), (*MOA, *MOE)),
    "hot": Targets(("kv_proj",), (*MOA, *MOE)),  # with `mask_gradients`
    "router": Targets(("router.layer",), ()),
}
# The rows of an audit, by the end of a parameter's name without PEFT's parts; the first that fits.
KINDS = {
    "attention experts": tuple(f"self_attention.{name}" for name in MOA),
    "MLP experts": MOE,
    "kv_proj": ("kv_proj.weight",),
    "routers": ("router.layer.weight",),
    "norms and biases": ("norm.weight", "bias"),
    "embeddings and head": ("embed_tokens.weight", "lm_head.weight"),
    "score head": ("score.weight",),
}
# What a foreign adapter's configuration may say, and what must be at its default; nothing else in it is looked at.
KEPT = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "task_type")
AT_DEFAULT = (
    "lora_dropout",
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "modules_to_save",
    "alora_invocation_tokens",
    "kasa_config",
)
MAX_RANK = 512
# Of an adapter that classifies: what PEFT calls its head in `modules_to_save`, and the head among the weights.
HEADS = {"score", "classifier"}
HEAD = "base_model.model.score.weight"


class AdapterError(ValueError):
    """The adapter can't be made, loaded or merged; the message says why and what to do."""


def lora_config(preset: str, r: int = 16, lora_alpha: float = 32, task_type: str = "CAUSAL_LM") -> peft.LoraConfig:
    """The PEFT configuration of a preset of `PRESETS`, or of several joined by "+".

    With task_type "SEQ_CLS" the head of a JetMoeForSequenceClassification is trained whole and saved with the adapter.

    Raises:
        AdapterError: no such preset.
    """
    names = preset.split("+")
    if unknown := [name for name in names if name not in PRESETS]:
        raise AdapterError(f"There is no preset {', '.join(unknown)}; pick of {', '.join(PRESETS)}, joined by '+'.")
    modules = {module for name in names for module in PRESETS[name].modules}
    parameters = {parameter for name in names for parameter in PRESETS[name].parameters}
    return peft.LoraConfig(
        r=r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(modules),
        target_parameters=sorted(parameters) or None,
        task_type=task_type,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
    )


def require_free_routers(config: Any, preset: str, insist: bool = False) -> None:
    """Raises AdapterError: the preset trains routers whose rows the model ties, which breaks its exactness."""
    if "router" in preset.split("+") and config.expert_groups is not None and not insist:
        raise AdapterError(
            "This model ties its router rows, so that each token gets one whole copy of the dense layer; training its "
            "routers unties them and costs that exactness. Leave out 'router', or insist on it."
        )


def hot_experts(load: np.ndarray, share: float) -> np.ndarray:
    """The smallest set of experts of each router that covers a share of its routing (ESFT, arXiv 2407.01906, eq. 6).

    Args:
        load: `[L, N, E]`, each expert's share of the assignments, or of any other measure of use.
        share: above 0, up to 1.

    Returns:
        bool `[L, N, E]`.
    """
    load = load.astype(np.float64)
    order = np.argsort(-load, axis=-1, kind="stable")  # [L, N, E]
    falling = np.take_along_axis(load, order, axis=-1)
    before = np.cumsum(falling, axis=-1) - falling
    # A hair less than asked: rounding must not take in one more expert.
    needed = (before < share * (1 - 1e-6) * load.sum(axis=-1, keepdims=True)) & (falling > 0)
    hot = np.zeros_like(needed)
    np.put_along_axis(hot, order, needed, axis=-1)
    return hot


def mask_gradients(model: nn.Module, hot: np.ndarray) -> None:
    """Lets only hot experts learn: bool `[L, N, E]`, N = MoA, MoE.

    `lora_B` of the others starts at zero and gets no gradient. So their change stays exactly zero, and with it the
    gradient of their `lora_A`; the tensors keep PEFT's shapes.
    """
    for name, wrapper in wrappers(model):
        if not isinstance(wrapper.get_base_layer(), JetMoeExperts):
            continue
        layer = int(name.partition(".layers.")[2].partition(".")[0])
        mask = torch.from_numpy(hot[layer, int(".mlp." in name)])  # [E]
        wrapper.hot_share = float(mask.float().mean())
        for B in wrapper.lora_B.values():
            B.weight.register_hook(_masked_by(mask))


def _masked_by(mask: Tensor) -> Any:
    def masked(grad: Tensor) -> Tensor:
        columns = mask.to(grad.device).repeat(grad.shape[1] // len(mask))  # [R * E], the expert fastest
        return grad.masked_fill(~columns, 0)

    return masked


# --- adapters on one model


class Adapters:
    """The adapters of one model, of which one or none is in use; switching loads nothing."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapted: peft.PeftModel | None = None
        # PEFT makes module names of an adapter's name; these are fit for that, whatever a person calls it.
        self._modules: dict[str, str] = {}
        self._fresh = (f"adapter_{i}" for i in count())
        self.used: str | None = None
        self.classifiers: set[str] = set()
        """The names of those that come with a classification head."""

    @property
    def names(self) -> list[str]:
        return list(self._modules)

    def load(self, folder: Path | str, name: str) -> None:
        """Reads PEFT's files; the adapter is not used yet. One of the same name is replaced. A classification head is
        left out: `read_head` has it.

        Raises:
            AdapterError: it is no adapter, not of this model, or asks for what is not supported.
        """
        config = read_config(folder, with_head=True)
        check_weights(folder, config, self._model)  # before anything of the sizes that it asks for is built
        weights, module = load_file(Path(folder) / WEIGHTS), next(self._fresh)
        has_head = weights.pop(HEAD, None) is not None
        with _quiet():
            if self._adapted is None:
                self._adapted = peft.PeftModel(self._model, _widened(config), adapter_name=module)
            else:
                self._adapted.add_adapter(module, _widened(config))
        peft.set_peft_model_state_dict(self._adapted, weights, adapter_name=module)
        if name in self.names:
            self.remove(name)
        self._modules[name] = module
        if has_head:
            self.classifiers.add(name)
        self.use(self.used)

    def use(self, name: str | None) -> None:
        """The adapter that answers from now on; None is the model alone.

        Raises:
            AdapterError: it is not loaded.
        """
        module = None if name is None else self._module(name)
        for _, wrapper in wrappers(self._model):
            wrapper.set_adapter([] if module is None else module)
        self._model.requires_grad_(False)
        self.used = name

    def remove(self, name: str) -> None:
        """Frees the adapter's memory.

        Raises:
            AdapterError: it is not loaded.
        """
        module = self._module(name)
        self.used = None if self.used == name else self.used
        del self._modules[name]
        self.classifiers.discard(name)
        self._delete(module)

    def _module(self, name: str) -> str:
        if name not in self.names:
            raise AdapterError(f"The adapter {name!r} is not loaded; load it first.")
        return self._modules[name]

    def _delete(self, module: str) -> None:
        assert self._adapted is not None
        self.use(self.used)  # of an adapter in use PEFT would put another in its place
        if len(self._adapted.peft_config) > 1:
            self._adapted.delete_adapter(module)
        else:
            _unwrap(self._model)
            self._adapted = None


def read_config(folder: Path | str, with_head: bool = False) -> peft.LoraConfig:
    """An adapter's configuration, rewritten to the settings that are known here.

    Args:
        with_head: whether it may have a classification head; without one it answers.

    Raises:
        AdapterError: there is none, it is not LoRA, or it asks for what is not supported.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise AdapterError(f"{Path(folder).name} holds no {CONFIG}; give the folder of a PEFT adapter.")
    try:
        stored = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG} is damaged ({error}); save or download the adapter again.") from error
    if not isinstance(stored, dict) or stored.get("peft_type") != "LORA":
        raise AdapterError(f"What {CONFIG} describes is not a LoRA adapter; only LoRA is supported.")
    stored = {name: value for name, value in stored.items() if value is not None}
    if _has_head(stored):
        if not with_head:
            raise AdapterError("This adapter has a classification head: it sorts texts by labels and answers nothing.")
        del stored["modules_to_save"]
    if odd := [name for name in AT_DEFAULT if stored.get(name)] + ["bias"] * (stored.get("bias", "none") != "none"):
        raise AdapterError(f"The adapter uses {', '.join(odd)}, which experts don't support; train it without.")
    if odd := [name for name, value in stored.items() if not _is_sound(name, value)]:
        raise AdapterError(f"{CONFIG} is damaged: {', '.join(odd)} can't be such; save or download the adapter again.")
    modules, parameters = _list(stored.get("target_modules")), _list(stored.get("target_parameters"))
    here = {*PRESETS["all"].modules, *PRESETS["router"].modules, *MOA, *MOE}
    if foreign := {*modules, *parameters} - here:
        raise AdapterError(f"The adapter changes {', '.join(sorted(foreign))[:99]}, which JetMoE doesn't have.")
    ranks = [stored.get("r"), *(stored.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and 1 <= rank <= MAX_RANK for rank in ranks):
        raise AdapterError(f"The adapter's ranks must be whole numbers from 1 to {MAX_RANK}, not {str(ranks)[:99]}.")
    kept = {name: stored[name] for name in KEPT if name in stored}
    return peft.LoraConfig(target_modules=modules, target_parameters=parameters or None, **kept)


def read_head(folder: Path | str) -> Tensor:
    """The classification head of an adapter, fp32 `[labels, D]`.

    Raises:
        AdapterError: it has none, or its file is damaged.
    """
    shape = _stored_shapes(Path(folder)).get(HEAD)
    if shape is None or len(shape) != 2:
        raise AdapterError("This adapter has no classification head: it answers. Pick one that classifies.")
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as weights:
        return weights.get_tensor(HEAD).float()


def _has_head(stored: dict[str, Any]) -> bool:
    names = stored.get("modules_to_save")
    return isinstance(names, list) and "score" in names and all(name in HEADS for name in names)


def _is_sound(name: str, value: Any) -> bool:
    """Whether a setting has a value that it can have."""
    if name == "lora_alpha":
        return _is_number(value)
    if name == "use_rslora":
        return isinstance(value, bool)
    if name in ("rank_pattern", "alpha_pattern"):
        # PEFT takes the names for regular expressions, of which some never end.
        return isinstance(value, dict) and all(re.fullmatch(r"[\w.]+", key) and _is_number(value[key]) for key in value)
    if name in ("target_modules", "target_parameters"):
        return isinstance(value, str | list) and all(isinstance(target, str) for target in value)
    return name != "task_type" or value in list(peft.TaskType)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e12


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _widened(config: peft.LoraConfig) -> peft.LoraConfig:
    """With all expert tensors as targets, because PEFT wants all adapters of a model to target the same; those that the
    adapter lacks have rank 1, stay zero and are skipped."""
    absent = _absent(config)
    return peft.LoraConfig(
        **{name: getattr(config, name) for name in KEPT if name != "rank_pattern"},
        rank_pattern={**(config.rank_pattern or {}), **dict.fromkeys(absent, 1)},
        target_modules=config.target_modules,
        target_parameters=[*MOA, *MOE],
        inference_mode=True,
    )


def _absent(config: peft.LoraConfig) -> list[str]:
    return [name for name in (*MOA, *MOE) if name not in (config.target_parameters or [])]


def check_weights(folder: Path | str, config: peft.LoraConfig, model: nn.Module) -> None:
    """Holds the tensors' names and shapes, as the file's header has them, against those of the configuration.

    Args:
        model: whose adapter it is to be; its weights are not looked at, and may be on the meta device.

    Raises:
        AdapterError: there is no sound file, or its tensors are others.
    """
    stored = _stored_shapes(Path(folder))
    stored.pop(HEAD, None)
    absent = tuple(name.removesuffix(".weight") for name in _absent(config))
    needed = {
        name: shape
        for name, shape in _expected_shapes(config, model).items()
        if not name.partition(".lora_")[0].endswith(absent)
    }
    wrong = sorted(needed.keys() ^ stored.keys())
    wrong += [name for name in needed.keys() & stored.keys() if needed[name] != stored[name]]
    if wrong:
        raise AdapterError(
            f"{len(wrong)} of the adapter's tensors are missing, surplus or of another shape than this model's, "
            f"such as {wrong[0][:99]}. Pick the model that it was trained on."
        )


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise AdapterError(f"{folder.name} holds no {WEIGHTS}; other formats can run code when opened. Save it again.")
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is damaged ({error}); save or download the adapter again.") from error


def _expected_shapes(config: peft.LoraConfig, model: Any) -> dict[str, list[int]]:
    """PEFT itself says them, of a model like this one that takes no memory."""
    with torch.device("meta"), _quiet():
        blank = type(model)(copy.deepcopy(model.config))
        adapted = peft.PeftModel(blank, _widened(config))
    return {name: list(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(adapted).items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT follows these patterns for parameters too, but looks for them among modules and says it found none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following rank_pattern keys")
        yield


# --- what trains


@dataclass(frozen=True)
class AuditRow:
    """One part of a model: how many of its parameters there are, how many train, and how they are stored."""

    part: str
    parameters: int
    trained: int
    """Numbers that an optimizer changes: of low-rank factors, or of the part itself."""
    rank: int
    """0 where no adapter is."""
    dtype: str
    """As loaded; "nf4" for 4 bits."""
    four_bit: float
    """The share of its parameters in 4 bits, 0 to 1."""


def audit(model: nn.Module) -> list[AuditRow]:
    """What will really train, part by part, counted in the model itself."""
    rows = []
    ranks, trained = _trained_by_part(model)
    counts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name and ".modules_to_save." not in name:
            counts[part_of(name)].append(_count_and_dtype(parameter))
    for part, tensors in counts.items():
        total = sum(count for count, _ in tensors)
        four_bit = sum(count for count, dtype in tensors if dtype == "nf4")
        dtypes = ", ".join(sorted({dtype for _, dtype in tensors}))
        rows.append(AuditRow(part, total, trained[part], ranks[part], dtypes, four_bit / total))
    return sorted(rows, key=lambda row: [*KINDS].index(row.part))


def part_of(name: str) -> str:
    """The part of the model, a key of `KINDS`, that a parameter or an adapter's factor belongs to."""
    name = re.sub(r"\.(base_layer|original_module|modules_to_save\.\w+)(?=\.)", "", name)  # PEFT's parts
    layer, factor, _ = name.partition(".lora_")
    plain = f"{layer}.weight" if factor else layer
    return next(part for part, endings in KINDS.items() if plain.endswith(endings))


def _trained_by_part(model: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    ranks: dict[str, int] = defaultdict(int)
    trained: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            trained[part_of(name)] += parameter.numel()
    for name, wrapper in wrappers(model):
        part = part_of(f"{name}.lora_")
        for adapter in [one for one in wrapper.active_adapters if one in wrapper.lora_A]:
            factors = [wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight]
            size = sum(factor.numel() for factor in factors if factor.requires_grad)
            trained[part] += round(size * getattr(wrapper, "hot_share", 1.0))
            ranks[part] = wrapper.r[adapter]
    return ranks, trained


def _count_and_dtype(parameter: Tensor) -> tuple[int, str]:
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes, whose shape is not that of the weights
    if state is not None:
        return torch.Size(state.shape).numel(), "nf4"
    return parameter.numel(), "nf4" if isinstance(parameter, NF4Tensor) else str(parameter.dtype).removeprefix("torch.")


def wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's wrappers with their names, the outermost where they are nested."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".base_layer" not in name:
            yield name, module


# --- merging


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, float]:
    """Adds the active adapters to the weights and removes them.

    4-bit weights are dequantized, changed and quantized again, which rounds away a part of so small a change.

    Returns:
        For each part what rounding lost, relative to the change: `|stored - exact| / |change|`.
    """
    lost: dict[str, list[Tensor]] = defaultdict(lambda: [torch.zeros(2)])
    for name, wrapper in wrappers(model):
        layer, low_rank = split_adapters(wrapper, torch.float32)
        if low_rank is not None:
            lost[part_of(f"{name}.lora_")].append(_add(layer, low_rank))
    _unwrap(model)
    sums = {part: torch.stack(errors).sum(0) for part, errors in lost.items()}
    return {part: float((error / change.clamp(min=1e-30)).sqrt()) for part, (error, change) in sums.items()}


def _add(layer: Any, low_rank: LowRank) -> Tensor:
    """Adds `B A` to a layer's weights; `[2]`, the squared norms of what rounding lost and of the change."""
    sums = torch.zeros(2)
    for e in range(len(low_rank.B)):
        change = low_rank.B[e] @ low_rank.A[e]  # [out, in]
        exact = _read(layer, e) + change
        _write(layer, e, exact)
        sums += torch.stack([(_read(layer, e) - exact).square().sum(), change.square().sum()]).cpu()
    return sums


def _read(layer: Any, expert: int) -> Tensor:
    """One expert's weight `[out, in]` in fp32."""
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        require_bitsandbytes()
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, state).float()
    if isinstance(layer, nn.Linear):
        return layer.weight.float()
    parts = layer.parts()
    return layer.weight[expert].float() if parts is None else parts.expert(expert).dequantize(torch.float32)[0]


def _write(layer: Any, expert: int, weight: Tensor) -> None:
    """Stores one expert's weight `[out, in]` as the layer stores its own."""
    if getattr(layer.weight, "quant_state", None) is not None:
        _write_linear_4bit(layer, weight)
    elif isinstance(layer, nn.Linear):
        layer.weight.copy_(weight)
    elif (parts := layer.parts()) is None:
        layer.weight[expert].copy_(weight)
    else:
        rows = quantize(weight.unsqueeze(0).to(layer.weight.dtype), parts.nested_absmax is not None).parts
        copy_into(parts.expert(expert), rows.tile() if parts.tiled else rows)


def _write_linear_4bit(layer: Any, weight: Tensor) -> None:
    from bitsandbytes.nn import Params4bit

    state, device = layer.weight.quant_state, layer.weight.device
    values: Any = Params4bit(
        weight.to(state.dtype), False, compress_statistics=state.nested, quant_type="nf4", module=layer
    )
    layer.weight = values.to(device)
    if hasattr(layer, "tiles"):
        nf4_cpu.tile_linear(layer)


def _unwrap(model: nn.Module) -> None:
    for name, wrapper in wrappers(model):
        layer = wrapper.get_base_layer()
        layer.low_rank, layer.low_rank_state = None, []
        model.set_submodule(name, layer)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module).pop("peft_config", None)  # else PEFT takes the adapters for being there still
