"""The panel of training runs in a browser, over made-up runs: no model and no studio around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import gradio as gr
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect
from starlette.middleware import Middleware

from studio.backend.recipe import Recipe
from studio.backend.runs import views
from studio.backend.runs.store import RunStore
from studio.backend.runs.views import RunViews
from studio.ui.finetune.runs.runs_panel import opened, runs_panel
from studio.ui.page.theme import css, theme
from studio.ui.server import run_routes, scripts
from studio.ui.server.headers import SafeHeaders
from studio.ui.server.identity import Identity
from tests.builders.decimals import to_fixed
from tests.builders.ports import free_port
from tests.builders.toy_runs import HOSTILE, SENTENCE, ToyRun, fill, toy_run

PHONE = (390, 844)


class Site:
    """A page with nothing but the panel, and the store behind it."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder)
        self.runs: dict[str, ToyRun] = {}
        self.told: list[tuple[str, dict]] = []
        self.demo = self._page()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self.demo.queue(api_open=False).launch(
            server_port=port, prevent_thread_lock=True, quiet=True, theme=theme(), css=css(), ssr_mode=False,
            footer_links=[], app_kwargs={
                "middleware": [Middleware(SafeHeaders), Middleware(Identity)],
                "routes": [*run_routes.routes(RunViews(self.store)), *scripts.routes()],
            },
        )  # fmt: skip

    def _page(self) -> gr.Blocks:
        def heard(name: str):
            def hear(event: gr.EventData) -> None:
                self.told.append((name, dict(event._data)))

            return hear

        with gr.Blocks(fill_width=True, analytics_enabled=False) as demo:
            panel = runs_panel()
            panel.act(heard("act"), queue=False)
            panel.again(heard("again"), queue=False)
            panel.open(heard("open"), queue=False)
            show = gr.Button("Open from Python", elem_id="from-python")
            show.click(lambda: opened(self.runs["failed"].run.id), None, panel, queue=False)
        return demo


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("runs"))
    made.runs = fill(made.store)
    yield made
    made.demo.close()


def row(page: Page, name: str) -> Locator:
    return page.locator(".rn-items li").filter(has_text=name)


def open_run(page: Page, site: Site, name: str) -> ToyRun:
    toy = site.runs[name]
    page.goto(f"{site.url}?run={toy.run.id}")
    expect(page.locator(".rn-run h3")).to_have_text(toy.run.name)
    return toy


