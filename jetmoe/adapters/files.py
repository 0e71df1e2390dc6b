"""Check the files of an adapter before PEFT loads them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from jetmoe.families import FAMILIES, Family
from jetmoe.low_rank import AdapterError, parameter_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Settings that are read from a foreign adapter, and settings that must be at their default. Others are ignored.
KEPT = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "task_type")
AT_DEFAULT = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "modules_to_save",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "kasa_config",
    "use_bdlora",
    "use_qalora",
    "monteclora_config",
    "arrow_config",
)
# Other initialisations change the base model's weights as well.
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
# Settings by which PEFT adapts only some of the modules that the targets name.
NARROWING = ("layers_to_transform", "exclude_modules")
MAX_RANK = 512
# The name of a factor in the weights file, and in it the module's path.
TENSOR = re.compile(r"base_model\.model\.([\w.]+)\.lora_[AB]\.weight")
# A regular expression that can't take long on a module's path.
SAFE_PATTERN = re.compile(r"[\w.^$\\]*(\.\*[\w.^$\\]*){0,3}")
# Names of a classification head in PEFT's `modules_to_save`, and its name in the weights file.
HEADS = {"score", "classifier"}
HEAD = "base_model.model.score.weight"


class Factor(NamedTuple):
    """A low-rank factor of an adapter."""

    layer: str
    """Path of the module, without PEFT's components."""
    parameter: str
    """Name of the weight in the module that it changes."""
    letter: str
    """"A" or "B"."""


def read_config(folder: Path | str, with_head: bool = False) -> peft.LoraConfig:
    """Load an adapter's configuration, reduced to the supported settings.

    Args:
        with_head: accept a classification head. Without a head, the adapter generates text.

    Raises:
        AdapterError: the file is missing or damaged, the adapter is not LoRA, or a setting is not supported.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise AdapterError(f"{Path(folder).name} holds no {CONFIG}; give the folder of a PEFT adapter.")
    try:
        stored = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{CONFIG} is damaged ({error}); save or download the adapter again.") from error
    if not isinstance(stored, dict) or stored.get("peft_type") != "LORA":
        raise AdapterError(f"The adapter in {CONFIG} is not a LoRA adapter; only LoRA is supported.")
    stored = {name: value for name, value in stored.items() if value is not None}
    if _has_head(stored):
        if not with_head:
            raise AdapterError("This adapter has a classification head and generates no text. Pick one without a head.")
        del stored["modules_to_save"]
    if odd := _unsupported(stored):
        raise AdapterError(
            f"The adapter uses {', '.join(odd)}, which is not supported; train it without, or merge it with PEFT."
        )
    if odd := [name for name, value in stored.items() if not _is_sound(name, value)]:
        raise AdapterError(f"{CONFIG} has an invalid value for {', '.join(odd)}; save or download the adapter again.")
    ranks = [stored.get("r"), *(stored.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and 1 <= rank <= MAX_RANK for rank in ranks):
        raise AdapterError(f"The adapter's ranks must be whole numbers from 1 to {MAX_RANK}, not {str(ranks)[:99]}.")
    modules, parameters = _targets(stored, Path(folder))
    kept = {name: stored[name] for name in KEPT if name in stored}
    return peft.LoraConfig(target_modules=modules, target_parameters=parameters or None, **kept)


def _unsupported(stored: dict[str, Any]) -> list[str]:
    odd = [name for name in AT_DEFAULT if stored.get(name)]
    odd += ["bias"] * (stored.get("bias", "none") != "none")
    return odd + ["init_lora_weights"] * (stored.get("init_lora_weights", True) not in PLAIN_INITS)


def _targets(stored: dict[str, Any], folder: Path) -> tuple[list[str], list[str]]:
    """Return target modules and target parameters.

    Where the configuration has patterns or full paths, they are the modules with tensors in the weights file.
    """
    modules, parameters = _list(stored.get("target_modules")), _list(stored.get("target_parameters"))
    linears = {name for family in FAMILIES.values() for name in family.linears}
    weights = {name for family in FAMILIES.values() for name in family.adapted_parameters}
    if {*modules, *parameters} <= linears | weights and not any(stored.get(name) for name in NARROWING):
        return modules, parameters
    paths = [
        match[1].replace(".base_layer", "") for name in _stored_shapes(folder) if (match := TENSOR.fullmatch(name))
    ]
    found = {path: _weights_in(path, weights, parameters) for path in paths}
    foreign = sorted(path for path, names in found.items() if not names and not path.endswith(tuple(linears)))
    if foreign:
        raise AdapterError(f"The adapter changes {', '.join(foreign)[:99]}, which is not supported. Pick another one.")
    return sorted(path for path in found if not found[path]), sorted(name for names in found.values() for name in names)


def _weights_in(path: str, weights: set[str], parameters: list[str]) -> list[str]:
    """Return the full names of the weights that an adapter changes in a module with several weights or experts."""
    names = [f"{path}.{leaf}" for leaf in sorted({name.rpartition(".")[2] for name in weights})]
    own = [name for name in names if name.endswith(tuple(weights))]
    # Where a module has one weight, its factors alone say that it is changed.
    return own if len(own) < 2 else [name for name in own if name.endswith(tuple(parameters))]


def read_head(folder: Path | str) -> Tensor:
    """Load the classification head of an adapter, fp32 `[labels, D]`.

    Raises:
        AdapterError: the adapter has no head, or the file is missing or damaged.
    """
    shape = _stored_shapes(Path(folder)).get(HEAD)
    if shape is None or len(shape) != 2:
        raise AdapterError("This adapter generates text and has no classification head. Pick one that classifies.")
    with safe_open(Path(folder) / WEIGHTS, framework="pt") as weights:
        return weights.get_tensor(HEAD).float()


def _has_head(stored: dict[str, Any]) -> bool:
    names = stored.get("modules_to_save")
    return isinstance(names, list) and "score" in names and all(name in [*HEADS] for name in names)


def _is_sound(name: str, value: Any) -> bool:
    """Return whether the value is valid for this setting."""
    if name == "lora_alpha":
        return _is_number(value)
    if name == "use_rslora":
        return isinstance(value, bool)
    if name in ("rank_pattern", "alpha_pattern"):
        # PEFT uses the names as regular expressions, and some of those never terminate.
        return isinstance(value, dict) and all(_is_pattern(key) and _is_number(value[key]) for key in value)
    if name in ("target_modules", "target_parameters"):
        return isinstance(value, str | list) and all(isinstance(target, str) for target in value)
    return name != "task_type" or value in list(peft.TaskType)


def _is_pattern(key: str) -> bool:
    try:
        return bool(SAFE_PATTERN.fullmatch(key) and re.compile(key))
    except re.error:
        return False


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def widened_config(config: peft.LoraConfig, family: Family) -> peft.LoraConfig:
    """Return the configuration with all expert tensors of the family as targets.

    PEFT requires the same target parameters for all adapters of a model. Those that the adapter lacks have rank 1, stay
    zero and are skipped.
    """
    weights = family.adapted_parameters
    targets, ranks = config.target_parameters or [], config.rank_pattern or {}
    paths = {path: ranks.get(get_pattern_key([*ranks], path), config.r) for path in targets if path not in weights}
    absent = dict.fromkeys((name for name in weights if name not in targets), 1)
    return peft.LoraConfig(
        **{name: getattr(config, name) for name in KEPT if name != "rank_pattern"},
        rank_pattern={**paths, **ranks, **absent},  # PEFT takes the first that matches
        target_modules=config.target_modules,
        target_parameters=list(weights),
        inference_mode=True,
    )


def is_classifier(folder: Path) -> bool:
    """Return whether the adapter has a classification head; False if its configuration can't be read."""
    with suppress(OSError, ValueError, RecursionError):
        stored = json.loads((folder / CONFIG).read_text())
        names = stored.get("modules_to_save") if isinstance(stored, dict) else None
        return isinstance(names, list) and "score" in names
    return False


