"""The parts of a run's preparation, as its page lists them."""

from studio.backend.recipe import Recipe
from studio.backend.runs.store import RunStore
from studio.backend.training.preparing import Preparing, parts_of


def test_parts_are_those_of_the_task_and_a_resumed_run_measures_nothing_again():
    chat, labelled = Recipe(data="devils-dictionary"), Recipe(data="rows.csv", task="classify")
    assert parts_of(chat, is_new=True) == ["files", "data", "model", "trial", "baseline", "samples"]
    assert "baseline" not in parts_of(Recipe(data="devils-dictionary", eval_share=0.0), is_new=True)
    assert parts_of(labelled, is_new=True) == ["files", "data", "model", "trial", "head"]
    assert parts_of(chat, is_new=False) == ["files", "data", "model"]


def test_parts_are_logged_as_they_begin(tmp_path):
    recipe, shown = Recipe(data="devils-dictionary"), []
    run = RunStore(tmp_path).create(recipe)
    preparing = Preparing(run, recipe, shown.append)
    preparing.begin("files")
    preparing.begin("head")
    preparing.begin("trial", "measured by Check")
    events = [*run.events.read()]
    assert [event.values["part"] for event in events] == ["files", "trial"] and events == shown
    assert events[1].kind == "preparing" and events[1].values["note"] == "measured by Check"
    Preparing(None, recipe, shown.append).begin("files")
    assert len(shown) == 2