def fact(page: Page, name: str) -> Locator:
    return (
        page.locator(".rn-figures div").filter(has=page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd")
    )


def turn(page: Page, name: str) -> None:
    page.locator(".rn-run").get_by_role("radio", name=name, exact=True).check()


def chart_of(page: Page, name: str) -> Locator:
    return page.locator(f'.rn-run [data-chart="{name}"]')


def twin(chart: Locator) -> list[list[str]]:
    if chart.locator("details").get_attribute("open") is None:
        chart.locator("summary").click()
    expect(chart.locator("tbody tr").first).to_be_visible()
    return chart.locator("tbody").evaluate("body => [...body.rows].map(row => [...row.cells].map(c => c.textContent))")


def test_the_list_shows_every_run_and_finds_it(page: Page, site: Site):
    page.goto(site.url)
    names = [run.name for run in site.store.list()]
    expect(page.locator(".rn-row-name")).to_have_text(names)
    expect(row(page, "routers too")).to_contain_text("Running")
    expect(row(page, "routers too")).to_contain_text("of 80")
    expect(row(page, "next in line")).to_contain_text("1st in the queue")
    expect(row(page, HOSTILE[0])).to_contain_text("2nd in the queue")
    search = page.get_by_label("Search runs by name, model, data or state")
    search.fill("POWER interrupted")
    expect(page.locator(".rn-row:visible")).to_have_count(1)
    search.fill("nothing like this")
    expect(page.locator(".rn-none")).to_be_visible()
    search.fill("")
    page.get_by_label("Filter runs by state").select_option("failed")
    expect(page.locator(".rn-row-name:visible")).to_have_text(["too much for this card"])


def test_an_empty_list_says_what_to_do(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "READ_EVERY_S", 0.0)
    empty = Site(tmp_path)
    page.clock.install()
    page.goto(empty.url)
    expect(page.locator(".rn-empty")).to_have_text("No runs yet. Choose data under “New run” and click “Start run”.")
    run = toy_run(empty.store, "the first", begin=False).run
    page.clock.fast_forward(6000)
    expect(page.locator(".rn-row-name")).to_have_text([run.name])
    empty.demo.close()


def test_opening_is_in_the_address_and_python_hears_it(page: Page, site: Site):
    site.told.clear()
    page.goto(site.url + "?keep=1")
    row(page, "all experts").get_by_role("button").click()
    expect(page.locator(".rn-run h3")).to_have_text("dictionary, all experts")
    run_id = site.runs["done"].run.id
    assert f"keep=1&run={run_id}" in page.url
    page.reload()
    expect(page.locator(".rn-run h3")).to_have_text("dictionary, all experts")
    expect(page.locator('.rn-row[aria-current="true"] .rn-row-name')).to_have_text("dictionary, all experts")
    page.locator("#from-python").click()
    expect(page.locator(".rn-run .rn-failed")).to_have_text(SENTENCE)
    assert site.runs["failed"].run.id in page.url
    assert ("open", {"id": run_id}) in site.told
    page.goto(f"{site.url}?run={'0' * 36}")
    expect(page.locator(".rn-detail")).to_contain_text("There is no such run")


def test_buttons_are_there_where_they_apply_and_ask_python(page: Page, site: Site):
    again = "New run from these settings"
    buttons = {"done": ["Chat with it", "Export", again, "Delete"], "failed": ["Resume", again, "Delete"],
               "running": ["Cancel", again], "cancelled": ["Chat with it", "Export", "Resume", again, "Delete"],
               "queued": ["Cancel", again, "Delete"]}  # fmt: skip
    for name, texts in buttons.items():
        open_run(page, site, name)
        expect(page.locator(".rn-run-head .rn-actions button")).to_have_text(texts)
    run_id = site.runs["queued"].run.id
    site.told.clear()
    with page.expect_response("**/run/**"):
        page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("next in line")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Delete").click()
    with page.expect_response("**/run/**"):
        dialog.get_by_role("button", name="Delete").click()
    acts = [event["action"] for name, event in site.told if name == "act" and event["id"] == run_id]
    assert acts == ["cancel", "delete"]


def test_charts_grow_and_keep_zoom_and_crosshair(page: Page, site: Site):
    toy = site.runs["growing"] = toy_run(site.store, "growing", steps=200).audit().train(60)
    open_run(page, site, "growing")
    plot = chart_of(page, "loss").locator(".ch-plot")
    board = page.locator(".rn-run .ch-board").first
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 200, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 90, steps=4)
    page.mouse.up()
    expect(board).to_have_attribute("data-zoom", re.compile(r"\d+-\d+"))
    zoom, ticks = board.get_attribute("data-zoom"), plot.locator(".ch-grid text").all_text_contents()
    # The same node: a chart that is drawn anew would flicker and lose the pointer.
    plot.evaluate("node => (node.marked = true)")
    step = chart_of(page, "loss").locator(".ch-step")
    expect(step).to_contain_text("step ")
    crosshair = step.inner_text()
    path = plot.locator(".ch-curve").first.get_attribute("d")
    for number in range(61, 71):
        toy.log(number)
    expect(fact(page, "Step")).to_have_text("70 / 200", timeout=10_000)
    assert board.get_attribute("data-zoom") == zoom and step.inner_text() == crosshair
    assert plot.locator(".ch-grid text").all_text_contents() == ticks
    assert plot.locator(".ch-curve").first.get_attribute("d") == path and plot.evaluate("node => node.marked")
    learning_rate = chart_of(page, "learning_rate")
    expect(learning_rate.locator(".ch-step")).to_have_text(crosshair)
    plot.dblclick()
    expect(board).to_have_attribute("data-zoom", "")
    expect(plot.locator(".ch-grid text").last).to_have_text("70")


def test_a_chart_is_worked_by_keyboard(page: Page, site: Site):
    open_run(page, site, "done")
    chart = chart_of(page, "loss")
    chart.locator(".ch-plot").focus()
    for key, step in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", 80), ("ArrowLeft", 79)):
        page.keyboard.press(key)
        expect(chart.locator(".ch-step")).to_have_text(f"step {step}")
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Reset zoom")).to_be_hidden()
    path = chart.locator(".ch-curve").first.get_attribute("d")
    page.locator(".rn-run").get_by_label("Log scale for loss").check()
    expect(chart.locator(".ch-curve").first).not_to_have_attribute("d", path or "")
    page.locator(".rn-run").get_by_label("Smoothing").fill("0.9")
    expect(chart.locator(".ch-raw").first).to_have_attribute("d", re.compile("M.+L"))


