"""The structures of `products.h` and `model.h`, field by field."""

import ctypes

LONG, DOUBLE, POINTER = ctypes.c_long, ctypes.c_double, ctypes.c_void_p
MAX_PROJECTIONS, MAX_PRODUCTS, MAX_TOKENS = 3, 4, 8


class Linear(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("kind", "rows", "columns")),
        *((name, POINTER) for name in ("weight", "scales", "bias")),
        *((name, LONG) for name in ("low_rank_kind", "rank")),
        *((name, POINTER) for name in ("A", "B")),
        ("scaling", DOUBLE),
    ]


class Vector(ctypes.Structure):
    _fields_ = [("wide", POINTER), ("narrow", POINTER)]


class Change(ctypes.Structure):
    _fields_ = [(name, POINTER) for name in ("biases", "scales", "forced")]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, POINTER) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        ("projections", Linear * MAX_PROJECTIONS),
        *((name, Linear) for name in ("attention_router", "query", "output", "router", "gate_up", "down")),
        *((name, Change) for name in ("attention_change", "change")),
    ]


class Cache(ctypes.Structure):
    _fields_ = [(name, POINTER) for name in ("keys", "values", "length")]


class Sequence(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("token", "position", "cache_size")),
        *((name, POINTER) for name in ("caches", "frequencies")),
        ("rotary_scaling", DOUBLE),
        *((name, POINTER) for name in ("router_logits", "router_experts")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("layers", "D", "H", "G", "C", "E", "K", "I", "by_slot", "gates_sum_to_one")),
        *((name, DOUBLE) for name in ("layer_eps", "norm_eps", "clip")),
        *((name, LONG) for name in ("embedding_kind", "cache_kind")),
        *((name, POINTER) for name in ("embedding", "norm")),
        ("head", Linear),
        *((name, POINTER) for name in ("layer", "hidden", "rotary")),
        *((name, Vector) for name in ("normed", "attended", "active")),
        *((name, POINTER) for name in ("projected", "inner", "parts", "logits", "gates", "experts")),
        *((name, POINTER) for name in ("group_experts", "group_starts", "order")),
        ("inner_size", LONG),
    ]
