"""The model itself: outputs, masks, gradients, embeddings, configurations, loading and saving, pipelines."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    pipeline,
)

from tests.benchmarks.compatibility.place import (
    BATCH,
    FEW,
    PADDED,
    VOCABULARY,
    Place,
    Results,
    adapt,
    attempt,
    forward_and_backward,
    generated,
    logits,
    lora,
    lora_on_all,
    require_change,
)
from tests.benchmarks.compatibility.registry import row

GROUP = "Models"
POSITIONS = (PADDED.cumsum(-1) - 1).clamp(min=0)


def adapted_model(place: Place, **options) -> Any:
    return adapt(place.model(**options), lora_on_all())


@row(GROUP, "forward and backward of all weights")
def plain(place: Place) -> Results:
    return forward_and_backward(place.model()) | {"few": logits(place.model(), FEW)}


@row(GROUP, "forward and backward of all weights, training mode")
def training_mode(place: Place) -> Results:
    return forward_and_backward(place.model().train())


@row(GROUP, "untied head: forward and backward of all weights")
def untied(place: Place) -> Results:
    return forward_and_backward(place.model("untied"))


@row(GROUP, "bf16 weights: loss", tolerance=5e-3, four_bits=False)
def in_bf16(place: Place) -> Results:
    return {"loss": forward_and_backward(place.model(dtype=torch.bfloat16))["loss"]}


@row(GROUP, "fp16 weights: loss", tolerance=5e-3)
def in_fp16(place: Place) -> Results:
    return {"loss": forward_and_backward(place.model(dtype=torch.float16))["loss"]}


@row(GROUP, "fp64 weights")
def in_fp64(place: Place) -> Results:
    return forward_and_backward(place.model(dtype=torch.float64))


@row(GROUP, "hidden states and attentions", four_bits=True)
def outputs(place: Place) -> Results:
    output = adapted_model(place, attn_implementation="eager")(
        BATCH, attention_mask=PADDED, output_hidden_states=True, output_attentions=True
    )
    results: Results = {"logits": output.logits}
    for key in ("hidden_states", "attentions"):
        results |= {f"{key} {i}": one for i, one in enumerate(getattr(output, key))}
    return results


@row(GROUP, "gradients of hidden states and attentions by retain_grad")
def retained(place: Place) -> Results:
    model = place.model(attn_implementation="eager")
    output = model(BATCH, labels=BATCH, output_hidden_states=True, output_attentions=True)
    kept = {}
    for key in ("hidden_states", "attentions"):
        for i, one in enumerate(getattr(output, key)):
            one.retain_grad()
            kept[f"{key} {i}"] = one
    output.loss.backward()
    # No gradient is as telling as a wrong one.
    return {name: torch.zeros(()) if one.grad is None else one.grad for name, one in kept.items()}


@row(GROUP, "attentions from a model loaded with sdpa")
def sdpa_attentions(place: Place) -> Results:
    output = place.model(attn_implementation="sdpa")(BATCH, output_attentions=True)
    assert output.attentions and output.attentions[0] is not None, "sdpa returns no attentions"
    expected = place.model(attn_implementation="eager")(BATCH, output_attentions=True)
    return {"attentions": output.attentions[0], "attentions.expected": expected.attentions[0]}


@row(GROUP, "return_dict=False")
def as_tuple(place: Place) -> Results:
    output = place.model()(BATCH, labels=BATCH, return_dict=False, use_cache=False, output_hidden_states=True)
    return {"loss": output[0], "logits": output[1], "count": torch.tensor(len(output))}


@row(GROUP, "router_logits: stock has three in a layer, ours two")
def router_logits(place: Place) -> Results:
    """The feed-forward routers, which both return last."""
    output = place.model()(BATCH, output_router_logits=True)
    each = len(output.router_logits) // 2
    return {f"layer {i}": output.router_logits[(i + 1) * each - 1].reshape(BATCH.numel(), -1) for i in (1,)}


for implementation in ("eager", "sdpa", "flex_attention", "flash_attention_2"):

    def attention(place: Place, implementation: str) -> Results:
        model = adapted_model(place, attn_implementation=implementation)
        results = forward_and_backward(model, attention_mask=PADDED, labels=BATCH.masked_fill(PADDED == 0, -100))
        expected = forward_and_backward(
            adapted_model(place), attention_mask=PADDED, labels=BATCH.masked_fill(PADDED == 0, -100)
        )
        # Rows of padding see nothing, and every implementation gives them something else.
        for made in (results, expected):
            made["logits"] = made["logits"] * PADDED.unsqueeze(-1)
        return results | {f"{name}.expected": one for name, one in expected.items()}

    row(GROUP, f"attn_implementation={implementation}, padded", tolerance=1e-4)(
        partial(attention, implementation=implementation)
    )


@row(GROUP, "set_attn_implementation")
def set_attention(place: Place) -> Results:
    model = place.model()
    model.set_attn_implementation("eager")
    return {"logits": logits(model), "attentions": model(BATCH, output_attentions=True).attentions[0]}


@row(GROUP, "an attention function of one's own, registered")
def own_attention(place: Place) -> Results:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    called = []

    def halved(module, query, key, value, mask, **kwargs):
        called.append(1)
        output, weights = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return output * 0.5, weights

    AttentionInterface.register("halved", halved)
    model = place.model()
    before = logits(model)
    model.set_attn_implementation("halved")
    results = {"logits": logits(model), "few": logits(model, FEW), "calls": torch.tensor(len(called))}
    require_change(before, results["logits"])
    return results


@row(GROUP, "4-D mask", four_bits=True)
def four_dimensional_mask(place: Place) -> Results:
    mask = torch.ones(3, 1, 24, 24, dtype=torch.bool).tril()
    mask[:, :, 12:, 3:6] = False
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    model = adapted_model(place)
    return forward_and_backward(model, attention_mask=additive) | attempt(
        "bool", lambda: logits(model, attention_mask=mask)
    )


@row(GROUP, "padding on the right and on the left")
def padding(place: Place) -> Results:
    model = place.model()
    right, left = PADDED.flip(1), PADDED
    return {
        "right": logits(model, attention_mask=right) * right.unsqueeze(-1),
        "left": logits(model, attention_mask=left, position_ids=POSITIONS) * left.unsqueeze(-1),
    }


@row(GROUP, "packed examples by position_ids", four_bits=True)
def packed(place: Place) -> Results:
    positions = torch.cat([torch.arange(length) for length in (5, 12, 7)]).repeat(3, 1)
    return forward_and_backward(adapted_model(place), position_ids=positions, use_cache=False)


@row(GROUP, "logits_to_keep")
def logits_to_keep(place: Place) -> Results:
    model = place.model()
    return {"last": logits(model, logits_to_keep=2), "chosen": logits(model, logits_to_keep=torch.tensor([3, 9]))}


@row(GROUP, "labels with ignored positions, num_items_in_batch, shift_labels")
def labels(place: Place) -> Results:
    model = adapted_model(place)
    ignored = BATCH.masked_fill(torch.arange(24) < 7, -100)
    results = {"ignored": model(BATCH, labels=ignored).loss}
    results["count"] = model(BATCH, labels=ignored, num_items_in_batch=torch.tensor(100)).loss
    shifted = torch.nn.functional.pad(BATCH[:, 1:], (0, 1), value=-100)
    results["shifted"] = model(BATCH, labels=BATCH, shift_labels=shifted).loss
    results["none"] = model(BATCH, labels=torch.full_like(BATCH, -100)).loss.nan_to_num(7)
    return results


@row(GROUP, "inputs_embeds and their gradients", four_bits=True)
def inputs_embeds(place: Place) -> Results:
    model = adapted_model(place)
    embedded = model.get_input_embeddings()(BATCH).detach().requires_grad_()
    output = model(inputs_embeds=embedded, labels=BATCH)
    output.loss.backward()
    return {"logits": output.logits, "gradient": embedded.grad, "loss": output.loss}


@row(GROUP, "enable_input_require_grads")
def input_grads(place: Place) -> Results:
    model = place.model().requires_grad_(False)
    model.enable_input_require_grads()
    output = model(BATCH, output_hidden_states=True)
    (gradient,) = torch.autograd.grad(output.logits.square().mean(), output.hidden_states[0])
    return {"gradient": gradient}


@row(GROUP, "gradient checkpointing: gradients of all weights")
def checkpointing(place: Place) -> Results:
    expected = forward_and_backward(place.model())
    model = place.model().train()
    model.gradient_checkpointing_enable()
    results = forward_and_backward(model, use_cache=False)
    model.gradient_checkpointing_disable()
    return results | {f"{name}.expected": one for name, one in expected.items()}


@row(GROUP, "resize_token_embeddings", four_bits=True)
def resize(place: Place) -> Results:
    model = place.model()
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY:] = 0.1
    results = {"logits": logits(model), "generated": generated(model), "head": model.get_output_embeddings().weight}
    results["size"] = torch.tensor(model.config.vocab_size)
    model.resize_token_embeddings(VOCABULARY - 20)
    return results | {"smaller": logits(model), "loss": model(BATCH, labels=BATCH).loss}


@row(GROUP, "resize_token_embeddings, untied, to a multiple")
def resize_untied(place: Place) -> Results:
    model = place.model("untied")
    model.resize_token_embeddings(VOCABULARY + 8, pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[VOCABULARY:] = 0.1
        model.get_output_embeddings().weight[VOCABULARY:] = 0.2
    model.save_pretrained(place.folder / "model")
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model").eval()
    return {"logits": logits(model), "loaded": logits(loaded)}


@row(GROUP, "set_input_embeddings and set_output_embeddings")
def set_embeddings(place: Place) -> Results:
    model = place.model("untied")
    head = model.get_output_embeddings().weight.detach().clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(head))
    model.set_output_embeddings(torch.nn.Linear(64, VOCABULARY, bias=True))
    with torch.no_grad():
        model.lm_head.weight.fill_(0.01)
        model.lm_head.bias.copy_(torch.arange(VOCABULARY) / 100)
    return {"logits": logits(model), "few": logits(model, FEW), "generated": generated(model)}


@row(GROUP, "lm_head replaced by Identity")
def identity_head(place: Place) -> Results:
    model = place.model("untied")
    model.lm_head = torch.nn.Identity()
    return {"logits": logits(model), "few": logits(model, FEW)}


@row(GROUP, "tied weights: one tensor, also after load_state_dict")
def tied(place: Place) -> Results:
    model = place.model()
    same = [model.lm_head.weight is model.model.embed_tokens.weight]
    model.load_state_dict({name: one * 1.5 for name, one in model.state_dict().items()})
    same.append(model.lm_head.weight is model.model.embed_tokens.weight)
    return {"same": torch.tensor(same), "logits": logits(model)}


@row(GROUP, "names and shapes of state_dict, parameters and buffers")
def names(place: Place) -> Results:
    model = place.model()
    shapes = {f"state.{name}": torch.tensor(one.shape) for name, one in model.state_dict().items()}
    return shapes | {f"parameter.{name}": torch.tensor(one.shape) for name, one in model.named_parameters()}


@row(GROUP, "names of modules")
def modules(place: Place) -> Results:
    """Stock's rotary embedding is a module; ours has no state and is a function."""
    skipped = ("rotary_emb", "activation")
    return {name or "root": torch.tensor(1) for name, _ in place.model().named_modules() if not name.endswith(skipped)}


