"""Measure how the work is distributed over experts or groups: load, and the chance level to compare it with.

    load(trace[prompt_tokens:], unit="group")[layer, kind]  # sums to 1

Load is the share of assignments. Each router makes K assignments per token, whatever the gates are.
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
    L, N, T, K = trace.experts.shape
    U = unit_count(trace, unit)
    units = chosen_units(trace, unit).reshape(L * N, T * K)
    slots = units + U * np.arange(L * N)[:, None]  # [L * N, T * K], numbers of a router's unit
    return np.bincount(slots.ravel(), minlength=L * N * U).reshape(L, N, U)


def load(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return float64 `[L, N, U]`, which sums to 1 over the units; all zero if the trace is empty."""
    counts = assignments(trace, unit)  # [L, N, U]
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def chance(trace: RoutingTrace, unit: Unit) -> float:
    """Return the load of each unit if the assignments were distributed evenly."""
    return 1 / unit_count(trace, unit)


def strongest(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return uint8 `[L, N, T]`: the unit with the largest sum of gates; ties go to the lowest id."""
    L, N, T, K = trace.experts.shape
    units = chosen_units(trace, unit).reshape(-1, K)  # [L * N * T, K]
    gates = trace.gates.astype(np.float32).reshape(-1, K)  # [L * N * T, K]
    mass = np.zeros((len(units), unit_count(trace, unit)), np.float32)  # [L * N * T, U]
    rows = np.arange(len(units))
    for k in range(K):
        mass[rows, units[:, k]] += gates[:, k]
    return mass.argmax(axis=-1).astype(np.uint8).reshape(L, N, T)


def chosen_units(trace: RoutingTrace, unit: Unit) -> np.ndarray:
    """Return uint8 `[L, N, T, K]`: the unit of each selected expert."""
    return trace.groups[trace.experts] if unit == "group" else trace.experts
