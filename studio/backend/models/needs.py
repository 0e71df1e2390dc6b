"""What a model needs and what this machine has: the download, the disk and the memory.

needs = needs_of(catalog.entry("allenai/OLMoE-1B-7B-0924"), "nf4", loaded_gib=1.5)
needs.problem                          # a sentence, or "" if the model can be loaded
require_step_memory(recipe, 512)       # raises StudioError if a step with the starter does not fit
rows()                                 # what `models --json` prints
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from studio.backend.models import catalog, hub, placement
from studio.backend.models.catalog import GIB, ModelEntry
from studio.backend.models.placement import Placement, Precision
from studio.backend.recipe import Recipe
from studio.backend.system.home import home
from studio.backend.system.plan import free_disk
from studio.errors import StudioError

# Of the starter in bf16: what a step needs for each token of a batch, without gradient checkpointing (measured by
# `python -m tests.benchmarks.step_memory`) and with it (the inputs of 30 layers and what one of them saves), and what a
# process needs, with an adapter for each of its ranks.
STEP_MIB = {False: 1.4, True: 0.15}
PROCESS_GIB, RANK_GIB = 1.8, 0.023


@dataclass(frozen=True)
class Needs:
    """All sizes in GiB."""

    model: ModelEntry
    asked: Precision
    place: Placement
    download_gib: float
    """0 if the model is on the disk."""
    disk_gib: float
    """Free on the disk that the model is downloaded to."""
    memory_gib: float
    free_gib: float
    loaded_gib: float
    """Memory of the loaded model, which can be freed."""
    notice: str = ""
    """Why the size of the download is that of the catalog."""

    @property
    def fits_beside(self) -> bool:
        """Whether the model and the loaded one fit into the memory together."""
        return self.memory_gib <= self.free_gib

    @property
    def problem(self) -> str:
        """Why the model can't be loaded, with a remedy; empty if it can."""
        if self.download_gib > self.disk_gib:
            variable = "STUDIO_HOME" if self.model.source == "built" else "HF_HOME"
            return (
                f"The disk is too full: {self.download_gib:.1f} GiB are needed and {self.disk_gib:.1f} GiB are free. "
                f"Free some space, or set {variable} to a folder on another disk."
            )
        try:
            placement.placement(self.model, self.asked, self.loaded_gib)
        except StudioError as error:
            return str(error)
        return ""


def needs_of(model: ModelEntry, precision: Precision, loaded_gib: float = 0.0, token: bool | None = None) -> Needs:
    """Return what a model needs; asks the Hub about a model that is not on the disk.

    If the Hub can't be reached, the sizes are those of the catalog.

    Args:
        loaded_gib: memory of the loaded model.
        token: as of `hub.look`.

    Raises:
        StudioError: the Hub has no such model, or the studio can't load it.
    """
    placement.check_precision(precision)
    notice, missing = "", 0.0
    if not catalog.ready(model):
        missing = model.download_gib
        if model.source != "built" and not catalog.is_folder(model):
            try:
                model, missing_bytes = catalog.look(model, token)
                missing = missing_bytes / GIB
            except hub.Unreachable as error:
                if not model.needs_gib:
                    raise
                notice = str(error)
    place = placement.place_of(model, precision)
    return Needs(
        model,
        precision,
        place,
        missing,
        _free_disk(model),
        placement.needed_gib(model, place),
        placement.free_gib(place),
        loaded_gib,
        notice,
    )


def require_step_memory(recipe: Recipe, longest: int) -> None:
    """Raise StudioError if a run with the starter needs more memory than a CPU has free.

    This is arithmetic from measured figures, without a model. The process of a run measures every model.

    Args:
        longest: tokens of the longest row of a batch.
    """
    if recipe.model != catalog.STARTER.id or recipe.method == "probe":
        return
    place = placement.place_of(catalog.STARTER, recipe.precision)
    if place.device != "cpu":
        return
    step_gib = recipe.batch_size * longest * STEP_MIB[recipe.gradient_checkpointing] / 1024
    wide = 2 if place.precision == "fp32" else 1
    needed, free = wide * (PROCESS_GIB + step_gib) + RANK_GIB * recipe.r, placement.free_gib(place)
    if needed > free:
        raise StudioError(
            f"A step of this run needs up to {needed:.1f} GiB of memory, and {free:.1f} GiB are free: lower batch_size "
            "or max_length, or set gradient_checkpointing. Change that under Recipe."
        )


def _free_disk(model: ModelEntry) -> float:
    folder = home() if model.source == "built" else Path(constants.HF_HUB_CACHE)
    return free_disk(folder) / GIB
