"""Specialists: adapters that change a few experts each, and their composition into one adapter.

    with only(model, replica(model.config, 2)).on(model):
        ...                                                  # train LoRA on the experts of replica 2
    compose(model, ["python", "french"], [python_ids, french_ids], "composed")

A specialist is trained with every token routed to its experts, and changes nothing else. Specialists that change
different experts fit into one adapter, in which each keeps its weights. Then routers are fitted to send each domain to
its specialist: a softmax regression on the inputs that they get there, without backpropagation through the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor

from jetmoe.adapters.files import WEIGHTS, Factor, check_weights, factor_names, read_config
from jetmoe.adapters.wrappers import unwrap, wrappers
from jetmoe.config import MoeConfig
from jetmoe.families import Family, Targets
from jetmoe.interventions import Intervention, find_decoder, routers_of
from jetmoe.low_rank import AdapterError
from jetmoe.routers import CHUNK, softmax_regression


def replica(config: MoeConfig, number: int) -> list[int]:
    """Return the experts of one replica, a complete copy of the dense layer that the model was upcycled from.

    Raises:
        ValueError: the model has no replicas, or not that one.
    """
    groups = getattr(config, "expert_groups", None)
    if groups is None:
        raise ValueError("This model has no replicas; name its experts one by one.")
    if number not in groups:
        raise ValueError(f"There is no replica {number}: they go from 0 to {max(groups)}.")
    return [expert for expert, group in enumerate(groups) if group == number]


def only(config: MoeConfig, experts: Iterable[int]) -> Intervention:
    """Return the intervention that routes every token to these experts, of each layer and router kind.

    Raises:
        ValueError: an expert does not exist, or they are fewer than a router selects.
    """
    kept, E = {*experts}, config.num_local_experts
    if wrong := sorted(expert for expert in kept if not 0 <= expert < E):
        raise ValueError(f"There is no expert {wrong[0]}: they go from 0 to {E - 1}.")
    return Intervention(config).mask([expert for expert in range(E) if expert not in kept])


def changed_experts(folder: Path | str, model: Any) -> Tensor:
    """Return the experts that an adapter changes, bool `[L, N, E]`: those whose `lora_B` is not zero.

    Raises:
        AdapterError: the files are not an adapter of this model, or it changes more than experts.
    """
    return _read(folder, model).experts


def compose(
    model: Any, folders: Sequence[Path | str], domains: Sequence[Tensor], to: Path | str, rest: Tensor | None = None
) -> peft.PeftModel:
    """Unite specialists into one adapter of `model`, and fit its routers to their domains.

    Args:
        model: the base model, without adapters.
        folders: adapters that change different experts.
        domains: token ids `[T]` of the domain of each specialist.
        to: folder for the adapter.
        rest: token ids `[T]` of other text, for experts that no specialist changes.

    Returns:
        The model with the new adapter.

    Raises:
        AdapterError: an adapter is no specialist of this model, or two have other settings or change the same expert.
    """
    specialists = [_read(folder, model) for folder in folders]
    _check(specialists)
    classes = torch.stack([one.experts for one in specialists])  # [S, L, N, E]
    texts = [*domains]
    if rest is not None:
        classes, texts = torch.cat([classes, ~classes.any(0, keepdim=True)]), [*texts, rest]
    _check_rank(model.config, classes, specialists[0].config.r)
    _united(model, specialists, routers=False)
    inputs = [_router_inputs(model, _mask(model.config, one), ids) for one, ids in zip(classes, texts, strict=True)]
    unwrap(model)
    adapted = _united(model, specialists, routers=True)
    _fit_routers(adapted, classes, inputs)
    adapted.save_pretrained(str(to))
    return adapted


class _Specialist(NamedTuple):
    config: peft.LoraConfig
    weights: dict[Factor, Tensor]
    experts: Tensor  # [L, N, E] bool, those that it changes
    name: str


def _read(folder: Path | str, model: Any) -> _Specialist:
    config, family, name = read_config(folder), model.config.family, Path(folder).name
    names = check_weights(folder, config, model)
    stored = load_file(Path(folder) / WEIGHTS)
    weights = {factor: stored[key] for factor, key in names.items()}
    L, N, E = Intervention(model.config).forced.shape
    experts = torch.zeros(L, N, E, dtype=torch.bool)
    for factor, tensor in weights.items():
        if not _adapts_experts(factor, family):
            raise AdapterError(
                f"{name} changes {factor.layer}, which all experts share. A specialist is trained with a preset of "
                f"experts alone: {'moa+experts' if 'moa' in family.presets else 'experts'}."
            )
        if factor.letter == "B":
            used = tensor.unflatten(1, (-1, E)).any(dim=0).any(dim=0)  # [E]
            experts[_layer(factor.layer), family.kind_index(factor.layer)] |= used
    return _Specialist(config, weights, experts, name)


def _check(specialists: Sequence[_Specialist]) -> None:
    if not specialists:
        raise AdapterError("There are no specialists to compose.")
    first, taken = specialists[0], torch.zeros_like(specialists[0].experts, dtype=torch.long)  # 1 + the specialist
    for number, one in enumerate(specialists, start=1):
        if not one.experts.any():
            raise AdapterError(f"{one.name} changes no expert. Train it first.")
        settings = [(each.config.r, each.config.lora_alpha, each.weights.keys()) for each in (first, one)]
        if settings[0] != settings[1]:
            raise AdapterError(
                f"{first.name} and {one.name} have another rank, lora_alpha or preset. Train them alike."
            )
        if (both := one.experts & (taken > 0)).any():
            layer, kind, expert = both.nonzero()[0].tolist()
            other = specialists[int(taken[layer, kind, expert]) - 1]
            raise AdapterError(
                f"{other.name} and {one.name} both change expert {expert} of layer {layer}. Train one of them on other "
                "experts."
            )
        taken[one.experts] = number


def _check_rank(config: MoeConfig, classes: Tensor, rank: int) -> None:
    """Check that the routers' new rows fit; classes `[S, L, N, E]`."""
    groups = getattr(config, "expert_groups", None)
    needed = len(classes) + int(not classes.any(0).all()) if groups is None else len({*groups})
    if rank < needed:
        raise AdapterError(f"The routers need a rank of {needed}, and the specialists have {rank}. Train them with it.")


