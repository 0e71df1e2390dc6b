"""Specialists: what they change, what their composition keeps of them, and where its routers send each domain."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from jetmoe import RoutingRecorder
from jetmoe.adapters.switching import Adapters
from jetmoe.interventions import Intervention
from jetmoe.lora import lora_config
from jetmoe.low_rank import AdapterError
from jetmoe.specialists import changed_experts, compose, only, replica
from tests.builders.stock import run_stock
from tests.builders.toy_model import TOYS, toy_model

FAMILIES = list(TOYS)
STOCK = """
import sys, peft
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "both").eval()
save_file({"logits": model(load_file(folder / "ids.safetensors")["ids"]).logits.detach()}, folder / "stock.safetensors")
"""
GROUPS = [[0, 2], [1, 3]]
"""The experts of the two specialists: in JetMoE, those of the two replicas."""


def toy(family):
    model = toy_model(family=family, **({"expert_groups": [0, 1, 0, 1]} if family == "jetmoe" else {}))
    if family == "jetmoe":
        for layer in model.model.layers:
            for router in layer.routers():
                router.layer.weight.data[2:] = router.layer.weight.data[:2]  # both slots of a replica have one row
    return model


def domain(number: int, tokens: int = 1000) -> torch.Tensor:
    """Text of ten words; those of even and of odd numbers are different ones."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(3 + 10 * (number % 2), 13 + 10 * (number % 2), (tokens,), generator=generator)


def train(folder: Path, family: str, number: int, **options) -> Path:
    """Trains a specialist, as a run does."""
    torch.manual_seed(number)
    model = toy(family)
    preset = {"jetmoe": "moa+experts", "olmoe": "experts"}[family]
    adapted = peft.get_peft_model(model, lora_config(preset, family=family, **{"r": 4, **options}))
    optimizer = torch.optim.Adam([each for each in adapted.parameters() if each.requires_grad], lr=0.05)
    ids = domain(number)[None, :64]
    with only(model.config, GROUPS[number]).on(model):
        for _ in range(5):
            optimizer.zero_grad()
            adapted(ids, labels=ids).loss.backward()
            optimizer.step()
    adapted.save_pretrained(folder / f"{family}-{number}")
    return folder / f"{family}-{number}"


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory) -> tuple[str, list[Path]]:
    folder = tmp_path_factory.mktemp("specialists")
    return request.param, [train(folder, request.param, number) for number in range(2)]


@torch.no_grad()
def logits_of(family: str, folder: Path | None, ids: torch.Tensor, experts: list[int] | None = None) -> torch.Tensor:
    model = toy(family)
    if folder is not None:
        adapters = Adapters(model)
        adapters.load(folder, "one")
        adapters.use("one")
    with only(model.config, range(4) if experts is None else experts).on(model):
        return model(ids[None]).logits


def test_a_specialist_changes_its_experts_alone(trained):
    family, folders = trained
    for folder, experts in zip(folders, GROUPS, strict=True):
        changed = changed_experts(folder, toy(family))
        assert changed.shape == Intervention(toy(family).config).forced.shape
        assert changed[..., experts].all() and int(changed.sum()) == changed.numel() // 2