@row(GROUP, "num_parameters, get_memory_footprint, get_input_embeddings, base_model, device, dtype")
def accessors(place: Place) -> Results:
    model = place.model()
    return {
        "parameters": torch.tensor(model.num_parameters()),
        "trainable": torch.tensor(model.num_parameters(only_trainable=True, exclude_embeddings=True)),
        "footprint": torch.tensor(model.get_memory_footprint(return_buffers=False)),
        "dtype": torch.tensor(model.dtype.itemsize),
        "base": torch.tensor(model.base_model is model.model),
        "decoder": torch.tensor(model.get_decoder() is model.model),
        "generates": torch.tensor(model.can_generate()),
    }


@row(GROUP, "deepcopy", four_bits=True)
def deepcopied(place: Place) -> Results:
    model = place.model()
    copied = copy.deepcopy(model)
    return {"logits": logits(copied), "few": logits(copied, FEW)}


@row(GROUP, "pickle of the configuration and of the model", four_bits=True)
def pickled(place: Place) -> Results:
    model = place.model()
    config = pickle.loads(pickle.dumps(model.config))
    results = {"equal": torch.tensor(config.to_dict() == model.config.to_dict())}
    return results | attempt("model", lambda: logits(pickle.loads(pickle.dumps(model))))


@row(GROUP, "torch.save and torch.load of a state_dict")
def state_dict_file(place: Place) -> Results:
    model = place.model()
    torch.save(model.state_dict(), place.folder / "state.pt")
    other = AutoModelForCausalLM.from_config(model.config).eval()
    other.load_state_dict(torch.load(place.folder / "state.pt", weights_only=True))
    return {"logits": logits(other)}


