"""What the page says about a run before it starts."""

from dataclasses import replace

from studio.backend.data.preview import Preview
from studio.backend.data.rendering import Summary
from studio.backend.recipe import Recipe
from studio.backend.training.zero_gpu_slices import SLICE_S
from studio.ui.finetune.audit_view import lent

# 90 rows that train 60 tokens each; 10 more were cut before their answer.
TOKENS = Summary([0, 65], [100], cut=10, untrained=10, tokens=5400, trained_tokens=900, controls={})
SEEN = Preview("rows.csv", [], rows=100, train_rows=90, held_out_rows=10, tokens=TOKENS)
RECIPE = Recipe(data="identity", batch_size=4, gradient_accumulation=2, max_length=128, packing=False, epochs=2)


def test_before_a_gpu_is_lent_steps_and_quota_are_counted():
    shown = lent(SEEN, RECIPE)
    # ceil(90 rows / 8) steps, twice.
    for figure in (">90<", ">24<", "steps of up to 8 rows", ">1,024<", ">90 s<", f"for {SLICE_S:.0f} s of training"):
        assert figure in shown, figure
    assert "so nothing was measured" in shown
    assert ">7<" in lent(SEEN, replace(RECIPE, max_steps=7, eval_steps=7, save_steps=7))


def test_packs_are_estimated_from_the_mean_row():
    # 90 rows of 60 tokens in packs of 128 are 43 packs, in 6 batches of 8.
    assert ">12<" in lent(SEEN, replace(RECIPE, packing=True))
    assert ">24<" in lent(replace(SEEN, tokens=None), replace(RECIPE, packing=True)), "without a tokenizer, none"


def test_a_probe_has_no_steps():
    shown = lent(SEEN, replace(RECIPE, task="classify", method="probe"))
    assert "steps of" not in shown and "tokens in a step" not in shown and "of your GPU quota" in shown