def _united(model: Any, specialists: Sequence[_Specialist], routers: bool) -> peft.PeftModel:
    """Add an adapter with the factors of all specialists; with `routers`, also zero factors for all routers."""
    config, family = specialists[0].config, model.config.family
    targets = family.routers if routers else Targets()
    adapted = peft.PeftModel(
        model,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            target_modules=[*targets.modules],
            target_parameters=[*(config.target_parameters or []), *targets.parameters],
            task_type="CAUSAL_LM",
        ),
    )
    names = factor_names(adapted)
    factors = {names[factor]: _joined(factor, specialists, family) for factor in specialists[0].weights}
    peft.set_peft_model_state_dict(adapted, factors)
    return adapted.requires_grad_(False).eval()  # type: ignore[return-value]


def _joined(factor: Factor, specialists: Sequence[_Specialist], family: Family) -> Tensor:
    """Return a factor in which each expert is that of the specialist that changes it, or zero."""
    place = _layer(factor.layer), family.kind_index(factor.layer)
    joined = torch.zeros_like(specialists[0].weights[factor])
    for one in specialists:
        mask, source = one.experts[place], one.weights[factor]  # [E]
        if factor.letter == "A":
            joined.unflatten(0, (len(mask), -1))[mask] = source.unflatten(0, (len(mask), -1))[mask]  # of [E, R, in]
        else:
            joined.unflatten(1, (-1, len(mask)))[..., mask] = source.unflatten(1, (-1, len(mask)))[..., mask]
    return joined


def _mask(config: MoeConfig, experts: Tensor) -> Intervention:
    """Route to these experts `[L, N, E]`; a router without any of them stays as it is."""
    change = Intervention(config)
    for layer, kinds in enumerate(experts):
        for kind, kept in zip(config.family.router_kinds, kinds, strict=True):
            if kept.any():
                change = change.mask((~kept).nonzero().flatten().tolist(), [layer], kind)
    return change


