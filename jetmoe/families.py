"""What distinguishes model families: the names of their experts, routers and projections.

    family = FAMILIES["olmoe"]
    family.presets["attention"]         # Targets(modules=("q_proj", "k_proj", "v_proj", "o_proj"), parameters=())

A family's module in `jetmoe/models` makes its `Family`, which its configuration class then holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Targets(NamedTuple):
    """What an adapter changes: linear layers by module name, other weights by parameter name, as in PEFT."""

    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def __or__(self, other: Targets) -> Targets:  # type: ignore[override]
        return Targets((*self.modules, *other.modules), (*self.parameters, *other.parameters))


@dataclass(frozen=True)
class Family:
    name: str
    """As in messages."""
    model_type: str
    experts: dict[str, tuple[str, ...]]
    """The expert weights of each router kind, in the order of the routers of a layer, by the end of their names."""
    projections: tuple[str, ...]
    """Names of the linear layers of attention, which are in 4 bits like the experts."""
    routers: Targets
    parts: dict[str, tuple[str, ...]]
    """The parts that an audit lists, by the end of their parameters' names; the first match counts."""

    @property
    def router_kinds(self) -> tuple[str, ...]:
        return tuple(self.experts)

    @cached_property
    def expert_weights(self) -> tuple[str, ...]:
        return tuple(name for names in self.experts.values() for name in names)

    @cached_property
    def adapted_parameters(self) -> tuple[str, ...]:
        """Names of the weights that presets adapt outside linear layers."""
        return (*self.expert_weights, *self.routers.parameters)

    @cached_property
    def presets(self) -> dict[str, Targets]:
        """The LoRA presets. "hot" trains like "all", with the gradients of some experts masked."""
        kinds = {kind: Targets(parameters=names) for kind, names in self.experts.items()}
        attention = Targets(self.projections)
        found = {"attention": attention | kinds.get("MoA", Targets()), "experts": kinds["MoE"]}
        if "MoA" in kinds:
            found["moa"] = kinds["MoA"]
        everything = found["attention"] | found["experts"]
        return found | {"all": everything, "hot": everything, "router": self.routers}

    @cached_property
    def linears(self) -> tuple[str, ...]:
        """Names of the linear layers that presets adapt."""
        return (*self.projections, *self.routers.modules)

    def kind_index(self, name: str) -> int:
        """Return the index of the router that selects these experts, by the path of their layer."""
        for index, names in enumerate(self.experts.values()):
            if any(f"{name}.".endswith(f"{end.rpartition('.')[0]}.") for end in names):
                return index
        raise KeyError(name)

    def part_of(self, name: str) -> str:
        """Return the part that a parameter or a LoRA factor belongs to."""
        name = re.sub(r"\.(base_layer|original_module|modules_to_save\.\w+)(?=\.)", "", name)  # PEFT's components
        layer, factor, _ = name.partition(".lora_")
        plain = f"{layer}.weight" if factor else layer
        return next(part for part, endings in self.parts.items() if plain.endswith(endings))


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    FAMILIES[family.model_type] = family
    return family