@row(GROUP, "save_pretrained in shards, and loaded again", four_bits=True)
def shards(place: Place) -> Results:
    model = place.model()
    model.save_pretrained(place.folder / "model", max_shard_size="40KB")
    options = {} if place.four_bits and place.ours else {"dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(place.folder / "model", **options)
    count = len(list((place.folder / "model").glob("*.safetensors")))
    loaded = loaded.float() if not place.four_bits else loaded
    results = {"sharded": torch.tensor(count > 2)}
    if not place.four_bits:
        results["logits"] = logits(loaded.eval())
    else:
        results["generated"] = torch.tensor(generated(loaded.eval()).shape)
    return results


@row(GROUP, "save_pretrained with a state_dict, and of bf16")
def save_options(place: Place) -> Results:
    model = place.model()
    model.save_pretrained(place.folder / "a", state_dict={k: v * 1.5 for k, v in model.state_dict().items()})
    model.to(torch.bfloat16).save_pretrained(place.folder / "b")
    loaded = [AutoModelForCausalLM.from_pretrained(place.folder / name, dtype="auto").eval() for name in "ab"]
    return {"scaled": logits(loaded[0]), "dtype": torch.tensor(loaded[1].dtype.itemsize)}


@row(GROUP, "from_pretrained(None, config=, state_dict=)")
def from_state(place: Place) -> Results:
    model = place.model()
    made = AutoModelForCausalLM.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    return {"logits": logits(made.eval())}


@row(GROUP, "class.from_pretrained(None, config=, state_dict=)")
def class_from_state(place: Place) -> Results:
    model = place.model()
    made = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    return {"logits": logits(made.eval())}


@row(GROUP, "from_config, and weights of the same seed", four_bits=False)
def from_config(place: Place) -> Results:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place.path()))
    return {
        f"std of {name}": one.std().round(decimals=2)
        for name, one in model.named_parameters()
        if one.ndim > 1 and "experts" not in name and "linear" not in name
    }


