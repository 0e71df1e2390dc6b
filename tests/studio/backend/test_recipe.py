"""Recipes: the bundled files, what is refused and how, overrides, and the way back to YAML."""

import time
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.backend.recipe import DEFAULTS, RANGES, Recipe, sections
from studio.backend.recipe_file import FOLDER, recipes
from studio.backend.settings import field_help
from studio.errors import StudioError

FILES = sorted(FOLDER.rglob("*.y*ml"))


def refused(values: dict) -> str:
    with pytest.raises(StudioError) as error:
        Recipe.from_settings(values)
    return str(error.value)


def refused_file(folder: Path, content: str | bytes) -> str:
    file = folder / "recipe.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StudioError) as error:
        Recipe.load(file)
    return str(error.value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_every_bundled_file_loads_and_says_how_to_launch_it(file):
    text = file.read_text()
    assert text.startswith("# ") and "# Launch:" in text and "# Override:" in text
    if file.parent.name == "accelerate":
        from accelerate.commands.config.config_args import load_config_from_file

        assert load_config_from_file(str(file)).num_processes >= 1
    else:
        assert Recipe.load(file).to_yaml()


def test_the_bundled_recipes_have_names():
    names = {
        "starter/lora_experts",
        "starter/lora_all",
        "starter/classify",
        "starter/classify_quick",
        "starter/specialist",
    }
    names |= {"jetmoe-8b/classify"} | {f"jetmoe-8b/qlora_{preset}" for preset in ("attention", "experts", "all", "hot")}
    names |= {f"olmoe-1b-7b/{name}" for name in ("qlora_all", "qlora_hot", "classify")}
    assert set(recipes()) == names
    assert {file.stem for file in (FOLDER / "accelerate").iterdir()} == {"one_gpu", "ddp", "fsdp", "cpu_2proc"}


@pytest.mark.parametrize("file", recipes().values(), ids=list(recipes()))
def test_bundled_recipes_keep_the_order_of_the_fields(file):
    given = list(yaml.safe_load(file.read_text()))
    assert given == [name for name in DEFAULTS if name in given]


def test_names_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = Recipe.load("starter/lora_experts")
    assert by_name == Recipe.load("recipes/starter/lora_experts.yaml") and by_name.preset == "experts+moa"
    assert Recipe.load("jetmoe-8b/qlora_hot").precision == "nf4"


def test_a_file_of_ones_own_comes_before_the_bundled_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("recipes/starter/lora_experts.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("r: 3")
    assert Recipe.load(file).r == 3


@pytest.mark.parametrize(
    "name", ["", "starter", "../recipes/starter/lora_all", "/etc/passwd", "no.yaml", "a" * 5000, "\0"]
)
def test_other_names_are_refused(name):
    with pytest.raises(StudioError, match="There is no recipe"):
        Recipe.load(name)
    with pytest.raises(StudioError, match="There is no recipe"):
        Recipe.load(f"{name}.yaml")


def test_all_that_is_wrong_is_said_at_once():
    bad = {"learning_rate": 1e9, "r": 0, "epochs": -1, "eval_share": 0.7, "warmup_share": 1.0, "hot_share": 0}
    text = refused(bad | {"precision": "int8", "packing": "perhaps", "lerning_rate": 1e-4, "preset": "all+heads"})
    for name in bad:
        assert f"{name} is {bad[name]!r}: set a " in text
    assert "precision is 'int8': set one of auto, nf4, bf16, fp32" in text
    assert "packing is 'perhaps': set true or false" in text
    assert "there is no setting 'lerning_rate', did you mean learning_rate?" in text
    assert "preset is 'all+heads': set one or more of attention, experts, moa, all, router, hot" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, "", [], -1, 10**400, "nan"], ids=repr)
def test_every_number_has_limits(value):
    text = refused(dict.fromkeys(RANGES, value))
    assert all(f"{name} is " in text for name in RANGES)


def test_numbers_too_long_to_write_out_are_refused():
    assert "seed is a number of thousands of digits" in refused({"seed": 16**5000})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", 1.5),
        ("preset", ""),
        ("preset", "all+all"),
        ("preset", ["all"]),
        ("columns", {"prompt": 1}),
        ("columns", "prompt"),
        ("sample_prompts", [""]),
        ("sample_prompts", ["Hi"] * 17),
        ("sample_prompts", "Hi"),
        ("data", 7),
        ("data", "a\0b"),
        ("probe_text", "\ud800"),
        ("insist_on_router", 1),
    ],
)
def test_each_bad_value_is_refused_by_name(name, value):
    assert f"{name} is " in refused({name: value})


