"""Print which experts answer each token of a text: python -m examples.routing [MODEL] [TEXT]"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jetmoe import RoutingRecorder


@torch.no_grad()
def main(model_id: str = "allenai/OLMoE-1B-7B-0924", text: str = "Bonjour, the capital of France is Paris.") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.bfloat16, device_map="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)  # [1, T]
    with RoutingRecorder(model, capacity=ids.shape[1]) as recorder:
        model(ids)
    trace = recorder.trace(ids[0].tolist(), tokenizer.batch_decode(ids.T), is_prompt=True)
    middle = len(trace.experts) // 2
    for kind, experts, gates in zip(trace.kinds, trace.experts[middle], trace.gates[middle], strict=True):
        print(f"{kind} of layer {middle}")
        for token, chosen, weights in zip(trace.texts, experts, gates, strict=True):
            pairs = ", ".join(f"{expert} ({weight:.2f})" for expert, weight in zip(chosen, weights, strict=True))
            print(f"  {token!r:>14}  {pairs}")


if __name__ == "__main__":
    main(*sys.argv[1:])