@torch.no_grad()
def _router_inputs(model: Any, change: Intervention, token_ids: Tensor) -> Tensor:
    """Return the inputs of all routers, `[L * N, T, D]` float16, with this routing."""
    decoder, seen = find_decoder(model), list[Tensor]()
    hooks = [
        router.register_forward_pre_hook(lambda module, args: seen.append(args[0].half()))
        for router in routers_of(model)
    ]
    parts = []
    try:
        with change.on(model):
            for ids in token_ids.split(CHUNK):
                seen.clear()
                decoder(ids[None].to(model.device), use_cache=False)
                parts.append(torch.stack([rows.flatten(0, -2) for rows in seen]).cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(parts, dim=1)


def _fit_routers(adapted: peft.PeftModel, classes: Tensor, inputs: Sequence[Tensor]) -> None:
    """Set the routers' factors so that the experts of each class get its inputs; classes `[S, L, N, E]`."""
    labels = torch.cat([torch.full((each.shape[1],), number) for number, each in enumerate(inputs)])
    groups = getattr(adapted.config, "expert_groups", None)
    for number, wrapper in enumerate(_router_wrappers(adapted)):
        members = classes.flatten(1, 2)[:, number]  # [S, E]
        if not members.any(-1).all():
            continue  # a specialist that leaves this router's experts alone has no place here
        rows = torch.cat([each[number] for each in inputs]).float()  # [T, D], of all classes
        fitted = softmax_regression(rows, labels, len(members))  # [S, D]
        fitted = torch.cat([fitted, fitted.mean(0, keepdim=True)])  # the last is of no class, and never wins
        place = torch.where(members.any(0), members.float().argmax(0), len(members))  # [E]
        weight = wrapper.get_base_layer().weight.detach().float().cpu()  # [E, D]
        if groups is None:
            _set_rows(wrapper, fitted * _strength(rows @ weight.T, rows @ fitted.T, labels), place)
        else:
            firsts = torch.tensor([groups.index(group) for group in range(max(groups) + 1)])
            _set_rows(wrapper, fitted[place[firsts]] - weight[firsts], torch.tensor(groups))


def _strength(logits: Tensor, scores: Tensor, labels: Tensor) -> float:
    """Return the factor of the classes' scores `[T, S + 1]` that makes them decide, not the router's logits `[T, E]`.

    The specialists were trained with all other experts masked, which is the limit of a large factor.
    """
    if scores.shape[1] == 2:  # one class and none
        return 1.0
    own = scores.gather(1, labels[:, None])  # [T, 1]
    others = scores[:, :-1].scatter(1, labels[:, None], -torch.inf).amax(-1, keepdim=True)
    margin, spread = (own - others).flatten(), logits.amax(-1) - logits.amin(-1)  # [T]
    small = max(float(margin.quantile(0.05)), float(margin.median()) / 4, 1e-3)
    return max(1.0, 2 * float(spread.quantile(0.95)) / small)


def _set_rows(wrapper: Any, rows: Tensor, place: Tensor) -> None:
    """Make a router's factors add row `place[e]` of `rows` `[m, D]` to the row of expert e."""
    (name,) = wrapper.lora_A
    A, B = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
    with torch.no_grad():
        A.zero_()[: len(rows)] = rows[: len(A)].to(A)
        B.zero_()[torch.arange(len(place)), place] = 1 / wrapper.scaling[name]


def _router_wrappers(adapted: peft.PeftModel) -> list[Any]:
    """Return the wrappers of the routers' weights, in the order of the model's layers and router kinds.

    A router is wrapped itself, or it holds the wrapped layer.
    """
    names = {module: name.removesuffix(".base_layer") for name, module in adapted.named_modules()}
    found = [(name, module) for name, module in wrappers(adapted)]
    paths = [f"{names[router]}." for router in routers_of(adapted)]
    return [next(module for name, module in found if f"{name}.".startswith(path)) for path in paths]


def _adapts_experts(factor: Factor, family: Family) -> bool:
    return f"{factor.layer}.{factor.parameter}".endswith(family.expert_weights)


def _layer(path: str) -> int:
    return int(path.partition(".layers.")[2].partition(".")[0])
