"""The structures of `products.h` and `model.h`, field by field."""

import ctypes

LONG, DOUBLE, POINTER = ctypes.c_long, ctypes.c_double, ctypes.c_void_p
MAX_PROJECTIONS, MAX_PRODUCTS = 3, 4


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
        *((name, POINTER) for name in ("keys", "values", "length")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("layers", "D", "H", "G", "C", "E", "K", "I", "by_slot", "gates_sum_to_one")),
        *((name, DOUBLE) for name in ("layer_eps", "norm_eps", "clip", "rotary_scaling")),
        *((name, LONG) for name in ("embedding_kind", "cache_kind", "cache_size")),
        *((name, POINTER) for name in ("embedding", "norm")),
        ("head", Linear),
        *((name, POINTER) for name in ("frequencies", "layer", "hidden", "rotary")),
        *((name, Vector) for name in ("normed", "attended", "active")),
        *((name, POINTER) for name in ("projected", "inner", "logits", "experts", "gates")),
        ("inner_size", LONG),
    ]
