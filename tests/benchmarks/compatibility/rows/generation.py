"""`generate`: modes, caches, processors, and what comes with the tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    Place,
    Results,
    adapt,
    generated,
    logits,
    lora_on_all,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Generation"


def tokens(place: Place, ids: Tensor = BATCH, adapter: bool = True, **options) -> Results:
    model = adapt(place.model(), lora_on_all()) if adapter else place.model()
    torch.manual_seed(0)
    made = generated(model, ids, **options)
    return {"tokens": made} if isinstance(made, Tensor) else {"tokens": made.sequences, **_extras(made)}


def _extras(output: Any) -> Results:
    results: Results = {}
    for key in ("scores", "logits", "sequences_scores", "beam_indices"):
        value = getattr(output, key, None)
        if isinstance(value, tuple):
            value = torch.stack(value)
        if value is not None:
            results[key] = value
    for key in ("attentions", "hidden_states"):
        steps = getattr(output, key, None) or ()
        results |= {f"{key} {i}.{j}": one for i, step in enumerate(steps[:2]) for j, one in enumerate(step)}
    return results


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, a few tokens": {"ids": FEW},
    "greedy, left padding": {"attention_mask": PADDED},
    "greedy without a cache": {"use_cache": False},
    "sampling": {"do_sample": True},
    "sampling, top_k, top_p, min_p, typical_p, temperature": {
        "do_sample": True, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "temperature": 0.7
    },
    "sampling, num_return_sequences": {"do_sample": True, "num_return_sequences": 3},
    "beam search": {"num_beams": 3},
    "beam search, left padding, several sequences": {
        "num_beams": 4, "num_return_sequences": 2, "attention_mask": PADDED, "length_penalty": 0.5,
        "early_stopping": True,
    },
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "beam search with scores": {
        "num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "output_logits": True
    },
    "prompt lookup": {"ids": FEW, "prompt_lookup_num_tokens": 3, "max_new_tokens": 12},
    "assistant_early_exit": {"ids": FEW, "assistant_early_exit": 1},
    "scores and logits": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "hidden states": {"return_dict_in_generate": True, "output_hidden_states": True},
    "repetition_penalty and no_repeat_ngram_size": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "bad_words_ids, suppress_tokens, forced_eos_token_id": {
        "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [9, 10], "forced_eos_token_id": 258
    },
    "sequence_bias, min_new_tokens, renormalize_logits": {
        "sequence_bias": [[[11], 3.0]], "min_new_tokens": 4, "eos_token_id": 258, "renormalize_logits": True
    },
    "guidance_scale": {"ids": FEW, "guidance_scale": 1.5},
    "dola": {"ids": FEW, "dola_layers": "low"},
    "contrastive search": {"ids": FEW, "penalty_alpha": 0.6, "top_k": 4},
    "group beam search": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "prefill in chunks": {"prefill_chunk_size": 8},
    "cache_implementation=quantized": {"cache_implementation": "quantized"},
    "cache_implementation=offloaded": {"cache_implementation": "offloaded"},
    "max_time and max_length": {"max_time": 60.0, "max_length": 30, "max_new_tokens": None},
    "remove_invalid_values and exponential_decay_length_penalty": {
        "remove_invalid_values": True, "exponential_decay_length_penalty": (4, 1.1), "eos_token_id": 258
    },
}  # fmt: skip
IN_4_BITS = {"greedy", "greedy, a few tokens", "greedy, left padding", "beam search", "sampling"}
for name, options in MODES.items():
    row(GROUP, name, four_bits=name in IN_4_BITS)(
        partial(lambda place, options: tokens(place, **options), options=options)
    )


def statically_cached(place: Place, adapter: bool, implementation: str = "static", **options) -> Results:
    """Uncompiled, against a growing cache."""
    options = {"disable_compile": True, **options}
    made = tokens(place, FEW, adapter, cache_implementation=implementation, **options)
    return made | {"tokens.expected": tokens(place, FEW, adapter)["tokens"]}


for implementation in ("static", "offloaded_static"):
    for adapter in (False, True):
        row(GROUP, f"cache_implementation={implementation}{', LoRA' * adapter}", four_bits=implementation == "static")(
            partial(statically_cached, adapter=adapter, implementation=implementation)
        )


@row(GROUP, "cache_implementation=static, a padded batch")
def static_padded(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    options = {"attention_mask": PADDED}
    made = generated(model, BATCH, cache_implementation="static", disable_compile=True, **options)
    return {"tokens": made, "tokens.expected": generated(model, BATCH, **options)}


for adapter in (False, True):
    row(GROUP, f"cache_implementation=static, compiled{', LoRA' * adapter}", four_bits=True)(
        partial(
            lambda place, adapter: statically_cached(
                place, adapter, disable_compile=False, compile_config=_compile_config()
            ),
            adapter=adapter,
        )
    )


def _compile_config() -> Any:
    from transformers import CompileConfig

    config = CompileConfig(mode="default", fullgraph=False, backend="aot_eager")
    config._compile_all_devices = True
    return config


@row(GROUP, "assistant_model")
def assisted(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    made = generated(model, FEW, assistant_model=place.model(), max_new_tokens=12)
    return {"tokens": made, "tokens.expected": generated(model, FEW, max_new_tokens=12)}


@row(GROUP, "assistant_model, sampling")
def assisted_sampling(place: Place) -> Results:
    model, assistant = place.model(), place.model()
    torch.manual_seed(0)
    return {"tokens": generated(model, FEW, assistant_model=assistant, do_sample=True)}


@row(GROUP, "assistant_model on 4-bit weights")
def assistant_of_bits(place: Place) -> Results:
    return {"tokens": generated(place.model("untied"), FEW, assistant_model=place.model(), max_new_tokens=12)}


@row(GROUP, "assistant_model with another tokenizer (universal)")
def universal(place: Place) -> Results:
    tokenizer = place.tokenizer()
    other = place.tokenizer()
    other.add_tokens(["<other>"])
    made = generated(
        place.model(), FEW, assistant_model=place.model("untied"), tokenizer=tokenizer, assistant_tokenizer=other
    )
    return {"tokens": made}


class Only(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 100:] = -torch.inf
        return scores


class StopAt(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 28, dtype=torch.bool)


@row(GROUP, "own logits processor and stopping criterion")
def own_parts(place: Place) -> Results:
    return tokens(
        place, logits_processor=LogitsProcessorList([Only()]), stopping_criteria=StoppingCriteriaList([StopAt()])
    )


@row(GROUP, "stop_strings")
def stop_strings(place: Place) -> Results:
    tokenizer = place.tokenizer()
    first = generated(place.model(), FEW)[0, 3:].tolist()
    return tokens(place, FEW, adapter=False, stop_strings=[tokenizer.decode(first[3:4])], tokenizer=tokenizer)


@row(GROUP, "streamers")
def streamers(place: Place) -> Results:
    tokenizer, pieces = place.tokenizer(), []

    class Kept(TextStreamer):
        def put(self, value: Tensor) -> None:
            pieces.append(value.flatten().clone())

        def end(self) -> None:
            pieces.append(torch.tensor([-1]))

    made = tokens(place, FEW, streamer=Kept(tokenizer))
    iterated = TextIteratorStreamer(tokenizer, skip_prompt=True)
    tokens(place, FEW, streamer=iterated)
    text = "".join(iterated)
    return made | {"streamed": torch.cat(pieces), "text": torch.tensor(list(text.encode()))}


@row(GROUP, "watermarking")
def watermarked(place: Place) -> Results:
    from transformers import WatermarkingConfig

    return tokens(place, watermarking_config=WatermarkingConfig(bias=2.5, seeding_scheme="selfhash"))


@row(GROUP, "inputs_embeds", four_bits=True)
def embeddings(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    embedded = model.get_input_embeddings()(BATCH).detach()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 256, "eos_token_id": None}
    return {
        "tokens": model.generate(inputs_embeds=embedded, **options),
        "with ids": model.generate(input_ids=BATCH, inputs_embeds=embedded, **options),
    }


@row(GROUP, "a cache continued, cropped, and used again", four_bits=True)
@torch.no_grad()
def continued(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    cache = DynamicCache(config=model.config)
    results = {"prompt": model(BATCH[:, :10], past_key_values=cache).logits.clone()}
    results["rest"] = model(BATCH[:, 10:], past_key_values=cache).logits.clone()
    cache.crop(-12)
    results["cropped"] = model(BATCH[:, 12:13], past_key_values=cache).logits.clone()
    results["length"] = torch.tensor(cache.get_seq_length())
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    results["reordered"] = model(BATCH[:, 13:14], past_key_values=cache).logits.clone()
    cache.batch_select_indices(torch.tensor([1]))
    results["selected"] = model(BATCH[:1, 14:15], past_key_values=cache).logits.clone()
    cache.batch_repeat_interleave(2)
    results["repeated"] = model(BATCH[:2, 15:16], past_key_values=cache).logits.clone()
    for i, layer in enumerate(cache.layers):
        results |= {f"keys {i}": layer.keys, f"values {i}": layer.values}
    return results


@row(GROUP, "a cache of a prompt used by several answers")
def prefix(place: Place) -> Results:
    import copy

    model = place.model()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(BATCH[:1, :12], past_key_values=cache)
    return {str(end): generated(model, BATCH[:1, :end], past_key_values=copy.deepcopy(cache)) for end in (14, 20)}


@row(GROUP, "past_key_values as legacy tuples")
@torch.no_grad()
def legacy_cache(place: Place) -> Results:
    model = place.model()
    cache = model(BATCH[:, :10]).past_key_values
    legacy = tuple((layer.keys, layer.values) for layer in cache.layers)
    rebuilt = DynamicCache(legacy)
    return {"logits": model(BATCH[:, 10:], past_key_values=rebuilt).logits}


@row(GROUP, "StaticCache in a forward pass", four_bits=True)
@torch.no_grad()
def static_forward(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    cache = StaticCache(config=model.config, max_cache_len=32)
    first = model(BATCH[:, :10], past_key_values=cache).logits
    then = model(BATCH[:, 10:11], past_key_values=cache).logits
    rest = model(BATCH[:, 11:], past_key_values=cache).logits
    made = torch.cat([first, then, rest], dim=1)
    return {"logits": made, "logits.expected": logits(model)}


@row(GROUP, "use_cache=False and returned caches")
@torch.no_grad()
def returned(place: Place) -> Results:
    model = place.model()
    without = model(BATCH, use_cache=False)
    with_cache = model(BATCH, use_cache=True)
    by_tuple = model(BATCH, use_cache=True, return_dict=False)
    return {
        "none": torch.tensor(without.past_key_values is None),
        "length": torch.tensor(with_cache.past_key_values.get_seq_length()),
        "entries": torch.tensor(len(by_tuple)),
        "logits": by_tuple[0],
    }


@row(GROUP, "generate_batch: continuous batching")
def continuous(place: Place) -> Results:
    model = place.model(attn_implementation="sdpa")
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=258, pad_token_id=256)
    prompts = [BATCH[0].tolist(), BATCH[1, :9].tolist()]
    # Without sizes, the cache takes most of the machine's memory.
    sizes = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    made = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=sizes)
    outputs = sorted(made.values(), key=lambda one: one.request_id)
    if failed := [one.error for one in outputs if one.error]:
        raise RuntimeError(failed[0])
    expected = [
        generated(model, torch.tensor([one]), max_new_tokens=6, eos_token_id=258)[0, len(one) :] for one in prompts
    ]
    return {str(i): torch.tensor(one.generated_tokens) for i, one in enumerate(outputs)} | {
        f"{i}.expected": one for i, one in enumerate(expected)
    }


@row(GROUP, "generation_config from the checkpoint's folder")
def generation_config(place: Place) -> Results:
    model = place.model()
    model.generation_config.update(max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=256)
    model.save_pretrained(place.folder / "model")
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model", dtype=torch.float32).eval()
    return {"tokens": loaded.generate(FEW)}


@row(GROUP, "after training mode, checkpointing on")
def after_checkpointing(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all()).train()
    expected = generated(model.eval(), FEW)
    model.train().gradient_checkpointing_enable()
    return {"tokens": generated(model.eval(), FEW), "tokens.expected": expected}


@row(GROUP, "compute_transition_scores")
def transition_scores(place: Place) -> Results:
    model = place.model()
    made = generated(model, BATCH, return_dict_in_generate=True, output_scores=True, num_beams=2)
    return {"scores": model.compute_transition_scores(made.sequences, made.scores, made.beam_indices)}


@row(GROUP, "torch.compile of the forward pass, then generate", four_bits=True)
def compiled_forward(place: Place) -> Results:
    model = adapt(place.model(), lora_on_all())
    expected = generated(model, FEW)
    model.forward = torch.compile(model.forward, dynamic=True, backend="aot_eager")
    return {"tokens": generated(model, FEW), "tokens.expected": expected}