def test_tables_hold_the_numbers_of_the_events(page: Page, site: Site):
    toy = open_run(page, site, "done")
    told: dict[str, dict[int, float]] = {}
    for event in toy.run.events.read():
        for name, value in event.values.items():
            told.setdefault(name, {})[event.step] = value
    for name in ("learning_rate", "grad_norm", "tok_s", "memory_gib"):
        rows = twin(chart_of(page, name))
        assert {int(step): float(value) for step, value in rows} == told[name]
    rows = twin(chart_of(page, "loss"))
    assert {int(step): float(loss) for step, loss, _ in rows if loss} == told["loss"]
    assert {int(step): float(held) for step, _, held in rows if held} == told["eval_loss"]
    turn(page, "Routing")
    rows = twin(chart_of(page, "drift"))
    drift = {int(row[0]): [float(value) for value in row[1:]] for row in rows}
    assert drift == {step: [told[name][step] for name in ("flip_rate", "js", "load_shift")] for step in told["js"]}


def test_the_heat_map_shows_every_evaluation(page: Page, site: Site):
    toy = open_run(page, site, "done")
    turn(page, "Routing")
    heat = page.locator(".rn-heat")
    loads = [event.values["load"] for event in toy.run.events.read() if event.kind == "routing"]
    heat.locator("summary").click()
    slider = heat.get_by_role("slider", name="Evaluation")
    for index in (4, 1):
        slider.fill(str(index))
        expect(heat.locator("output")).to_contain_text(f"{index + 1} of 5")
        cells = heat.locator("tbody").evaluate(
            "b => [...b.rows].map(r => [...r.cells].slice(1).map(c => +c.textContent))"
        )
        assert cells == [[value for kind in layer for value in kind] for layer in loads[index]]
    heat.locator("canvas").nth(1).focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    share = to_fixed(loads[1][1][1][1], 3)
    expect(heat.locator(".rn-value")).to_contain_text(f"Layer 1, Feed-forward experts, group 1: {share}")
    heat.get_by_role("radio", name="change since the first").check()
    expect(heat.locator(".ch-ends")).to_contain_text("change in share")


def test_answers_and_parts_are_told(page: Page, site: Site):
    open_run(page, site, "done")
    turn(page, "Answers")
    answers = page.locator(".rn-samples tbody tr").first
    expect(answers.locator("td").last).to_contain_text("powerful tribe")
    expect(answers.locator("mark", has_text="powerful")).to_be_visible()
    assert "of" not in answers.locator("mark").all_text_contents(), "both answers have it"
    page.locator(".rn-samples").get_by_role("radio", name="20", exact=True).check()
    expect(answers.locator("td").last).to_contain_text("elected")
    turn(page, "Setup")
    experts = page.locator(".rn-audit tr", has_text="MLP experts")
    for text in ("318,504,960", "4,128,768", "16", "97 %", "5 of 48 without"):
        expect(experts).to_contain_text(text)
    expect(page.locator(".rn-audit tr", has_text="norms")).to_contain_text("frozen")
    expect(page.locator(".rn-facts").first).to_contain_text("3 min 20 s")


def test_a_run_that_is_deleted_closes(page: Page, site: Site):
    toy = site.runs["short-lived"] = toy_run(site.store, "short-lived", begin=False)
    open_run(page, site, "short-lived")
    page.locator(".rn-run").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    site.store.delete(toy.run.id)
    expect(page.locator(".rn-nothing")).to_be_visible(timeout=10_000)
    expect(row(page, "short-lived")).to_have_count(0)
    assert "run=" not in page.url


def test_two_people_see_the_same(page: Page, site: Site, browser: Browser):
    toy = site.runs["shared"] = toy_run(site.store, "shared", steps=50).audit().train(5)
    open_run(page, site, "shared")
    context = browser.new_context()
    other = context.new_page()
    open_run(other, site, "shared")
    for step in (6, 7, 8):
        toy.log(step)
    toy.run.events.append("warning", 8, {"message": "Something <b>odd</b> happened."})
    for each in (page, other):
        expect(fact(each, "Step")).to_have_text("8 / 50", timeout=10_000)
        expect(each.locator(".rn-warnings li").last).to_have_text("Something <b>odd</b> happened.")
    site.store.finish(toy.run.id, "failed", SENTENCE)
    for each in (page, other):
        expect(each.locator(".rn-run .rn-failed")).to_have_text(SENTENCE, timeout=10_000)
    context.close()


