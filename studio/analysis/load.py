"""Measure how the work is distributed over experts or groups: load, and the chance level to compare it with.

    load(trace[~is_prompt], unit="group")[layer, kind]  # sums to 1

Load is the share of assignments. Each router makes K assignments per token.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from jetmoe.routing import RoutingTrace

Unit = Literal["group", "expert"]


def unit_count(trace: RoutingTrace, unit: Unit) -> int:
    return trace.num_groups if unit == "group" else trace.num_experts


def assignments(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return int64 `[L, N, U]`: how many of a router's T * K assignments went to each of the U units."""
    units = chosen_units(trace, unit)  # [L, N, T, K]
    counts = [(units == index).sum(axis=(2, 3)) for index in range(unit_count(trace, unit))]  # U times [L, N]
    return np.stack(counts, axis=-1)  # [L, N, U]


def load(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return float64 `[L, N, U]`, which sums to 1 over the units; all zero if the trace is empty."""
    counts = assignments(trace, unit)  # [L, N, U]
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def chance(trace: RoutingTrace, unit: Unit) -> float:
    """Return the load of each unit if the assignments were distributed evenly."""
    return 1 / unit_count(trace, unit)


def strongest(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return uint8 `[L, N, T]`: the unit with the largest sum of gates; ties go to the lowest id."""
    units = chosen_units(trace, unit)  # [L, N, T, K]
    gates = trace.gates.astype(np.float32)
    mass = [np.where(units == index, gates, 0).sum(axis=-1) for index in range(unit_count(trace, unit))]
    return np.stack(mass, axis=-1).argmax(axis=-1).astype(np.uint8)  # [L, N, T]


def chosen_units(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return uint8 `[L, N, T, K]`: the unit of each selected expert."""
    return trace.groups[trace.experts] if unit == "group" else trace.experts
