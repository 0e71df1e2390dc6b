"""In-memory store of routing traces; the least recently used traces are dropped first.

trace_id = traces.open(owner=owner)  # ids are created by the server
traces.append(trace_id, event.trace)
traces.get(trace_id, owner)          # None if dropped or owned by someone else; the empty owner gets every trace
traces.compare(trace_id, base)       # stores the base model's routing of the same tokens, which `base` returns
traces.keep(trace_id, 7, most_likely)         # stores the alternatives to token 7, which `alternatives` returns
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict

from jetmoe.routing import RoutingTrace
from studio.backend.chat.alternatives import Alternative

CAPACITY_BYTES = 512 * 2**20
ALTERNATIVE_BYTES = 200
"""Memory of one alternative: a tuple, a float and a short text."""


class TraceStore:
    """Thread-safe store; a trace grows by `append` while its answer is generated."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self._parts: OrderedDict[str, list[RoutingTrace]] = OrderedDict()
        self._bases: dict[str, RoutingTrace] = {}
        self._alternatives: dict[str, dict[int, tuple[Alternative, ...]]] = {}
        self._sizes: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(self, trace: RoutingTrace | None = None, owner: str = "") -> str:
        """Create a trace for an owner, empty or with these rows, and return its id."""
        trace_id = uuid.uuid4().hex
        with self._lock:
            self._parts[trace_id], self._sizes[trace_id], self._owners[trace_id] = [], 0, owner
            self._alternatives[trace_id] = {}
        if trace is not None:
            self.append(trace_id, trace)
        return trace_id

    def append(self, trace_id: str, rows: RoutingTrace) -> None:
        """Append rows; no-op if the trace was dropped meanwhile."""
        with self._lock:
            if trace_id not in self._parts:
                return
            self._parts[trace_id].append(rows)
            self._sizes[trace_id] += _size(rows)
            self._parts.move_to_end(trace_id)
            self._drop_oldest()

    def get(self, trace_id: str, owner: str = "") -> RoutingTrace | None:
        with self._lock:
            parts = self._parts.get(trace_id)
            if not parts or owner not in ("", self._owners[trace_id]):
                return None
            if len(parts) > 1:
                parts[:] = [RoutingTrace.concatenate(parts)]
            self._parts.move_to_end(trace_id)
            return parts[0]

    def transfer_owner(self, before: str, after: str) -> None:
        """Transfer all traces from one owner to another."""
        with self._lock:
            self._owners = {each: after if owner == before else owner for each, owner in self._owners.items()}

    def compare(self, trace_id: str, base: RoutingTrace) -> None:
        """Store the base model's trace, which is dropped with the trace; no-op if that was dropped meanwhile."""
        with self._lock:
            if trace_id not in self._parts:
                return
            before = self._bases.get(trace_id)
            self._sizes[trace_id] += _size(base) - (_size(before) if before is not None else 0)
            self._bases[trace_id] = base
            self._drop_oldest()

    def base(self, trace_id: str) -> RoutingTrace | None:
        with self._lock:
            return self._bases.get(trace_id)

    def keep(self, trace_id: str, token: int, alternatives: tuple[Alternative, ...]) -> None:
        """Store the alternatives to a token, which are dropped with the trace; no-op if that was dropped meanwhile."""
        with self._lock:
            kept = self._alternatives.get(trace_id)
            if kept is None:
                return
            self._sizes[trace_id] += ALTERNATIVE_BYTES * (len(alternatives) - len(kept.get(token, ())))
            kept[token] = alternatives

    def alternatives(self, trace_id: str, token: int, owner: str = "") -> tuple[Alternative, ...]:
        """Return the alternatives to a token; () if none are stored, or the trace is someone else's."""
        with self._lock:
            if owner not in ("", self._owners.get(trace_id)):
                return ()
            return self._alternatives.get(trace_id, {}).get(token, ())

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._parts)

    def _drop_oldest(self) -> None:
        while len(self._parts) > 1 and sum(self._sizes.values()) > self.capacity_bytes:
            dropped, _ = self._parts.popitem(last=False)
            del self._sizes[dropped], self._owners[dropped], self._alternatives[dropped]
            self._bases.pop(dropped, None)


def _size(trace: RoutingTrace) -> int:
    return trace.experts.nbytes + trace.gates.nbytes + trace.entropy.nbytes + 64 * len(trace)


traces = TraceStore()