def test_settings_at_odds_are_refused():
    assert "early_stopping needs held-out rows" in refused({"early_stopping": 2, "eval_share": 0})
    assert "save_steps must be a multiple of eval_steps" in refused({"save_steps": 30, "eval_steps": 20})
    assert Recipe(save_steps=30, eval_steps=20, eval_share=0) and Recipe(save_steps=30, eval_steps=0)
    # A bad value hides no other fault and makes none up.
    assert "multiple" not in refused({"save_steps": 30, "eval_steps": "often"})


def test_overrides():
    overrides = ["learning_rate=2e-4", "r=8", "packing=false", "columns={prompt: question}", "data=my: *rows.csv"]
    recipe = Recipe.load("starter/lora_all", [*overrides, "sample_prompts=[Hi, 'Who are you?']", "epochs=2"])
    assert (recipe.learning_rate, recipe.r, recipe.packing, recipe.epochs) == (2e-4, 8, False, 2)
    assert recipe.columns == {"prompt": "question"} and recipe.sample_prompts == ("Hi", "Who are you?")
    assert recipe.data == "my: *rows.csv" and recipe.max_length == 256


def test_bad_overrides_are_all_named():
    with pytest.raises(StudioError) as error:
        Recipe.load("starter/lora_all", ["rank=8", "r=*x", "columns={a", "packing=", "epochs=[[[[[1]]]]]"])
    for words in ("no setting 'rank'", "r is '*x'", "columns is '{a'", "packing is None", "epochs is '[[[[[1]]]]]'"):
        assert words in str(error.value)


def test_overrides_without_a_value_are_named():
    with pytest.raises(StudioError) as error:
        Recipe.load("starter/lora_all", ["rows.csv", "r=8", "data"])
    assert "'rows.csv' must have the form setting=value; 'data' must have the form setting=value" in str(error.value)


def test_numbers_as_yaml_and_forms_deliver_them(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("learning_rate: 2e-4\nr: 8.0\nmax_steps: 1e3\n")
    recipe = Recipe.load(file)
    assert (recipe.learning_rate, recipe.r, recipe.max_steps) == (2e-4, 8, 1000)
    assert isinstance(recipe.r, int) and isinstance(recipe.max_steps, int)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not a recipe"),
        ("- r", "is not a recipe"),
        ("r: 8\nr: 9", "r is set twice"),
        ("a: &a [x]\nb: [*a, *a]", "anchors and aliases"),
        ("columns: {a: {b: {c: {d: 1}}}}", "nested too deeply"),
        ("[" * 20_000, "nested too deeply"),
        ("r: !!python/object/apply:os.system [ls]", "can't be read as YAML"),
        ("seed: " + "9" * 5000, "can't be read as YAML"),
        ("r: [", "can't be read as YAML"),
        (b"data: \xff\xfe", "can't be read as YAML"),
        ("probe_text: " + "x" * 270_000, "larger than 256 KiB"),
        ("? [r]\n: 8", "can't be read as YAML"),
        ("8: r", "there is no setting '8'"),
    ],
)
def test_hostile_files_get_a_sentence(tmp_path, content, words):
    assert words in refused_file(tmp_path, content)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    data=texts,
    prompts=st.lists(texts, max_size=3),
    columns=st.dictionaries(texts, texts, max_size=2),
    rate=st.floats(1e-12, 0.1),
    probe=texts,
)
def test_yaml_and_back(tmp_path_factory, data, prompts, columns, rate, probe):
    recipe = Recipe(data=data, sample_prompts=tuple(prompts), columns=columns, learning_rate=rate, probe_text=probe)
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_bytes(recipe.to_yaml().encode())
    assert Recipe.load(file) == recipe


def test_the_largest_recipe_can_be_read_back(tmp_path):
    widest = "\u2028"  # six characters in YAML
    columns = {f"{i:02}" + 98 * widest: 100 * widest for i in range(20)}
    prompts = (1000 * widest,) * 16
    recipe = Recipe(
        1000 * widest, data=1000 * widest, columns=columns, sample_prompts=prompts, probe_text=widest * 10_000
    )
    file = tmp_path / "recipe.yaml"
    file.write_bytes(recipe.to_yaml().encode())
    assert Recipe.load(file) == recipe


def test_help_and_sections_cover_every_field():
    names = [field.name for field in fields(Recipe)]
    assert list(field_help(Recipe)) == names and all(text.endswith(".") for text in field_help(Recipe).values())
    assert [name for section in sections().values() for name in section] == names
    assert list(sections()) == ["Model", "Data", "Adapter", "Optimisation", "Evaluation and checkpoints"]


def test_a_recipe_of_thousands_of_unknown_settings_is_refused_at_once(tmp_path):
    file = tmp_path / "many.yaml"
    file.write_text("".join(f"k{i}: 1\n" for i in range(24_000)))
    begun = time.monotonic()
    with pytest.raises(StudioError, match=r"there is no setting 'k9'.*23,990 more settings are unknown"):
        Recipe.load(file)
    assert time.monotonic() - begun < 5