def check_weights(folder: Path | str, config: peft.LoraConfig, model: nn.Module) -> dict[Factor, str]:
    """Compare the tensor names and shapes in the file's header with those that the configuration implies.

    Args:
        model: the adapter's base model. Its weights are not read and can be on the meta device.

    Returns:
        The names of the factors in the file.

    Raises:
        AdapterError: the file is missing or damaged, or its tensors don't match.
    """
    stored = _stored_shapes(Path(folder))
    stored.pop(HEAD, None)
    adapted = _blank(config, model)
    needed = {name: list(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
    wrong = sorted(needed.keys() ^ stored.keys())
    wrong += [name for name in needed.keys() & stored.keys() if needed[name] != stored[name]]
    if wrong:
        raise AdapterError(
            f"{len(wrong)} of the adapter's tensors are missing, unexpected or of another shape than this model's, "
            f"such as {wrong[0][:99]}. Pick the model that the adapter was trained on."
        )
    return factor_names(adapted)


def factor_names(adapted: peft.PeftModel) -> dict[Factor, str]:
    """Return the names of all factors in a weights file.

    Where PEFT nests the wrappers of several weights of one module, they depend on which of them are wrapped.
    """
    return {
        Factor(name.replace(".base_layer", ""), parameter_of(module), letter): f"{name}.lora_{letter}.weight"
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
        for letter in "AB"
    }


def _stored_shapes(folder: Path) -> dict[str, list[int]]:
    file = folder / WEIGHTS
    if not file.is_file():
        raise AdapterError(
            f"{folder.name} holds no {WEIGHTS}; other formats can run code when opened. Save it as safetensors."
        )
    try:
        with safe_open(file, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is damaged ({error}); save or download the adapter again.") from error


def _blank(config: peft.LoraConfig, model: Any) -> peft.PeftModel:
    """Return a copy of the model with an adapter on the meta device.

    Raises:
        AdapterError: the model has none of the layers that the configuration names.
    """
    with torch.device("meta"), quiet_peft():
        blank = type(model)(copy.deepcopy(model.config))
        try:
            return peft.PeftModel(blank, copy.deepcopy(config))
        except ValueError as error:
            raise AdapterError(
                f"The adapter changes layers that {model.config.family.name} does not have. Pick the model that the "
                "adapter was trained on."
            ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide a wrong warning: PEFT also applies rank_pattern to parameters, but looks for its keys among modules only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The following rank_pattern keys")
        yield
