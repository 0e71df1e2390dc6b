"""One decoding step compiled to a single graph: `step = compiled_step(model); logits = step(token, position, cache)`.

The graph has no data-dependent branches and no graph breaks. Layers are marked as one region, so Inductor compiles one
layer and reuses it L times: a fifth of the compile time of the whole graph at the same speed. On a GPU, the compiled
step is captured in a CUDA graph, because launching its kernels one by one takes longer than they run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from jetmoe import device
from jetmoe.attention import StaticKV
from jetmoe.modeling import MoeForCausalLM
from jetmoe.routing import RoutingRecorder

logger = logging.getLogger("jetmoe")
Step = Callable[..., Tensor]
Replay = Callable[[Tensor, Tensor], Tensor]
# Minimum loop elements per thread; smaller loops run on one thread. A token takes many such loops, and on busy cores
# each parallel loop waits to be scheduled.
SMALLEST_SHARE = 16384
CALLS_BEFORE_CAPTURE = 2


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
    run = partial(compiled, model)
    is_on_one_gpu = len({parameter.device for parameter in model.parameters()}) == 1 and device.on_gpu(
        model.lm_head.weight
    )
    return CapturedStep(run) if is_on_one_gpu else run


class CapturedStep:
    """A compiled step that is captured in a CUDA graph.

    The graph uses the memory of one cache and one recorder. With others, the first calls run without a graph: they
    compile kernels and allocate what a graph can't.
    """

    def __init__(self, run: Step) -> None:
        self._run = run
        self._memory: tuple[Any, ...] = ()  # keeps the memory of the graph alive
        self._calls = 0
        self._replay: Replay | None = None
        self._fails = False

    def __call__(
        self, token: Tensor, position: Tensor, cache: Cache, recorder: RoutingRecorder | None = None
    ) -> Tensor:
        if [id(one) for one in self._memory] != [id(cache), id(recorder)]:
            self._memory, self._calls, self._replay = (cache, recorder), 0, None
        self._calls += 1
        if self._fails or self._calls <= CALLS_BEFORE_CAPTURE:
            return self._run(token, position, cache, recorder=recorder)
        if self._replay is None:
            try:
                self._replay = capture(self._run, token, position, cache, recorder)
            except RuntimeError as error:
                logger.warning("The decoding step runs without a CUDA graph, because capturing it failed: %s", error)
                self._fails = True
                return self._run(token, position, cache, recorder=recorder)
        return self._replay(token, position)


def capture(run: Step, token: Tensor, position: Tensor, cache: Cache, recorder: RoutingRecorder | None) -> Replay:
    """Capture a step, without running it, and return a function that runs it for another token and position."""
    token, position = token.clone(), position.clone()
    graph = torch.cuda.CUDAGraph()
    # Another thread may use the device meanwhile, to compile the step for another cache length.
    with torch.cuda.device_of(token), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        logits = run(token, position, cache, recorder=recorder)

    def replay(next_token: Tensor, next_position: Tensor) -> Tensor:
        token.copy_(next_token)
        position.copy_(next_position)
        graph.replay()
        return logits.clone()

    return replay


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