LOADING: dict[str, dict[str, Any]] = {
    "dtype='bfloat16'": {"dtype": "bfloat16"},
    "dtype='auto'": {"dtype": "auto"},
    "torch_dtype=torch.float16": {"torch_dtype": torch.float16, "dtype": None},
    "device_map='cpu'": {"device_map": "cpu"},
    "device_map='auto'": {"device_map": "auto"},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "output_loading_info": {"output_loading_info": True},
    "use_safetensors": {"use_safetensors": True},
    "key_mapping": {"key_mapping": {"^model.": "model."}},
    "changed configuration by keyword": {"attention_dropout": 0.1, "use_cache": False},
}
for name, options in LOADING.items():

    def load(place: Place, options: dict[str, Any]) -> Results:
        kept = {key: value for key, value in {"dtype": torch.float32, **options}.items() if value is not None}
        bits = {"quantization": "nf4"} if place.four_bits and place.ours else {}
        model = AutoModelForCausalLM.from_pretrained(place.path(), **kept, **bits)
        if isinstance(model, tuple):
            model, info = model
            counts = torch.tensor([len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")])
        else:
            counts = torch.zeros(0)
        return {"size": torch.tensor(model.dtype.itemsize), "keys": counts, "logits": logits(model.float().eval())}

    row(GROUP, f"from_pretrained, {name}", tolerance=3e-2 if "float16" in name else 1e-5)(
        partial(load, options=options)
    )


ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 256},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "rope_theta": 10000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "another theta": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip


def rope(place: Place, parameters: dict[str, Any], way: str) -> Results:
    parameters = dict(parameters)
    options: dict[str, Any] = {"dtype": torch.float32}
    path = place.path()
    if way == "configuration":
        config = AutoConfig.from_pretrained(path)
        config.rope_parameters = parameters
        options["config"] = config
    elif way == "keyword":
        options["rope_parameters"] = parameters
    elif way == "rope_scaling":
        options["rope_scaling"] = parameters
    else:
        import shutil

        path = place.folder / "model"
        shutil.copytree(place.path(), path)
        stored = json.loads((path / "config.json").read_text())
        stored["rope_parameters"] = parameters
        (path / "config.json").write_text(json.dumps(stored))
    model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    long = torch.randint(3, 250, (1, 600), generator=torch.Generator().manual_seed(5))
    results = {
        "logits": logits(model),
        "long": logits(model, long[:, : 600 if parameters["rope_type"] == "dynamic" else 200]),
    }
    plain = logits(place.model())
    require_change(plain, results["logits"] if parameters["rope_type"] != "dynamic" else torch.zeros_like(plain))
    return results


for name, parameters in ROPE.items():
    for way in ("configuration", "keyword", "config.json", "rope_scaling"):
        row(GROUP, f"RoPE {name} by {way}", tolerance=1e-4)(partial(rope, parameters=parameters, way=way))


@row(GROUP, "rope_theta set after loading the configuration")
def rope_theta(place: Place) -> Results:
    config = AutoConfig.from_pretrained(place.path())
    config.rope_parameters["rope_theta"] = 500.0
    return {
        "logits": logits(AutoModelForCausalLM.from_pretrained(place.path(), config=config, dtype=torch.float32).eval())
    }


LABELS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "single label": ({}, torch.tensor([0, 2, 1])),
    "several labels": (
        {"problem_type": "multi_label_classification"},
        torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]]),
    ),
    "regression of three numbers": (
        {"problem_type": "regression"},
        torch.tensor([[0.5, 1, -1], [0.0, 0, 1], [2, 1, 0]]),
    ),
}
for name, (options, target) in LABELS.items():

    def classify(place: Place, options: dict[str, Any], target: Tensor) -> Results:
        model = place.classifier(**options)
        results = forward_and_backward(model, labels=target, attention_mask=PADDED)
        padded = BATCH.clone()
        padded[1, 18:] = 256  # the padding token, without a mask
        return results | {"by token": logits(model, padded)}

    row(GROUP, f"AutoModelForSequenceClassification, {name}")(partial(classify, options=options, target=target))


