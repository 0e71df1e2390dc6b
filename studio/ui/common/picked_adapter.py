"""The selected adapter: the value in browser storage, and the choices of the dropdown.

picked = read_picked({"adapter": "3f2a", "beside": True})      # untrusted input from a browser
adapter = fitting(picked.adapter, "starter")                   # None: the base model
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from studio.backend.adapters.find import choices as adapter_choices
from studio.backend.adapters.uploads import Choice
from studio.errors import StudioError

GONE = " – no longer available"
NONE = Choice("", "No adapter (base model)")


@dataclass(frozen=True)
class Picked:
    adapter: str = ""
    """Adapter id; empty for the base model."""
    beside: bool = False
    """Whether the base model answers too, side by side."""

    def kept(self) -> dict[str, Any]:
        """Return the value for browser storage."""
        return asdict(self)


def read_picked(stored: Any) -> Picked:
    """Read the stored selection; invalid values select no adapter, and without an adapter `beside` is False."""
    stored = stored if isinstance(stored, dict) else {}
    adapter = stored.get("adapter")
    adapter = adapter[:200] if isinstance(adapter, str) else ""
    return Picked(adapter, bool(adapter) and stored.get("beside") is True)


def offered(model_id: str | None, owner: str = "") -> list[tuple[str, str]]:
    """Return the dropdown's (title, id) choices for an owner, with the base model first."""
    fit = [] if model_id is None else adapter_choices(model_id, owner=owner)
    return [(choice.title, choice.id) for choice in (NONE, *fit)]


def keep_listed(choices: list[tuple[str, str]], listed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the choices for a list that is already open; it must not get shorter, which breaks Gradio's dropdown."""
    there = {adapter for _, adapter in choices}
    gone = [(title.removesuffix(GONE) + GONE, adapter) for title, adapter in listed if adapter not in there]
    return choices + gone


def fitting(adapter_id: str, model_id: str | None, owner: str = "") -> Choice | None:
    """Return the owner's adapter with this id; None for the base model.

    Raises:
        StudioError: the adapter does not exist or belongs to another model.
    """
    if not adapter_id:
        return None
    title = {identity: title for title, identity in offered(model_id, owner)}.get(adapter_id)
    if title is None:
        raise StudioError(
            f"The selected adapter does not fit {model_id}: it was deleted or belongs to another model. Select another "
            "one under “Adapter”."
        )
    return Choice(adapter_id, title)
