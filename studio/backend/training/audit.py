"""Audit a run before it starts: which parameters are trained, and how much memory and time the run needs.

    report = audit_report(prepared)      # rows, warnings, forecast: printed by `train --dry-run`, shown on the page
    print(table(report))

Parameters are counted in the model itself, and time is measured on real rows. Memory is the peak of a trial on a GPU;
on a CPU, it is computed from what the trial saves for its backward pass.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch

from jetmoe.adapters.audit import AuditRow, audit
from studio.backend.classification.features import BATCH_TOKENS, last_hidden
from studio.backend.data.labelled import shown
from studio.backend.data.packing import in_batches, pad_id
from studio.backend.data.rendering import Rendered, Span, preview
from studio.backend.recipe import Recipe
from studio.backend.runs.run import CHECK, Run
from studio.backend.system.plan import available_memory
from studio.backend.training import cpu_memory, fsdp, gpu_memory
from studio.backend.training.fitted_head import rows_to_fit
from studio.backend.training.prepare import Prepared, processes

TRIAL_STEPS = 3
GIB = 2**30


def audit_report(prepared: Prepared, checked: dict[str, float] | None = None) -> dict[str, Any]:
    """Return the rows of the audit, the warnings and the forecast as plain data.

    Args:
        checked: the forecast of an earlier report on the same run, which is then not measured again.
    """
    rows = audit(prepared.model)
    total = sum(row.trained for row in rows)
    return {
        "rows": [{**asdict(row), "share": row.trained / total if total else 0.0} for row in rows],
        "trained": total,
        "precision": prepared.precision,
        "data": prepared.data.report(),
        "example": _example(prepared),
        "warnings": [*prepared.warnings, *_warnings(rows, prepared)],
        "forecast": checked or _forecast(prepared, total),
    }


def checked_forecast(run: Run, prepared: Prepared) -> dict[str, float] | None:
    """Return what a check of the run's settings has measured, or None if there was none on the same rows."""
    try:
        checked = json.loads((run.folder / CHECK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_same = isinstance(checked, dict) and checked.get("fingerprint") == prepared.data.dataset.fingerprint
    return checked.get("forecast") if is_same else None


def table(report: dict[str, Any]) -> str:
    """Format the report for a terminal."""
    lines = [f"{'part':22}{'parameters':>14}{'trained':>12}{'share':>8}{'rank':>6}  {'loaded as':12}{'4-bit':>6}"]
    lines += [
        f"{row['part']:22}{row['parameters']:>14,}{row['trained']:>12,}{row['share']:>8.1%}{row['rank'] or '-':>6}  "
        f"{row['dtype']:12}{row['four_bit']:>6.0%}"
        for row in report["rows"]
    ]
    data, forecast = report["data"], report["forecast"]
    what = f"of which {data['trained_tokens']:,} are trained"
    if "labels" in data:
        what = f"{data['problem']}: " + ", ".join(f"{name} ({count:,})" for name, count in data["labels"].items())
    lines += [
        "",
        f"Data: {data['examples']:,} examples of {data['file']} ({data['format']}), {data['tokens']:,} tokens, "
        f"{what}; {data['train_rows']:,} rows to train on, {data['held_out_rows']:,} held out.",
        f"Tokens per example: {_histogram(data['edges'], data['counts'])}",
        f"First example, trained tokens in ⟦⟧: {_bracketed(report['example'])}",
        f"Memory: about {forecast['memory_gib']:.1f} GiB, {forecast['free_gib']:.1f} GiB are free.",
    ]
    if forecast["reading_s"]:
        lines.append(
            f"Reading: about {duration(forecast['reading_s'])} to read the rows once, before the head is fitted."
        )
    if forecast["steps"]:
        lines.append(
            f"Time: about {duration(forecast['seconds'])} for {forecast['steps']:,} steps, {forecast['passes']:.1f} "
            f"passes over the rows ({forecast['step_s']:.2f} s each, {forecast['tok_s']:.0f} tokens per second), "
            "without evaluations."
        )
    lines += [f"Note: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def total_steps(prepared: Prepared) -> int:
    """Return the number of optimizer steps of the whole run."""
    recipe = prepared.recipe
    if recipe.method == "probe":
        return 0
    if recipe.max_steps:
        return recipe.max_steps
    batches = math.ceil(len(prepared.data.train) / (recipe.batch_size * processes().num_processes))
    return math.ceil(max(1, math.ceil(batches / recipe.gradient_accumulation)) * recipe.epochs)


def step_rows(recipe: Recipe) -> int:
    """Return the number of rows, or packs, of an optimizer step."""
    return recipe.batch_size * recipe.gradient_accumulation * processes().num_processes


def _example(prepared: Prepared) -> list[Span]:
    """Return the first row as the model sees it."""
    if prepared.data.labels is not None:
        text, target = prepared.data.train[0]
        return [Span(str(prepared.tokenizer.decode(text)), False), Span(shown(prepared.data.labels, target), True)]
    token_ids, trained = prepared.data.train[0][0]
    return preview(prepared.tokenizer, Rendered(token_ids, trained, cut=False))


def _bracketed(example: list[Span]) -> str:
    parts = [
        (trained, "".join(text for text, *_ in spans))
        for trained, spans in groupby(example, lambda span: bool(span[1]))
    ]
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in parts)


def _histogram(edges: list[int], counts: list[int]) -> str:
    bins = zip(edges, edges[1:], counts, strict=False)
    return ", ".join(f"{low} to {high - 1}: {count:,}" for low, high, count in bins if count)


def _warnings(rows: list[AuditRow], prepared: Prepared) -> list[str]:
    parts = {row.part: row for row in rows}
    experts = [part for part in parts if part.endswith("experts")]
    warnings = [
        f"The {part} are frozen: the preset {prepared.recipe.preset!r} trains none of them."
        for part in experts
        if not parts[part].trained
    ]
    if prepared.precision == "nf4":
        warnings += [
            f"Only {parts[part].four_bit:.0%} of the {part} are in 4 bits."
            for part in experts
            if parts[part].four_bit < 1
        ]
    if parts["routers"].trained:
        warnings.append("The routers are trained: watch the routing drift and the expert load.")
    free = _free_gib()
    if free < 1:
        warnings.append(f"Only {free:.1f} GiB of memory are free: close other programs.")
    return warnings


def _forecast(prepared: Prepared, trained: int) -> dict[str, float]:
    recipe, steps = prepared.recipe, total_steps(prepared)
    seconds, activations, tokens = _trial(prepared) if steps else (0.0, 0, 0.0)
    on_gpu = prepared.base.device.type == "cuda"
    parts = processes().num_processes if fsdp.is_fsdp() else 1
    if on_gpu:
        needed, free = gpu_memory.needed_and_free(trained, parts)
    else:
        needed, free = cpu_memory.needed_and_free(prepared, trained, activations, parts)
    step_s = seconds * recipe.gradient_accumulation
    return {
        "memory_gib": round(needed / GIB, 2),
        "free_gib": round(free / GIB, 2),
        "steps": steps,
        "step_s": round(step_s, 3),
        "seconds": round(steps * step_s, 1),
        "tok_s": round(tokens / seconds, 1) if steps else 0.0,
        "passes": round(steps * step_rows(recipe) / len(prepared.data.train), 2),
        "reading_s": round(_reading_seconds(prepared), 1),
    }


def _reading_seconds(prepared: Prepared) -> float:
    """Return the seconds to read all rows to which the head is fitted or on which it is measured; 0 if none is."""
    if prepared.data.labels is None or processes().num_processes > 1:
        return 0.0
    texts = [token_ids for token_ids, _ in [*rows_to_fit(prepared), *prepared.data.held_out]]
    batches = in_batches([*map(len, texts)], BATCH_TOKENS)
    batch = [texts[i] for i in batches[len(batches) // 2]]
    start = time.perf_counter()
    last_hidden(prepared.base, batch, pad_id(prepared.tokenizer))
    return (time.perf_counter() - start) * sum(map(len, texts)) / sum(map(len, batch))


def _trial(prepared: Prepared) -> tuple[float, int, float]:
    """Return the seconds of a batch, the bytes saved for its backward pass, and its tokens; nothing is trained."""
    model, recipe = prepared.model, prepared.recipe
    rows = _trial_rows(prepared)
    model.train()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    seconds, kept, tokens = [], 0, []
    for step in range(TRIAL_STEPS):
        features = [rows[(step * recipe.batch_size + i) % len(rows)] for i in range(recipe.batch_size)]
        batch = {name: values.to(prepared.base.device) for name, values in prepared.collate(features).items()}
        start = time.perf_counter()
        with cpu_memory.Saved() as saved:
            loss = prepared.loss(batch)
        loss.backward()
        loss.item()  # waits for the GPU
        seconds.append(time.perf_counter() - start)
        kept = max(kept, saved.bytes)
        tokens.append(batch["input_ids"].numel())
        model.zero_grad(set_to_none=True)
    # The first step is left out, because it also allocates buffers and compiles kernels.
    return statistics.median(seconds[1:]), kept, statistics.mean(tokens[1:])


def _trial_rows(prepared: Prepared) -> list[Any]:
    """Return the rows; for a classifier, the longest batch comes first, because it decides the memory needed."""
    rows = prepared.data.train
    if prepared.data.labels is None:
        return rows
    return [*sorted(rows, key=lambda row: -len(row[0]))[: prepared.recipe.batch_size], *rows]


def _free_gib() -> float:
    if torch.cuda.is_available():
        return gpu_memory.unused() / GIB
    return available_memory() / GIB