def test_nothing_in_a_run_is_markup_or_code(page: Page, site: Site):
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    hostile = " ".join(HOSTILE)
    toy = site.runs["hostile"] = toy_run(site.store, HOSTILE[0]).audit(*HOSTILE)
    toy.evaluate(0, (hostile, hostile))
    toy.log(1)
    toy.evaluate(1, (hostile, "before " + hostile))
    audit = next(event.values for event in toy.run.events.read() if event.kind == "audit")
    row = {**audit["rows"][1], "part": HOSTILE[0], "dtype": HOSTILE[1]}
    data = {**audit["data"], "file": HOSTILE[0], "format": HOSTILE[1]}
    toy.run.events.append("audit", 1, {**audit, "rows": [row], "data": data, "example": [[HOSTILE[0], True]]})
    odd = {"load": [[[0.5, 0.5]]], "kinds": [HOSTILE[0]], "unit": HOSTILE[1], "js": HOSTILE[0]}
    toy.run.events.append("routing", 2, odd)
    toy.run.events.append("log", 2, {"loss": None, "tok_s": HOSTILE[0], "learning_rate": {"a": HOSTILE[1]}})
    site.store.finish(toy.run.id, "failed", hostile)
    open_run(page, site, "hostile")
    expect(page.locator(".rn-run .rn-failed")).to_have_text(hostile)
    expect(page.locator(".rn-warnings li")).to_have_text(["Only 97 % of the MLP experts are in 4 bits.", *HOSTILE])
    for tab in ("Routing", "Answers", "Setup", "Curves"):
        turn(page, tab)
    assert twin(chart_of(page, "loss"))[-1] == ["2", "not a number", ""]
    page.locator(".rn-items").get_by_label("Compare").nth(0).check()
    page.locator(".rn-items").get_by_label("Compare").nth(3).check()
    expect(page.locator(".rn-comparison h3")).to_have_text("Comparison of 2 runs")
    assert page.locator("#runs img, #runs script, #runs iframe").count() == 0
    assert not [url for url in seen if not url.startswith((site.url, "data:", "blob:"))]


def test_runs_are_compared(page: Page, site: Site):
    page.goto(site.url)
    ids = []
    for name in ("done", "failed", "interrupted"):
        ids.append(site.runs[name].run.id)
        row(page, site.runs[name].run.name).get_by_role("checkbox").check()
    names = [site.runs[name].run.name for name in ("done", "failed", "interrupted")]
    comparison = page.locator(".rn-comparison")
    expect(comparison.locator("h3")).to_have_text("Comparison of 3 runs")
    expect(comparison.locator('[data-chart="loss"] .ch-legend span')).to_have_text(names)
    rank = comparison.locator("tr").filter(has=page.locator("th", has_text="LoRA rank"))
    expect(rank.locator("td")).to_have_text(["16", "16", "8"])
    best = comparison.locator("tr", has_text="Best held-out loss").locator("td").all_text_contents()
    known = [site.store.get(run_id).best_eval_loss for run_id in ids]
    assert [float(text) for text in best] == pytest.approx(known, rel=1e-3)
    rows = twin(comparison.locator('[data-chart="eval_loss"]'))
    assert [row[0] for row in rows] == ["0", "20", "40", "60", "80"]
    answers = comparison.locator("tr", has=page.locator("th", has_text="Define: idiot")).locator("td")
    expect(answers.first).to_contain_text("powerful tribe")
    expect(answers.last).to_contain_text("elected")
    page.goto(page.url)
    expect(comparison.locator("h3")).to_have_text("Comparison of 3 runs")
    expect(page.locator(".rn-items input:checked")).to_have_count(3)
    comparison.get_by_role("button", name="Close comparison").click()
    expect(comparison).to_be_hidden()
    expect(page.locator(".rn-items input:checked")).to_have_count(0)
    assert "compare=" not in page.url


