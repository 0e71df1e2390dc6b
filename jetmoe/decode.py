"""One decoding step compiled to a single graph: `step = compiled_step(model); logits = step(token, position, cache)`.

The graph has no data-dependent branch and no break; layers are marked as one region, so Inductor compiles one layer
and stamps it out L times (a fifth of the compile time of the whole graph, the same speed).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache

from jetmoe.modeling import JetMoeForCausalLM
from jetmoe.routing import RoutingRecorder

Step = Callable[..., Tensor]


@torch.no_grad()
def step(
    model: JetMoeForCausalLM,
    token: Tensor,
    position: Tensor,
    cache: Cache,
    recorder: RoutingRecorder | None = None,
) -> Tensor:
    """The fp32 logits `[B, vocabulary]` after one more token.

    Args:
        token, position: `[B, 1]`.
        cache: a static one; grows by the token, in place.
        recorder: gets the token's routing.
    """
    output = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True, recorder=recorder)
    return output.logits[:, -1].float()


def compiled_step(model: JetMoeForCausalLM) -> Step:
    """`step` for this model, compiled at its first call and again for every other cache length or batch size.

    Guards on the model's own attributes are skipped, because checking them costs a tenth of a step: after a change of
    the model (adapters, dtype), call `torch.compiler.reset()` and take a new step.
    """
    model.model.call_layer = _call_layer
    compiled = torch.compile(
        step,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
    )
    return lambda *args, **kwargs: compiled(model, *args, **kwargs)


@torch.compiler.nested_compile_region
def _call_layer_as_region(layer: torch.nn.Module, *args, **kwargs) -> tuple:
    return layer(*args, **kwargs)


def _call_layer(layer: torch.nn.Module, *args, **kwargs) -> tuple:
    # Plain forwards stay plain: a region outside of a graph would be compiled on its own.
    if torch.compiler.is_dynamo_compiling():
        return _call_layer_as_region(layer, *args, **kwargs)
    return layer(*args, **kwargs)
