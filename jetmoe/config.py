"""What the configurations of all families share: validation, groups of experts, types of rotary scaling."""

from __future__ import annotations

from typing import ClassVar

from transformers.configuration_utils import PreTrainedConfig

from jetmoe.families import Family

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "intermediate_size",
    "num_local_experts", "num_experts_per_tok", "max_position_embeddings",
)  # fmt: skip


class MoeConfig(PreTrainedConfig):
    """Base of the configurations. A family's class has the field names of its released checkpoints, and maps the names
    that shared code reads to them: `num_local_experts`, `head_dim`, `aux_loss_coef`."""

    keys_to_ignore_at_inference = ["past_key_values"]
    family: ClassVar[Family]

    def check(self) -> None:
        """Raise ValueError if fields contradict each other; the message names them and the fix."""
        problems = [
            f"{self._own_name(name)} is {getattr(self, name)!r}, it must be an integer of at least 1"
            for name in COUNTS
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        if problems:
            raise ValueError(f"The {self.family.name} configuration is invalid: " + "; ".join(problems) + ".")
        if problems := self.contradictions():
            raise ValueError(f"The {self.family.name} configuration is inconsistent: " + "; ".join(problems) + ".")

    def contradictions(self) -> list[str]:
        problems = []
        experts = self.num_local_experts
        if not self.score_temperature > 0:
            problems.append(f"score_temperature is {self.score_temperature}, it must be above 0")
        if not isinstance(self.score_prompt, str) or self.score_prompt.count("{text}") != 1:
            problems.append(f"score_prompt is {self.score_prompt!r}, it must contain {{text}} exactly once")
        if self.num_experts_per_tok > experts:
            problems.append(
                f"num_experts_per_tok is {self.num_experts_per_tok}, more than the {experts} of "
                f"{self._own_name('num_local_experts')}"
            )
        if experts > 256:
            problems.append(f"{self._own_name('num_local_experts')} is {experts}; routing traces allow at most 256")
        if self.head_dim % 2:
            problems.append(f"{self._own_name('head_dim')} is {self.head_dim}, rotary embeddings need an even number")
        return problems

    def check_rope_type(self) -> str:
        """Return the type of rotary scaling. `rope_parameters` can be replaced at any time, so this checks them too.

        Raises:
            ValueError: the type is not supported.
        """
        parameters = self.rope_parameters or {}
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in ROPE_TYPES:
            known = ", ".join(ROPE_TYPES)
            raise ValueError(f"rope_type is {kind}; {self.family.name} supports {known}. Set rope_type to one of them.")
        return kind

    @property
    def groups(self) -> list[int]:
        """Group of each expert, `[E]`; the identity unless the model ties experts."""
        return getattr(self, "expert_groups", None) or list(range(self.num_local_experts))

    @property
    def gates_sum_to_one(self) -> bool:
        """Whether the gates are the probabilities of the selected experts divided by their sum."""
        return True

    def _own_name(self, name: str) -> str:
        """Return the family's name of a field."""
        return self.attribute_map.get(name, name)
