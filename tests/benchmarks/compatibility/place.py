"""What a row gets and returns: models on disk, fixed inputs, equal random tensors, and refusals."""

from __future__ import annotations

import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.benchmarks.compatibility.names import LINEAR, MOA, MOE, OTHER

VOCABULARY = 320
BATCH = torch.randint(3, 250, (3, 24), generator=torch.Generator().manual_seed(0))
FEW = torch.randint(3, 250, (1, 3), generator=torch.Generator().manual_seed(1))
# The last row is shorter, padded on the left.
PADDED = torch.ones_like(BATCH)
PADDED[-1, :9] = 0


@dataclass(frozen=True)
class Refusal:
    """An error in place of a result."""

    error: str
    message: str
    clear: bool
    """The package itself raises it, as an error of the caller: these name a remedy."""
    claim: bool = False
    """The row raises it: what it asserts does not hold."""
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Refusal:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        in_package = last is not None and "/jetmoe/" in last.filename and "/transformers/" not in last.filename
        raised = in_package and (last.line or "").startswith("raise ")  # not by a function that a line calls
        message = " ".join(str(error).split())
        kinds = ValueError | TypeError | NotImplementedError
        # A CheckpointError blames files that stock has just read.
        clear = raised and isinstance(error, kinds) and type(error).__name__ != "CheckpointError"
        claim = isinstance(error, AssertionError) and last is not None and "/compatibility/" in last.filename
        trace = "".join(traceback.format_exception(error)[-6:])
        return cls(type(error).__name__, message, clear, claim, trace)

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Results = dict[str, "Tensor | Refusal"]


# Models as they are after loading. A row is alone in its process, so it takes one, and loads the others.
PRELOADED: dict[str, Any] = {}


@dataclass(frozen=True)
class Place:
    """Where a row runs."""

    checkpoints: Path
    """Folders `tied`, `untied`, `shallow` (one layer), `classifier`, and the
    weights of `tied` and `shallow` after rounding to 4 bits, `*-dequantized`."""
    folder: Path
    """Empty, for the row alone."""
    ours: bool
    four_bits: bool = False

    def path(self, kind: str = "tied") -> Path:
        """Return a checkpoint's folder. In place of 4-bit weights, stock has the dequantized ones."""
        return self.checkpoints / (kind + "-dequantized" * (self.four_bits and not self.ours))

    def model(self, kind: str = "tied", model_class: Any = AutoModelForCausalLM, **options) -> Any:
        """Load a model in eval mode; fp32, unless `dtype` is given."""
        torch.manual_seed(0)
        if not options and model_class is AutoModelForCausalLM and self._name(kind) in PRELOADED:
            return PRELOADED.pop(self._name(kind))
        options.setdefault("dtype", torch.float32)
        if self.four_bits and self.ours:
            options["quantization"] = "nf4"
        return model_class.from_pretrained(self.path(kind), **options).eval()

    def preload(self, kind: str) -> None:
        PRELOADED[self._name(kind)] = self.model(kind)

    def _name(self, kind: str) -> str:
        return kind + ", 4 bits" * self.four_bits

    def classifier(self, **options) -> Any:
        return self.model("classifier", AutoModelForSequenceClassification, **options)

    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.checkpoints / "tied")


def noise(name: str, shape: Any, std: float = 0.1) -> Tensor:
    """Return random numbers that depend on the name alone, not on the order in which modules are visited."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator) * std


@torch.no_grad()
def fill(model: nn.Module, std: float = 0.1, adapter: str | None = None) -> None:
    """Fill every trainable tensor with noise of its name, so that an adapter that starts at zero does something."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point() and (adapter is None or f".{adapter}" in name):
            parameter.copy_(noise(name, parameter.shape, std).to(parameter.dtype))


def adapt(model: Any, config: peft.PeftConfig, std: float | None = 0.1, name: str = "default") -> Any:
    """Wrap a model; `std` None keeps the tensors that PEFT initialises."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config, adapter_name=name)
    if std is not None:
        fill(adapted, std)
    return adapted.eval()


def lora(**options) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": [LINEAR], "task_type": "CAUSAL_LM", **options})


def lora_on_all(**options) -> peft.LoraConfig:
    """On linear layers of attention, routers, and all experts."""
    return lora(target_modules=[LINEAR, OTHER], target_parameters=[*MOA, *MOE], **options)


@torch.no_grad()
def logits(model: Any, ids: Tensor = BATCH, **options) -> Tensor:
    return model(input_ids=ids, **options).logits.detach().clone()


def forward_and_backward(model: Any, ids: Tensor = BATCH, labels: Tensor | None = None, **options) -> Results:
    """Return loss, logits, and the gradient of every trainable tensor."""
    model.zero_grad()
    output = model(input_ids=ids, labels=ids if labels is None else labels, **options)
    output.loss.backward()
    results = {"loss": output.loss.detach(), "logits": output.logits.detach().clone()}
    return results | gradients(model)


def gradients(model: nn.Module) -> Results:
    return {f"grad.{name}": one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def trainable(model: nn.Module) -> Results:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def generated(model: Any, ids: Tensor = FEW, **options) -> Tensor:
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 256, "eos_token_id": None, **options}
    return model.generate(input_ids=ids, **options)


def attempt(name: str, work: Callable[[], Tensor | Results]) -> Results:
    """Return the results of a part of a row under a name, or its refusal."""
    try:
        made = work()
    except Exception as error:
        return {name: Refusal.of(error)}
    return {name: made} if isinstance(made, Tensor) else {f"{name}.{key}": value for key, value in made.items()}


def require_change(one: Tensor, other: Tensor, least: float = 1e-3) -> None:
    """Raise AssertionError if two results are equal, where a row would otherwise compare nothing."""
    assert float((one - other).abs().max()) > least, "nothing changed: the row tests nothing"