@row(GROUP, "AutoModelForSequenceClassification, regression")
def regression(place: Place) -> Results:
    model = AutoModelForSequenceClassification.from_pretrained(
        place.path("classifier"), num_labels=1, ignore_mismatched_sizes=True, dtype=torch.float32
    ).eval()
    torch.nn.init.normal_(model.score.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return forward_and_backward(model, labels=torch.tensor([0.5, -1.0, 2.0]), attention_mask=PADDED)


@row(GROUP, "AutoModelForSequenceClassification from a language model's folder")
def new_head(place: Place) -> Results:
    model = AutoModelForSequenceClassification.from_pretrained(
        place.path(), num_labels=4, dtype=torch.float32, pad_token_id=256
    ).eval()
    torch.nn.init.normal_(model.score.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return forward_and_backward(model, labels=torch.tensor([0, 2, 3]), attention_mask=PADDED)


@row(GROUP, "AutoModelForSequenceClassification, outputs and embeddings")
def classifier_outputs(place: Place) -> Results:
    model = place.classifier()
    embedded = model.get_input_embeddings()(BATCH).detach()
    output = model(inputs_embeds=embedded, attention_mask=PADDED, output_hidden_states=True, use_cache=True)
    return {
        "logits": output.logits,
        "hidden": output.hidden_states[-1],
        "cache": torch.tensor(output.past_key_values.get_seq_length()),
    }


for name in ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering"):

    def unsupported(place: Place, name: str) -> Results:
        import transformers

        return {"logits": logits(getattr(transformers, name).from_pretrained(place.path()).eval())}

    row(GROUP, name)(partial(unsupported, name=name))


@row(GROUP, "AutoModel", four_bits=True)
def auto_model(place: Place) -> Results:
    output = place.model(model_class=AutoModel)(BATCH, attention_mask=PADDED, output_hidden_states=True)
    return {"last": output.last_hidden_state * PADDED.unsqueeze(-1)} | {
        f"hidden {i}": one for i, one in enumerate(output.hidden_states[:-1])
    }


@row(GROUP, "pipeline text-generation", four_bits=True)
def text_generation(place: Place) -> Results:
    made = pipeline("text-generation", model=adapted_model(place), tokenizer=place.tokenizer())
    chat = [{"role": "user", "content": "Say tea"}]
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    texts = [
        made(["rain", "a longer text"], batch_size=2, **options)[0][0]["generated_text"],
        made(chat, **options)[0]["generated_text"],
    ]
    texts = [text if isinstance(text, str) else json.dumps(text) for text in texts]
    return {str(i): torch.tensor(list(text.encode()) or [0]) for i, text in enumerate(texts)}


@row(GROUP, "pipeline text-generation by folder")
def pipeline_of_folder(place: Place) -> Results:
    made = pipeline("text-generation", model=str(place.path()), dtype=torch.float32)
    text = made("rain", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    return {"text": torch.tensor(list(text.encode()))}


@row(GROUP, "pipeline text-classification")
def text_classification(place: Place) -> Results:
    made = pipeline("text-classification", model=place.classifier(), tokenizer=place.tokenizer())
    scores = made(["rain", "a longer text"], batch_size=2, top_k=None)
    return {
        "scores": torch.tensor([[one["score"] for one in sorted(row, key=lambda one: one["label"])] for row in scores])
    }


@row(GROUP, "pipeline feature-extraction")
def features(place: Place) -> Results:
    made = pipeline("feature-extraction", model=place.model(model_class=AutoModel), tokenizer=place.tokenizer())
    return {"features": torch.tensor(made("a text"))}


@row(GROUP, "pipeline zero-shot-classification")
def zero_shot(place: Place) -> Results:
    made = pipeline("zero-shot-classification", model=place.classifier(), tokenizer=place.tokenizer())
    return {"scores": torch.tensor(made("rain", candidate_labels=["tea", "sea"])["scores"])}


@row(GROUP, "legacy field names in config.json")
def legacy_fields(place: Place) -> Results:
    import shutil

    path = place.folder / "model"
    shutil.copytree(place.path(), path)
    stored = json.loads((path / "config.json").read_text())
    for old, new in {
        "ffn_hidden_size": "intermediate_size",
        "moe_num_experts": "num_local_experts",
        "moe_top_k": "num_experts_per_tok",
    }.items():
        stored[old] = stored.pop(new)
    (path / "config.json").write_text(json.dumps(stored))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return {"logits": logits(model), "logits.expected": logits(place.model())}


@row(GROUP, "skip_logits: the loss without the logits")
def skip_logits(place: Place) -> Results:
    """Of ours alone: the loss, its gradients, `shift_labels`, a bias and an adapter on the head."""
    assert place.ours, "stock has no skip_logits"
    results: Results = {}
    for name, config in {"all": lora_on_all(), "head": lora(target_modules=["lm_head", "kv_proj"])}.items():
        made = []
        for skip in ({}, {"skip_logits": True}):
            adapted = adapt(place.model("untied"), config)
            output = adapted(BATCH, labels=BATCH, **skip)
            output.loss.backward()
            grads = {n: p.grad for n, p in adapted.named_parameters() if p.grad is not None}
            made.append({"loss": output.loss.detach(), **grads})
        results |= {f"{name}.{key}.expected": one for key, one in made[0].items()}
        results |= {f"{name}.{key}": one for key, one in made[1].items()}
    model = place.model("untied")
    shifted = torch.nn.functional.pad(BATCH[:, 2:], (0, 2), value=-100)
    for key, options in {
        "shift_labels": {"labels": BATCH, "shift_labels": shifted},
        "count": {"labels": BATCH, "num_items_in_batch": torch.tensor(50)},
    }.items():
        results[f"{key}.expected"] = model(BATCH, **options).loss
        results[key] = model(BATCH, skip_logits=True, **options).loss
    model.lm_head.bias = torch.nn.Parameter(torch.arange(VOCABULARY) / 100)
    results["bias.expected"] = model(BATCH, labels=BATCH).loss
    results["bias"] = model(BATCH, labels=BATCH, skip_logits=True).loss
    return results