def test_forced_to_one_specialist_the_composition_is_that_specialist(trained, tmp_path):
    """In models with replicas bit for bit: their gates do not depend on what the routers say."""
    family, folders = trained
    compose(toy(family), folders, [domain(0), domain(1)], tmp_path)
    for number, experts in enumerate(GROUPS):
        ids = domain(number)[100:150]
        alone, composed = (logits_of(family, folder, ids, experts) for folder in (folders[number], tmp_path))
        assert (alone - logits_of(family, None, ids, experts)).abs().max() > 0.1
        if family == "jetmoe":
            assert torch.equal(composed, alone)
        torch.testing.assert_close(composed, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def routed(model, ids: torch.Tensor):
    """The selected experts `[L, N, T, K]`."""
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    with RoutingRecorder(model, len(ids)) as recorder:
        model(ids[None])
    return recorder.trace(ids.tolist(), [""] * len(ids), True).experts


def shares(model, ids: torch.Tensor) -> torch.Tensor:
    """The share of the assignments that each specialist gets."""
    experts = torch.from_numpy(routed(model, ids).astype("int64"))
    return torch.stack([torch.isin(experts, torch.tensor(group)).float().mean() for group in GROUPS])


def test_routers_send_unseen_text_of_a_domain_to_its_specialist(trained, tmp_path):
    family, folders = trained
    composed = compose(toy(family), folders, [domain(0), domain(1)], tmp_path)
    for number in range(2):
        unseen = domain(number + 2)[:100]
        assert shares(composed, unseen)[number] > 0.9
        assert shares(toy(family), unseen)[number] < 0.8, "by itself the model does not know the domains"


def test_stock_peft_computes_the_composition(trained, tmp_path):
    family, folders = trained
    toy(family).save_pretrained(tmp_path / "base")
    composed = compose(toy(family), folders, [domain(0), domain(1)], tmp_path / "both")
    ids = torch.cat([domain(2)[:40], domain(3)[:40]])[None]
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    run_stock(STOCK, tmp_path)
    with torch.no_grad():
        own = composed(ids).logits
    torch.testing.assert_close(load_file(tmp_path / "stock.safetensors")["logits"], own, rtol=1e-4, atol=1e-4)


def test_tied_replicas_stay_tied(tmp_path):
    folders = [train(tmp_path, "jetmoe", number) for number in range(2)]
    composed = compose(toy("jetmoe"), folders, [domain(0), domain(1)], tmp_path / "both")
    experts = routed(composed, domain(0, 100))
    assert (experts % 2 == experts[..., :1] % 2).all()


def test_one_specialist_and_the_rest(tmp_path):
    folder = train(tmp_path, "jetmoe", 0)
    composed = compose(toy("jetmoe"), [folder], [domain(0)], tmp_path / "one", rest=domain(1))
    assert shares(composed, domain(2)[:100])[0] > 0.9 and shares(composed, domain(3)[:100])[1] > 0.9


def test_experts_of_a_replica():
    config = toy("jetmoe").config
    assert replica(config, 1) == [1, 3]
    with pytest.raises(ValueError, match=r"There is no replica 2: they go from 0 to 1\."):
        replica(config, 2)
    with pytest.raises(ValueError, match="This model has no replicas"):
        replica(toy("olmoe").config, 0)
    with pytest.raises(ValueError, match="There is no expert 4"):
        only(config, [3, 4])
    with pytest.raises(ValueError, match="left with 1 experts, and it selects 2"):
        only(config, [3])


def test_what_is_no_specialist_is_refused_with_the_remedy(tmp_path):
    model, ids = toy("jetmoe"), domain(0)
    first, second = train(tmp_path, "jetmoe", 0), train(tmp_path, "jetmoe", 1, r=2)

    def refused(folders, words):
        with pytest.raises(AdapterError, match=words):
            compose(model, folders, [ids] * len(folders), tmp_path / "never")
        assert not (tmp_path / "never").exists() and not hasattr(model, "peft_config")

    refused([], "There are no specialists")
    refused([first, first], "both change expert 0 of layer 0")
    refused([first, second], "have another rank, lora_alpha or preset")
    peft.get_peft_model(toy("jetmoe"), lora_config("all", r=4)).save_pretrained(tmp_path / "all")
    refused([first, tmp_path / "all"], r"kv_proj, which all experts share\. .* moa\+experts")
    weights = load_file(first / "adapter_model.safetensors")
    zero = {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(zero, first / "adapter_model.safetensors")
    refused([first], "jetmoe-0 changes no expert")
    one = train(tmp_path, "jetmoe", 0, r=1)
    refused([one], "routers need a rank of 2, and the specialists have 1")
