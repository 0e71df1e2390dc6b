"""Classifiers, other heads, and pipelines."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    pipeline,
)

from tests.benchmarks.compatibility.place import (
    BATCH,
    PADDED,
    Place,
    Results,
    forward_and_backward,
    logits,
)
from tests.benchmarks.compatibility.registry import row
from tests.benchmarks.compatibility.rows.models import adapted_model

GROUP = "Models"


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
