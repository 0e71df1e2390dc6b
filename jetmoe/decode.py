"""One decoding step compiled to a single graph: `step = compiled_step(model); logits = step(token, position, cache)`.

The graph has no data-dependent branches and no graph breaks. Layers are marked as one region, so Inductor compiles one
layer and reuses it L times: a fifth of the compile time of the whole graph at the same speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from jetmoe.attention import StaticKV
from jetmoe.modeling import MoeForCausalLM
from jetmoe.routing import RoutingRecorder

Step = Callable[..., Tensor]
# Minimum loop elements per thread; smaller loops run on one thread. A token takes many such loops, and on busy cores
# each parallel loop waits to be scheduled.
SMALLEST_SHARE = 16384


@torch.no_grad()
def step(
    model: MoeForCausalLM,
    token: Tensor,
    position: Tensor,
    cache: Cache,
    recorder: RoutingRecorder | None = None,
) -> Tensor:
    """Process one more token and return the fp32 logits `[B, vocabulary]` after it.

    Args:
        token, position: `[B, 1]`.
        cache: a static cache; the token is added in place.
        recorder: records the token's routing.
    """
    output = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True, recorder=recorder)
    return output.logits[:, -1].float()


def compiled_step(model: MoeForCausalLM, **options: Any) -> Step:
    """Return `step` for this model, compiled at the first call and again for each new cache length or batch size.

    `options` replace those of `torch.compile` that are set here.

    Guards on the model's attributes are skipped, because checking them costs a tenth of a step. After a change of the
    model (adapters, dtype), call `torch.compiler.reset()` and create a new step.
    """
    model.model.call_layer = _call_layer
    inductor = {
        "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
        "cpp.min_chunk_size": SMALLEST_SHARE,
    }
    compiled = torch.compile(step, fullgraph=True, dynamic=False, **(options or {"options": inductor}))
    return lambda *args, **kwargs: compiled(model, *args, **kwargs)


@torch.compiler.nested_compile_region
def _layer_region(layer: Any, hidden: Tensor, mask: Tensor, rotary: tuple, *stored: Tensor) -> tuple:
    past = StaticKV(*stored)
    output = layer(hidden, mask, rotary, past)
    # Return a new tensor: for views, the outer graph would assume other strides.
    return *output, torch.stack(past.new)


def _call_layer(
    layer: Any,
    hidden: Tensor,
    mask: Tensor,
    rotary: tuple,
    past_key_values: Any = None,
    output_attentions: bool = False,
    **kwargs,
) -> tuple:
    # Eager calls skip the region, which would be compiled separately outside a graph.
    implementation = layer.config._attn_implementation
    fits = hidden.shape[1] == 1 and not output_attentions and implementation == "sdpa"
    if not (torch.compiler.is_dynamo_compiling() and fits and past_key_values is not None):
        return layer(hidden, mask, rotary, past_key_values, output_attentions, **kwargs)
    # A region that updates the cache would copy all of it in and out, so it only reads it and returns the new entries.
    stored = past_key_values.layers[layer.layer_idx]
    past = stored.keys, stored.values, stored.cumulative_length
    *output, new = _layer_region(layer, hidden, mask, rotary, *past)
    past_key_values.update(new[0], new[1], layer.layer_idx)
    return tuple(output)
