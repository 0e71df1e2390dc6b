"""Compose specialists: join the adapters of several runs, fit the routers, and measure what each domain keeps.

    report = compose(["3f2a", "90bc"], "python and french", owner="")
    report.adapter                     # `Choice`, as for an uploaded adapter
    report.rows[0].kept                # the share of the specialist's gain that its domain keeps, 0 to 1 and more

The domain of a specialist is the data that its run was trained on: its training rows fit the routers, its held-out rows
measure. Losses are in nats per trained token.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from jetmoe import RoutingRecorder
from jetmoe import specialists as joined
from jetmoe.adapters.files import CONFIG, WEIGHTS
from jetmoe.adapters.switching import Adapters
from jetmoe.low_rank import AdapterError
from jetmoe.specialists import only
from studio.backend.adapters.uploads import Choice, import_adapter
from studio.backend.data.packing import Collator, Feature, pad_id
from studio.backend.models import catalog, placement
from studio.backend.recipe import Recipe
from studio.backend.runs.run import Run
from studio.backend.runs.store import RunStore
from studio.backend.system.progress import Progress, reading
from studio.backend.training.prepare import prepare_data, specialist_experts
from studio.errors import StudioError

FITTED_TOKENS = 2000
"""Tokens of each domain that fit the routers."""
MEASURED_ROWS = 24
"""Held-out rows of each domain that are measured."""
FEWEST, MOST = 1, 16


@dataclass(frozen=True)
class DomainRow:
    """What the composition makes of one domain."""

    run: str
    """Name of the specialist's run."""
    base: float
    specialist: float
    """Loss with every token routed to the specialist."""
    composed: float
    """Loss with the fitted routers."""
    shares: tuple[float, ...]
    """The share of the assignments that goes to each specialist."""

    @property
    def kept(self) -> float:
        gain = self.base - self.specialist
        return (self.base - self.composed) / gain if gain > 0 else float("nan")


@dataclass(frozen=True)
class Composition:
    adapter: Choice
    rows: list[DomainRow]
    fitted_tokens: list[int]


@dataclass(frozen=True)
class _Domain:
    run: Run
    recipe: Recipe
    fit: Tensor
    """Token ids `[T]`."""
    measured: list[Feature]
    experts: list[int]


def compose(
    run_ids: Sequence[str],
    name: str,
    owner: str = "",
    rest: str = "",
    progress: Progress = lambda fraction, text: None,
) -> Composition:
    """Join the specialists of these runs into one adapter, which the chat then offers.

    Args:
        rest: data file or bundled sample whose text goes to the experts that no specialist has.

    Raises:
        StudioError: a run is no finished specialist, they don't fit together, or their data is gone.
    """
    if not FEWEST <= len(run_ids) <= MOST:
        raise StudioError(f"Name {FEWEST} to {MOST} runs; these are {len(run_ids)}.")
    runs = [_finished(RunStore().get(run_id, owner)) for run_id in run_ids]
    recipes = [run.recipe() for run in runs]
    if len({(recipe.model, recipe.precision) for recipe in recipes}) > 1:
        raise StudioError("The runs have different models or precisions. Compose specialists of one model.")
    model_id = recipes[0].model
    path = catalog.prepare(model_id, progress)
    tokenizer = AutoTokenizer.from_pretrained(path)
    place = placement.placement(catalog.entry(model_id), cast(placement.Precision, recipes[0].precision))
    model = placement.load_model(path, place, "pick a smaller model", reading(progress))
    domains = [_domain(run, recipe, tokenizer, model) for run, recipe in zip(runs, recipes, strict=True)]
    others = None if not rest else _tokens(prepare_data(Recipe.from_settings({"data": rest}), tokenizer).train)
    pad = pad_id(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        before = [(_loss(model, each, pad), _specialists_loss(model, each, pad)) for each in domains]
        try:
            joined.compose(
                model, [each.run.adapter for each in domains], [each.fit for each in domains], folder, others
            )
        except AdapterError as error:
            raise StudioError(str(error)) from error
        rows = [
            DomainRow(each.run.name, base, own, _loss(model, each, pad), _shares(model, each, domains))
            for each, (base, own) in zip(domains, before, strict=True)
        ]
        adapter = import_adapter([Path(folder) / file for file in (CONFIG, WEIGHTS)], name, model_id, owner)
    return Composition(adapter, rows, [len(each.fit) for each in domains])


def _finished(run: Run) -> Run:
    if not run.folder_exists or not (run.adapter / WEIGHTS).is_file():
        raise StudioError(f"The run {run.name or run.id[:8]} has no adapter yet. Let it finish first.")
    if not run.recipe().specialist:
        raise StudioError(
            f"The run {run.name or run.id[:8]} is no specialist: it was trained without the setting specialist."
        )
    return run


def _domain(run: Run, recipe: Recipe, tokenizer: Any, model: Any) -> _Domain:
    data = prepare_data(recipe, tokenizer)
    measured = [*(data.held_out or data.train)][:MEASURED_ROWS]
    return _Domain(run, recipe, _tokens(data.train), measured, specialist_experts(model.config, recipe.specialist))


def _tokens(rows: Sequence[Feature]) -> Tensor:
    """Return the first tokens of the rows `[T]`."""
    ids = [token for row in rows for token_ids, _ in row for token in token_ids]
    return torch.tensor(ids[:FITTED_TOKENS])


def _specialists_loss(model: Any, domain: _Domain, pad: int) -> float:
    adapters = Adapters(model)
    adapters.load(domain.run.adapter, "specialist")
    adapters.use("specialist")
    with only(model.config, domain.experts).on(model):
        loss = _loss(model, domain, pad)
    adapters.remove("specialist")
    return loss


@torch.no_grad()
def _loss(model: Any, domain: _Domain, pad: int) -> float:
    """Return the mean loss of the trained tokens of the domain's held-out rows."""
    total, count, collate = 0.0, 0, Collator(pad)
    for row in domain.measured:
        batch = {name: tensor.to(model.device) for name, tensor in collate([row]).items()}
        tokens = int((batch["labels"] >= 0).sum())
        total += float(model(**batch, use_cache=False, skip_logits=True).loss) * tokens
        count += tokens
    return total / max(count, 1)


@torch.no_grad()
def _shares(model: Any, domain: _Domain, domains: Sequence[_Domain]) -> tuple[float, ...]:
    ids = _tokens(domain.measured).to(model.device)
    with RoutingRecorder(model, len(ids)) as recorder:
        model.model(ids[None], use_cache=False)
    experts = recorder.experts[: len(ids)].cpu()  # [T, L * N, K]
    return tuple(float(torch.isin(experts, torch.tensor(each.experts)).float().mean()) for each in domains)
