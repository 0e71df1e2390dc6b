"""`python -m studio train`: train in this process and store the run with the page's runs.

python -m studio train recipes/starter/lora_experts.yaml data=devils-dictionary
python -m studio train starter/lora_all data=rows.csv max_steps=200 --dry-run
python -m studio classify train starter/classify data=reviews.csv
accelerate launch --config_file recipes/accelerate/ddp.yaml -m studio train jetmoe-8b/qlora_all data=rows.jsonl
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli.runs import Json, RunId

if TYPE_CHECKING:
    from studio.backend.runs.events import TrainEvent
    from studio.backend.runs.run import Run

EVALUATED = {
    "eval_loss": "loss", "eval_accuracy": "accuracy", "eval_macro_f1": "macro-F1",
    "eval_mean_absolute_error": "mean absolute error", "eval_r2": "R²",
}  # fmt: skip
Settings = Annotated[list[str] | None, typer.Argument(help="setting=value pairs that override the recipe.")]
RecipeName = Annotated[str, typer.Argument(help="Recipe file, or the name of a bundled recipe.")]
Name = Annotated[str, typer.Option(help="Name of the run in lists.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the trained parts, memory and time, then exit.")]


def train(
    recipe: RecipeName, settings: Settings = None, name: Name = "", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Train a LoRA adapter with a recipe; `runs list` lists the runs."""
    from studio.backend.recipe import Recipe

    chosen = Recipe.load(recipe, settings or [])
    _quiet()
    if dry_run:
        _print_audit(chosen, as_json)
        return
    from studio.backend.training import run as training

    run = training.start(chosen, name, show=_nothing if as_json else _show)
    _print_run(run, as_json)


def train_classifier(
    recipe: RecipeName, settings: Settings = None, name: Name = "", dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Train a classification head and a LoRA adapter with a recipe: `train` with task=classify."""
    train(recipe, [*(settings or []), "task=classify"], name, dry_run, as_json)


def resume(run: RunId, as_json: Json = False) -> None:
    """Resume a run that ended early from its last complete checkpoint."""
    _quiet()
    from studio.backend.training import run as training

    _print_run(training.resume(run, show=_nothing if as_json else _show), as_json)


def _print_audit(recipe: Any, as_json: bool) -> None:
    from studio.backend.models import placement
    from studio.backend.training.audit import audit_report, table
    from studio.backend.training.cpu_memory import require_memory
    from studio.backend.training.prepare import prepare, processes
    from studio.backend.training.run import OUT_OF_MEMORY

    with placement.shortage(OUT_OF_MEMORY):
        prepared = prepare(recipe)
        require_memory(prepared)
        report = audit_report(prepared)
    if processes().is_main_process:
        print(json.dumps(report) if as_json else table(report))


def _print_run(run: Run, as_json: bool) -> None:
    from studio.backend.training.prepare import processes

    if not processes().is_main_process:
        return
    if as_json:
        print(json.dumps(run.row()))
        return
    measured = ""
    use = f"Chat: python -m studio chat --adapter {run.id[:8]}"
    if run.recipe().task == "classify":
        from studio.backend.classification import evaluation

        use = f"Classify: python -m studio classify predict --adapter {run.id[:8]} TEXT"
        report = evaluation.of_run(run)
        measured = f"\n{evaluation.table(report)}\n\n" if report else ""
    print(f"{run.message}\n{measured}Adapter: {run.adapter}\n{use}")


def _nothing(event: TrainEvent) -> None:
    pass


def _show(event: TrainEvent) -> None:
    """Print an event as a readable line on stderr."""
    if text := _line(event):
        print(text, file=sys.stderr, flush=True)


def _line(event: TrainEvent) -> str:
    from studio.backend.training.audit import duration, table

    values = event.values
    match event.kind:
        case "audit":
            return table(values) if "rows" in values else ""
        case "log":
            return (
                f"step {event.step:5}  loss {values['loss']:.4f}  lr {values['learning_rate']:.2e}  "
                f"grad {values.get('grad_norm') or 0:.2f}  {values['tok_s']:.0f} tok/s  "
                f"{values['memory_gib']:.1f} GiB  {duration(values['left_s'])} left"
            )
        case "reading":
            return f"read {values['done']:,} of {values['rows']:,} rows"
        case "eval":
            figures = [f"{name} {values[key]:.4f}" for key, name in EVALUATED.items() if values.get(key) is not None]
            return f"step {event.step:5}  held-out {', '.join(figures)}"
        case "routing":
            return f"step {event.step:5}  routing: {values['flip_rate']:.1%} of strongest experts changed"
        case "sample":
            return f"  > {values['prompt'][:70]!r}\n    {values['answer'][:200]!r}"
        case "warning" | "failed":
            return f"Note: {values['message']}"
    return ""


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