def test_a_run_is_renamed_and_annotated(page: Page, site: Site):
    toy = open_run(page, site, "cancelled")
    site.told.clear()
    page.get_by_role("button", name="Edit name and notes").click()
    page.get_by_label("Name", exact=True).fill("stopped early")
    page.get_by_label("Notes", exact=True).fill("The rate was <b>too</b> high.")
    with page.expect_response("**/run/**"):
        page.get_by_role("button", name="Save", exact=True).click()
    sent = {"action": "describe", "id": toy.run.id, "name": "stopped early", "notes": "The rate was <b>too</b> high."}
    assert site.told == [("act", sent)]
    site.store.describe(toy.run.id, sent["name"], sent["notes"])
    expect(page.locator(".rn-run h3")).to_have_text("stopped early")
    expect(page.locator(".rn-notes")).to_have_text("The rate was <b>too</b> high.")
    expect(row(page, "stopped early")).to_be_visible()
    site.store.describe(toy.run.id, toy.run.name, "")


def test_all_settings_are_shown(page: Page, site: Site, tmp_path: Path):
    toy = open_run(page, site, "interrupted")
    turn(page, "Setup")
    settings = page.locator(".rn-settings")
    recipe = toy.run.recipe()
    expect(settings.locator("tbody tr")).to_have_count(len(asdict(recipe)))
    rank = settings.locator("tr").filter(has=page.locator("th", has_text="LoRA rank"))
    expect(rank.locator("td")).to_have_text(["8", "changed"])
    settings.get_by_label("Only those that differ").check()
    expect(settings.locator("tbody tr:visible")).to_have_count(3)
    with page.expect_download() as download:
        settings.get_by_role("button", name="Save as YAML").click()
    download.value.save_as(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_the_log_is_followed_filtered_and_downloaded(page: Page, site: Site):
    toy = site.runs["logged"] = toy_run(site.store, "logged")
    toy.run.log.write_text("".join(f"line {number}\n" for number in range(300)))
    open_run(page, site, "logged")
    turn(page, "Log")
    log = page.get_by_role("log")
    expect(log).to_contain_text("line 299")
    with toy.run.log.open("a") as file:
        file.write("loss <img src=x onerror=window.__p=1> 2.5\nunfinished")
    expect(log).to_contain_text("<img src=x onerror=window.__p=1>")
    expect(log).not_to_contain_text("unfinished")
    page.get_by_label("Filter lines").fill("LOSS 2.5")
    expect(log).to_have_text("loss <img src=x onerror=window.__p=1> 2.5")
    expect(page.locator(".rn-log-tools")).to_contain_text("1 of 301 lines.")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download log").click()
    assert Path(download.value.path()).read_text() == toy.run.log.read_text()


def test_charts_are_saved(page: Page, site: Site):
    toy = open_run(page, site, "done")
    chart = chart_of(page, "loss")
    expect(chart.locator(".ch-curve").first).to_have_attribute("d", re.compile("M.+L"))
    files = {}
    for kind in ("CSV", "SVG", "PNG"):
        with page.expect_download() as download:
            chart.get_by_role("button", name=f"Save Loss as {kind}").click()
        assert download.value.suggested_filename == f"loss.{kind.lower()}"
        files[kind] = Path(download.value.path()).read_bytes()
    losses = {event.step: event.values["loss"] for event in toy.run.events.read() if event.kind == "log"}
    rows = [line.split(",") for line in files["CSV"].decode().splitlines()]
    assert rows[0] == ["Step", "training", "held-out"]
    assert {int(step): float(loss) for step, loss, _ in rows[1:] if loss} == losses
    drawing = ElementTree.fromstring(files["SVG"])
    curves = [path for path in drawing.iter("{http://www.w3.org/2000/svg}path") if path.get("d")]
    assert len(curves) >= 2 and all("var(" not in (path.get("stroke") or "") for path in curves)
    assert files["PNG"].startswith(b"\x89PNG")


def test_a_classifier_shows_accuracy_and_macro_f1(page: Page, site: Site):
    toy = site.runs["classifier"] = toy_run(site.store, "classifier", task="classify")
    for step, accuracy in ((0, 0.5), (20, 0.75), (40, 0.875)):
        values = {"eval_loss": 1.0 - accuracy, "eval_accuracy": accuracy, "eval_macro_f1": accuracy - 0.125}
        toy.run.events.append("eval", step, values)
    open_run(page, site, "classifier")
    assert twin(chart_of(page, "quality")) == [["0", "0.5", "0.375"], ["20", "0.75", "0.625"], ["40", "0.875", "0.75"]]


def test_a_long_list_draws_what_is_visible(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "READ_EVERY_S", 0.0)
    long = Site(tmp_path)
    for number in range(200):
        toy_run(long.store, f"number-{number:03}", begin=False)
    answers: list[int] = []
    page.on("response", lambda answer: answers.append(len(answer.body())) if "watch/runs" in answer.url else None)
    page.clock.install()
    page.goto(long.url)
    expect(page.locator(".rn-row-name").first).to_have_text("number-199")
    assert page.locator(".rn-row").count() < 100
    with page.expect_response("**/watch/runs*"):
        page.clock.fast_forward(2000)
    assert answers[-1] < 200 < 10_000 < answers[0], "only what has changed"
    page.get_by_label("Search runs by name, model, data or state").fill("number-07")
    expect(page.locator(".rn-row-name")).to_have_count(10)
    page.get_by_label("Search runs by name, model, data or state").fill("")
    for _ in range(10):
        page.locator(".rn-row").last.scroll_into_view_if_needed()
    expect(page.locator(".rn-row-name").last).to_have_text("number-000")
    long.demo.close()


def test_a_server_that_is_away_is_said_and_forgotten(page: Page, site: Site, browser: Browser):
    context = browser.new_context()  # of its own: the failed requests belong on its console
    away = context.new_page()
    away.goto(site.url)
    expect(away.locator(".rn-row").first).to_be_visible()
    away.route("**/watch/**", lambda route: route.abort())
    expect(away.locator(".rn-trouble")).to_have_text("The server does not respond. Trying again …", timeout=10_000)
    expect(away.locator(".rn-row").first).to_be_visible()
    away.unroute("**/watch/**")
    expect(away.locator(".rn-trouble")).to_be_hidden(timeout=20_000)
    context.close()


def test_nobody_asks_for_a_hidden_panel(page: Page, site: Site):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/watch/" in request.url else None)
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.clock.install()
    page.goto(site.url)
    expect(page.locator(".rn-row").first).to_be_visible()
    with page.expect_request("**/watch/**"):
        page.clock.fast_forward(2000)
    page.evaluate("document.querySelector('#runs').style.display = 'none'")
    page.evaluate(frames)
    asked.clear()
    page.clock.fast_forward(60_000)
    page.evaluate(frames)
    assert not asked
    with page.expect_request("**/watch/**"):
        page.evaluate("document.querySelector('#runs').style.display = ''")


@pytest.mark.parametrize("size", [PHONE])
def test_a_phone_shows_one_thing_at_a_time_without_sideways_scroll(page: Page, site: Site, size):
    page.goto(site.url)
    row(page, "all experts").get_by_role("button").click()
    expect(page.locator(".rn-run h3")).to_be_visible()
    expect(page.locator(".rn-list")).to_be_hidden()
    expect(page.locator(".rn-back")).to_be_focused()
    for tab in ("Routing", "Answers", "Setup", "Curves"):
        turn(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], tab
    page.locator(".rn-back").click()
    expect(page.locator(".rn-list")).to_be_visible()
    expect(row(page, "all experts").get_by_role("button")).to_be_focused()
    for name in ("all experts", "too much"):
        row(page, name).get_by_role("checkbox").check()
    expect(page.locator(".rn-side").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_resumed_run_overwrites_what_came_after_its_checkpoint(page: Page, site: Site):
    toy = site.runs["resumed"] = toy_run(site.store, "resumed", steps=9)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.0)):
        toy.run.events.append("log", step, {"loss": loss})
    open_run(page, site, "resumed")
    assert twin(chart_of(page, "loss")) == [["1", "3"], ["2", "1.5"], ["3", "1"]]


def test_a_panel_whose_script_is_missing_says_so(page: Page, site: Site, browser: Browser):
    context = browser.new_context()  # the failed request belongs on its console
    broken = context.new_page()
    broken.route("**/scripts/**", lambda route: route.abort())
    broken.goto(site.url)
    expect(broken.locator("#runs")).to_contain_text("This panel could not be loaded. Reload the page.")
    context.close()


def test_a_value_that_is_set_before_the_script_arrives_opens_its_run(page: Page, site: Site):
    held: list[Route] = []
    page.route("**/runs.js", lambda route: held.append(route))
    with page.expect_request("**/runs.js"):
        page.goto(site.url)
    with page.expect_response("**/run/**"):
        page.locator("#from-python").click()
    held[0].continue_()
    expect(page.locator(".rn-run h3")).to_have_text(site.runs["failed"].run.name)
