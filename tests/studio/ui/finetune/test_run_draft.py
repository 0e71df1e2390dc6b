"""A run while it is put together: the form, what the browser keeps of it, and the recipe that it makes."""

import json
from dataclasses import replace

import pytest

from studio.backend.data import uploads
from studio.backend.hosting import demo
from studio.backend.recipe import DEFAULTS, Recipe
from studio.backend.recipe_file import recipes
from studio.errors import StudioError
from studio.ui.finetune.recipe_form import ELSEWHERE, NAMES, form_values, read_form
from studio.ui.finetune.run_draft import BUNDLED, CLASSIFIER, HUB, OWN_FILE, Draft, bundled_recipe, from_json

MODELS = ["starter", "jetmoe/jetmoe-8b"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_goes_through_the_form_unchanged(name):
    recipe = Recipe.load(name, ["data=identity"])
    assert Recipe.from_settings(read_form(form_values(recipe)) | {"data": "identity"}) == recipe


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("method", ["", "lora"])
def test_every_recipe_that_a_demo_offers_is_within_its_limits(name, method, monkeypatch):
    monkeypatch.setenv("STUDIO_DEMO", "1")
    draft = Draft().loaded(bundled_recipe(name), name)
    draft = replace(draft, settings=draft.settings | ({"method": method} if method else {}))
    models = [*MODELS, draft.settings["model"]]
    demo.limits().check_recipe(draft.recipe(models), models)
    assert draft.is_edited == (method != "" and name == "starter/classify_quick")


def test_the_form_has_every_setting_but_those_of_the_data():
    assert {*NAMES, *ELSEWHERE} == set(DEFAULTS)


def test_what_a_browser_delivers_becomes_settings():
    values = form_values(Recipe()) | {
        "preset": ["experts", "moa"], "r": 8.0, "learning_rate": "2e-4", "sample_prompts": "Who?\n\n What? ",
    }  # fmt: skip
    recipe = Recipe.from_settings(read_form(values))
    assert (recipe.preset, recipe.r, recipe.learning_rate) == ("experts+moa", 8, 2e-4)
    assert recipe.sample_prompts == ("Who?", " What? ")


def test_all_that_is_wrong_is_named_at_once_also_empty_fields():
    draft = Draft()
    bad = draft.settings | {"r": 0, "learning_rate": 1e9, "epochs": -1, "max_length": None, "preset": []}
    with pytest.raises(StudioError) as error:
        replace(draft, settings=bad).recipe(MODELS)
    assert all(name in str(error.value) for name in ("r is 0", "learning_rate", "epochs", "max_length", "preset"))


def test_a_draft_survives_the_browser():
    draft = Draft(OWN_FILE, "0" * 32, "rows.csv", "alpaca", {"output": "answer"}, form_values(Recipe(r=4)), "mine")
    assert from_json(draft.to_json()) == draft


@pytest.mark.parametrize(
    "stored",
    [
        "{", "[]", "null", "3", '{"source": 1}', '{"odd": 1}', '{"settings": {"rank": 1}}', '{"columns": []}',
        '{"source": "../../etc/passwd"}', '{"columns": {"prompt": 1}}', "[" * 100_000, "x" * 300_000, 7,
    ],
)  # fmt: skip
def test_what_is_no_draft_is_refused(stored):
    with pytest.raises(StudioError):
        from_json(stored)


def test_settings_that_an_earlier_version_did_not_have_get_their_defaults():
    draft = from_json('{"settings": {"r": 1}}')
    assert draft.settings == Draft().settings | {"r": 1}


def test_the_data_is_a_sample_or_an_upload_and_nothing_else(home):
    file = home / "rows.csv"
    file.write_text("prompt,completion\na,b\n")
    upload = uploads.keep(file)
    draft = Draft(OWN_FILE, upload, "rows.csv")
    recipe = draft.recipe(MODELS)
    assert recipe.data == str(uploads.find(upload)) and draft.shared(recipe).data == "rows.csv"
    with pytest.raises(StudioError, match="Upload a file"):
        Draft(OWN_FILE).recipe(MODELS)
    with pytest.raises(StudioError, match="Upload it again"):
        Draft(OWN_FILE, str(file)).recipe(MODELS)
    for stored in ({"source": str(file)}, {"source": "rows.csv"}):
        with pytest.raises(StudioError, match="no sample"):
            from_json(json.dumps(vars(Draft()) | stored))


def test_a_page_can_not_choose_a_folder_of_the_server(home):
    settings = Draft().settings | {"model": str(home)}
    with pytest.raises(StudioError, match="is not in the list"):
        Draft(settings=settings).recipe(MODELS)


def test_a_loaded_recipe_keeps_the_data_unless_it_names_a_sample():
    draft = Draft(OWN_FILE, "0" * 32, "rows.csv")
    assert draft.loaded(Recipe(r=3, data="else.csv")).source == OWN_FILE
    loaded = draft.loaded(Recipe(r=3, data="identity", format="alpaca"))
    assert (loaded.source, loaded.format, loaded.settings["r"]) == ("identity", "alpaca", 3)


def test_the_recipe_is_stored_with_the_values_that_it_gave():
    draft = Draft()
    assert draft.bundled == BUNDLED and not draft.is_edited
    classifier = from_json(draft.used_for("classify").to_json())
    assert classifier.bundled == CLASSIFIER and not classifier.is_edited
    other = replace(classifier, settings=classifier.settings | {"model": "jetmoe/jetmoe-8b"})
    assert not other.is_edited and replace(other, settings=other.settings | {"r": 3}).is_edited
    loaded = draft.loaded(Recipe(r=3, data="else.csv"))
    assert not loaded.bundled and not loaded.is_edited
    with pytest.raises(StudioError, match="no recipe"):
        from_json(replace(draft, bundled="../../etc/passwd").to_json())


def test_a_data_set_of_the_hub_is_named_and_never_a_path():
    draft = from_json(Draft(source=HUB, hub=" me/rows:train[:10] ").to_json())
    recipe = draft.recipe(MODELS)
    assert recipe.data == "hub:me/rows:train[:10]" == draft.shared(recipe).data
    assert Draft().loaded(recipe) == replace(
        Draft(), source=HUB, hub="me/rows:train[:10]", settings=form_values(recipe), bundled=""
    )
    for name in ("", " "):
        with pytest.raises(StudioError, match="Enter the name of a data set"):
            Draft(source=HUB, hub=name).recipe(MODELS)
    for name in ("/etc/passwd", "../rows", "me/rows:train[1]"):
        with pytest.raises(StudioError, match="hub:OWNER/NAME"):
            Draft(source=HUB, hub=name).recipe(MODELS)
    older = {key: value for key, value in vars(Draft()).items() if key != "hub"}
    assert from_json(json.dumps(older)) == Draft()
