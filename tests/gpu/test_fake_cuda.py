"""The models on fake CUDA tensors: what refuses or mixes devices, without a card. `make fake-gpu-check` runs it."""

from functools import partial

import peft
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import StaticCache

from jetmoe import RoutingRecorder, device
from jetmoe.autograd import is_exporting
from jetmoe.decode import compiled_step
from jetmoe.experts import products
from jetmoe.experts.assignments import SortedAssignments
from jetmoe.experts.experts import LinearExperts
from jetmoe.loading.devices import dispatch_model
from jetmoe.lora import lora_config
from jetmoe.nf4 import cpu as nf4_cpu
from jetmoe.nf4 import parts
from jetmoe.nf4.tensor import NF4Tensor
from tests.builders.gpu_paths import AMPERE, HOPPER, TURING
from tests.gpu.correctness import TOYS, WEIGHTS, toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.version.cuda is None or torch.cuda.is_available(), reason="needs a CUDA build of torch and no card"
    ),
]
CARDS = [torch.device("cuda", index) for index in range(2)]


@pytest.fixture(params=[HOPPER, AMPERE, TURING], ids=str)
def capability(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param


@pytest.fixture
def hopper(monkeypatch):
    use(monkeypatch, HOPPER)


def use(patch, capability):
    patch.setattr(device, "capability", lambda device: capability)
    # A fake tensor holds no values: where the host must know the experts, all have the same number of tokens.
    patch.setattr(SortedAssignments, "sizes", lambda each: [len(each.order) // len(each.ends)] * len(each.ends))
    patch.setattr(nf4_cpu, "quantizer", lambda: None)  # reads addresses


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for tables, size in ((parts._NF4_VALUES, 16), (parts._NESTED_CODES, 256)):
            for place in (*CARDS, torch.device("cpu")):
                monkeypatch.setitem(tables, place, torch.empty(size, device=place))
        yield mode


def made(family, weights, place=CARDS[0], **changes):
    with place:
        return toy(family, weights, **changes)


def ids(length):
    return torch.zeros(1, length, dtype=torch.int64, device=CARDS[0])


@pytest.mark.parametrize("family", TOYS)
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_prompts_and_steps_stay_on_the_card(capability, family, weights):
    model = made(family, weights)
    with RoutingRecorder(model, 64):
        for length in (20, 3):
            assert model(ids(length), use_cache=False).logits.device == CARDS[0]
        # With a mask of four dimensions, transformers reads no value of the cache.
        mask = torch.ones(1, 1, 1, 64, dtype=torch.bool, device=CARDS[0])
        cache = StaticCache(config=model.config, max_cache_len=64)
        assert model(ids(1), position_ids=ids(1), attention_mask=mask, past_key_values=cache).logits.is_cuda


@pytest.mark.parametrize("double", [False, True])
def test_moving_experts_moves_their_codes(hopper, double):
    experts = LinearExperts(4, 128, 64)
    experts.weight = nn.Parameter(NF4Tensor(parts.empty((4, 64, 128), double)), requires_grad=False)
    experts.to(CARDS[0])
    moved = experts.stored()
    assert moved is experts.weight.parts and {part.device for part in moved if part is not None} == {CARDS[0]}


@pytest.mark.parametrize("family", TOYS)
@pytest.mark.parametrize("preset", ["all", "router"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_adapters(capability, monkeypatch, family, preset, weights):
    model = made(family, weights)
    with CARDS[0], monkeypatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda module, *args, **kwargs: module)  # fake modules can't be moved
        model = peft.get_peft_model(model, lora_config(preset, r=8, family=family))
    for train in (True, False):
        with torch.set_grad_enabled(train):
            for length in (20, 2):
                assert model.train(train)(ids(length)).logits.is_cuda


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_a_model_on_two_cards(hopper, weights):
    model, other = (made("jetmoe", weights, place, num_hidden_layers=2) for place in CARDS)
    model.model.layers[1], model.model.norm = other.model.layers[1], other.model.norm
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1}
    dispatch_model(model, {name: CARDS[index] for name, index in places.items()})
    with RoutingRecorder(model, 64) as recorder:
        assert model(ids(20)).logits.device == CARDS[0]
    assert recorder.logits.device == CARDS[0]


def test_a_compiled_graph_is_no_export(hopper):
    """torch 2.11 says that it is, and in an export every expert multiplies every token."""
    compiled = torch.compile(lambda rows: rows[:1] if is_exporting() else rows, fullgraph=True, backend="eager")
    assert len(compiled(ids(4)[0])) == 4


@pytest.mark.parametrize("double", [False, True])
@torch.no_grad()
def test_the_kernel_is_one_operation_of_a_graph(hopper, double):
    from jetmoe.nf4.triton import chosen_linear

    weight = parts.empty((4, 64, 128), double, CARDS[0])
    rows = torch.zeros(2, 128, dtype=torch.bfloat16, device=CARDS[0])
    experts = torch.zeros(4, dtype=torch.int64, device=CARDS[0])
    compiled = torch.compile(partial(chosen_linear, parts=weight), fullgraph=True, backend="aot_eager")
    assert compiled(rows, experts).shape == (4, 64)


@pytest.mark.parametrize("family", TOYS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("triton", [False, True])
@torch.no_grad()
def test_a_decoding_step_compiles(hopper, monkeypatch, family, weights, triton):
    torch.compiler.reset()  # as an engine does for another model; Dynamo compiles a function for eight at most
    monkeypatch.setattr(products, "USE_TRITON", triton)
    model = made(family, weights, num_hidden_layers=2)
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(ids(9), past_key_values=cache)
    run = compiled_step(model, backend="eager")._run
    assert run(ids(1), ids(1), cache, recorder=RoutingRecorder(model, 64)).is_cuda
