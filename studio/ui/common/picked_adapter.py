"""Which adapter answers: what a browser keeps of it, and what the picker offers.

picked = read_picked({"adapter": "3f2a", "beside": True})      # from a browser, so it may be anything
adapter = fitting(picked.adapter, "starter")                   # None: the model alone
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from studio.backend.adapters.find import choices as adapter_choices
from studio.backend.adapters.uploads import Choice
from studio.errors import StudioError

GONE = " – no longer there"
NONE = Choice("", "No adapter (base model)")


@dataclass(frozen=True)
class Picked:
    adapter: str = ""
    """The id; empty is the model alone."""
    beside: bool = False
    """Whether the base answers too, side by side."""

    def kept(self) -> dict[str, Any]:
        """For the browser's storage."""
        return asdict(self)


def read_picked(stored: Any) -> Picked:
    """What the browser kept, or no adapter; without one there is nothing to be beside of."""
    stored = stored if isinstance(stored, dict) else {}
    adapter = stored.get("adapter")
    adapter = adapter[:200] if isinstance(adapter, str) else ""
    return Picked(adapter, bool(adapter) and stored.get("beside") is True)


def offered(model_id: str | None, owner: str = "") -> list[tuple[str, str]]:
    """The picker's choices for an owner: title and id, the base first."""
    fit = [] if model_id is None else adapter_choices(model_id, owner=owner)
    return [(choice.title, choice.id) for choice in (NONE, *fit)]


def still_listed(choices: list[tuple[str, str]], listed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The choices for a list that is open already: it never gets shorter, because that breaks Gradio's dropdown."""
    there = {adapter for _, adapter in choices}
    gone = [(title.removesuffix(GONE) + GONE, adapter) for title, adapter in listed if adapter not in there]
    return choices + gone


def fitting(adapter_id: str, model_id: str | None, owner: str = "") -> Choice | None:
    """The owner's adapter of this id; None is the model alone.

    Raises:
        StudioError: there is none (any more), or it is of another model.
    """
    if not adapter_id:
        return None
    title = {identity: title for title, identity in offered(model_id, owner)}.get(adapter_id)
    if title is None:
        raise StudioError(
            f"The adapter that is picked does not fit {model_id}: it was deleted or is of another model. Pick another "
            "one below the conversation."
        )
    return Choice(adapter_id, title)
