"""How good a classifier is, as HTML: every figure is that of the report, and no text is markup."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from studio.backend.classification.evaluation import (
    ALONE,
    BOTH,
    FITTED,
    MAJORITY,
    MEAN,
    TFIDF,
    Truth,
    evaluate,
)
from studio.ui.classify.evaluation import view
from studio.ui.classify.evaluation.texts import ALL, WRONG
from studio.ui.page.theme import css

HOSTILE = "<img src=x onerror=window.__p=1> ${window.__p=1} \" '"
NAMES = ("ham", "spam", "news")
SYSTEM = {"accuracy": 0.9, "macro_f1": 0.8, "micro_f1": 0.9, "auc": None, "ece": None}


class Elements(HTMLParser):
    """What is in the HTML: (tag, attributes), and the text in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def buttons(self) -> dict[str, dict]:
        return {each["data-shows"]: each for tag, each in self.tags if tag == "button"}

    def rows(self) -> list[dict]:
        return [each for tag, each in self.tags if tag == "tr" and "data-place" in each]


def stored(report: dict) -> dict:
    """As a run keeps it."""
    return json.loads(json.dumps(report))


@pytest.fixture
def single() -> dict:
    """12 texts; one ham is taken for spam, two news for ham, no ham for news."""
    true = [0] * 5 + [1] * 3 + [2] * 4
    found = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 0, 0]
    scores = np.full((12, 3), 0.1)
    scores[np.arange(12), found] = 0.8
    return stored(evaluate(Truth("single_label", NAMES, [f"Text {i}" for i in range(12)], true), scores, "12 rows"))


def test_a_cell_has_its_count_and_the_texts_that_it_shows(single):
    seen = Elements(view.shown(single, "mine"))
    buttons, rows = seen.buttons(), seen.rows()
    assert set(buttons) == {WRONG, ALL, "0-0", "0-1", "1-1", "2-0", "2-2"}, "a cell of no texts is no button"
    assert buttons["2-0"]["aria-label"] == "True news, predicted ham: 2 texts"
    assert buttons["2-0"]["data-caption"] == "True news, predicted ham: 2 texts."
    assert buttons["0-1"]["data-caption"] == "True ham, predicted spam: 1 text."
    assert [row["data-place"] for row in rows].count("2-0") == 2
    shown = [row for row in rows if "hidden" not in row]
    assert len(rows) == 12 and len(shown) == 3 and all("data-wrong" in row for row in shown)
    assert [name for name, each in buttons.items() if each["aria-pressed"] == "true"] == [WRONG]
    assert "Errors: 3 texts." in seen.text


def test_shades_are_shares_of_the_row(single):
    cells = [
        each["style"] for tag, each in Elements(view.shown(single, "mine")).tags if tag == "td" and "style" in each
    ]
    assert cells == [f"--share:{share:.3f}" for share in (4 / 5, 1 / 5, 1, 2 / 4, 2 / 4)]


def test_texts_that_are_left_out_are_told_of(single):
    single["texts"], single["texts_left_out"] = single["texts"][:1], 11
    seen = Elements(view.shown(single, "mine"))
    buttons = seen.buttons()
    place = seen.rows()[0]["data-place"]
    assert "Errors: 3 texts, 1 shown here." in seen.text
    assert buttons["0-0"]["data-caption"] == "True ham, predicted ham: 4 texts, 0 shown here."
    assert buttons[ALL]["data-caption"] == "All: 12 texts, 1 shown here."
    assert place in ("0-1", "2-0")


def test_figures_and_labels_are_those_of_the_report(single):
    seen = Elements(view.shown(single, "mine")).text
    assert "mine measured on 12 rows" in seen and "75.0 %accuracy" in seen
    ham = single["classes"][0]
    assert f"ham{ham['precision']:.3f}{ham['recall']:.3f}{ham['f1']:.3f}{ham['auc']:.3f}5" in seen
    assert f"ECE {single['reliability']['ece']:.3f}" in seen
    assert "micro F1" not in seen, "of one label a text it is the accuracy"


@pytest.mark.parametrize(
    ("macro_f1", "name", "sentence"),
    [
        (0.776, TFIDF, f"Macro F1 0.124 above “{TFIDF}”."),
        (0.9, TFIDF, f"“{TFIDF}” does as well on these rows. Try more rows"),
        (0.95, TFIDF, f"“{TFIDF}” does better on these rows. Try more rows"),
        (0.9, FITTED, f"“{FITTED}” does as well on these rows. Method probe is enough"),
        (0.95, BOTH, f"“{BOTH}” does better on these rows. Set with_tfidf"),
        (0.95, ALONE, f"“{ALONE}” does better on these rows. Leave out with_tfidf"),
        (0.9, MAJORITY, f"“{MAJORITY}” does as well on these rows. There is no evidence"),
    ],
)
def test_the_best_other_system_is_compared(single, macro_f1, name, sentence):
    single["systems"] = [
        {"name": "This classifier", **SYSTEM, "macro_f1": 0.9},
        {"name": name, **SYSTEM, "macro_f1": macro_f1},
        {"name": "worse", **SYSTEM, "macro_f1": 0.1},
    ]
    assert sentence in Elements(view.shown(single, "mine")).text


@pytest.mark.parametrize(
    ("method", "with_tfidf", "advice"),
    [
        ("probe", False, "Try method lora, with_tfidf, which takes the sum of both, more rows, or a prompt"),
        ("probe", True, "Try method lora, more rows, or a prompt"),
        ("lora", False, "Try with_tfidf, which takes the sum of both, more rows, or a prompt"),
        ("lora", True, "Try more rows, or a prompt"),
    ],
)
def test_advice_is_what_was_not_tried(single, method, with_tfidf, advice):
    single["systems"] = [{"name": name, **SYSTEM} for name in ("This classifier", TFIDF)]
    single["trained"] = {"method": method, "with_tfidf": with_tfidf}
    assert advice in Elements(view.shown(single, "mine")).text


@pytest.mark.parametrize(
    ("low", "high", "words"), [(-0.012, 0.03, "may be chance"), (0.004, 0.03, "is more than chance")]
)
@pytest.mark.parametrize("is_old", [False, True])
def test_a_difference_has_its_interval(single, low, high, words, is_old):
    """In points, and of the accuracy, if the report is that of an earlier version."""
    worse = {"name": TFIDF, **SYSTEM, "accuracy": 0.8, "macro_f1": 0.7}
    single["systems"] = [{"name": "This classifier", **SYSTEM}, worse]
    single["differences"] = [{"better_than": TFIDF, "by": 0.02, "from": low, "to": high}]
    bounds = f"{low:+.3g} to +0.03 "
    if is_old:
        del single["compared_by"]
        bounds = f"{100 * low:+.3g} to +3 points"
    seen = Elements(view.shown(single, "mine")).text
    assert f"The difference {words}" in seen and bounds in seen
    assert ("Accuracy 10.0 points above" if is_old else "Macro F1 0.100 above") in seen


def test_the_figure_of_the_comparison_has_an_interval(single):
    own = single["systems"][0]
    seen = Elements(view.shown(single, "mine")).text
    assert f"{own['macro_f1_low']:.3f} to {own['macro_f1_high']:.3f}" in seen


@pytest.mark.parametrize(("last", "words"), [(0.9, "more rows would probably help"), (0.801, "would help little")])
def test_the_learning_curve_tells_whether_more_rows_help(single, last, words):
    single["learning_curve"] = [{"rows": 100, "macro_f1": 0.8}, {"rows": 200, "macro_f1": last}]
    seen = Elements(view.shown(single, "mine")).text
    assert words in seen and f"200{last:.3f}" in seen


def test_the_best_of_a_column_is_marked_by_a_word(single):
    single["systems"] = [
        {"name": "one", **SYSTEM, "ece": 0.02},
        {"name": "two", **SYSTEM, "accuracy": 0.91, "ece": 0.3},
    ]
    html = view.shown(single, "mine")
    best = re.findall(r"<b>([^<]+)</b> <small>best", html)
    assert best == ["0.800", "0.020", "91.0 %", "0.800"]


def test_several_labels_have_no_matrix():
    truth = Truth("multi_label", NAMES, ["Text 0", "Text 1", "Text 2"], [(0, 1), (), (2,)])
    scores = np.asarray([[0.9, 0.8, 0.1], [0.9, 0.2, 0.1], [0.1, 0.1, 0.9]])
    report = stored(evaluate(truth, scores, "3 rows"))
    seen = Elements(view.shown(report, "mine"))
    assert set(seen.buttons()) == {WRONG, ALL} and "Errors: 1 text." in seen.text
    assert [("hidden" in row) for row in seen.rows()] == [False, True, True]
    assert "Text 1noneham" in seen.text and "ham, spam" in seen.text and "micro F1" in seen.text
    assert view.in_a_sentence(report).startswith("All labels correct for 66.7 % of 3 rows")


def test_numbers_are_shown_with_their_errors():
    truth = Truth("regression", ("stars",), ["Text 0", "Text 1"], [1.0, 4.0])
    report = stored(evaluate(truth, np.asarray([[1.5], [2.0]]), "2 rows"))
    seen = Elements(view.shown(report, "mine"))
    assert "Text 142-2Text 011.50.5" in seen.text, "the largest error first"
    assert not seen.buttons() and "1.25mean absolute error" in seen.text and "2 texts." in seen.text
    assert f"Mean absolute error 0.25 below “{MEAN}”" in seen.text
    assert view.in_a_sentence(report).startswith("Mean absolute error 1.25 on 2 rows")


def test_bins_are_drawn_and_told(single):
    single["reliability"] = {
        "edges": [0.0, 0.5, 1.0], "counts": [0, 12], "confidence": [None, 0.8], "accuracy": [None, 0.75], "ece": 0.05,
    }  # fmt: skip
    single["temperature"] = {"value": 1.7, "ece_before": 0.09, "ece_after": 0.03}
    seen = Elements(view.shown(single, "mine"))
    plot = next(each for tag, each in seen.tags if tag == "figure")
    assert json.loads(plot["data-calibration"]) == [[0.8, 0.75, 12]], "an empty bin is no point"
    assert plot["data-accuracy"] == "accuracy" and "50 to 100 %1280.0 %75.0 %" in seen.text
    assert "overconfident by 5.0 points" in seen.text
    assert "temperature 1.70" in seen.text and "from 0.090 to 0.030" in seen.text


def test_experts_are_listed_by_label(single):
    entry = {"label": "spam", "layer": 3, "kind": "MoE", "expert": 5, "share": 0.31, "others": 0.12, "low": 0.11,
             "high": 0.27, "count": 4211}  # fmt: skip
    entries = [{**entry, "expert": i} for i in range(10)] + [{**entry, "label": "ham"}]
    single["profile"] = {"texts": 200, "comparisons": 1536, "entries": entries}
    seen = Elements(view.shown(single, "mine")).text
    assert "MoE layer 3, expert 7" in seen and "expert 8" not in seen and "… and 2 more." in seen
    assert "31.0 % vs. 12.0 %, 4,211 assignments +19.0 points (+11.0 to +27.0)" in seen
    single["profile"] |= {"entries": []}
    assert (
        "No expert is used significantly more for any label (1,536 comparisons in 200 texts)"
        in Elements(view.shown(single, "mine")).text
    )
    single["profile"] |= {"comparisons": 0}
    assert "are too few" in Elements(view.shown(single, "mine")).text


def test_no_text_is_html(single):
    names = [HOSTILE, *NAMES[1:]]
    single |= {"labels": names, "of": HOSTILE, "notices": [HOSTILE]}
    single["texts"] = [{**each, "text": HOSTILE} for each in single["texts"]]
    single["systems"] = [{**each, "name": HOSTILE} for each in single["systems"]]
    single["classes"] = [{**each, "label": HOSTILE} for each in single["classes"]]
    entry = {"label": HOSTILE, "layer": 0, "kind": "MoA", "expert": 0, "share": 1, "others": 0, "low": 1, "high": 1,
             "count": 1}  # fmt: skip
    single["profile"] = {"texts": 2, "comparisons": 1, "entries": [entry]}
    html = view.shown(single, HOSTILE) + view.beside(single, HOSTILE)
    assert not {"img", "script"} & {tag for tag, _ in Elements(html).tags}
    assert not any(name.startswith("on") for _, each in Elements(html).tags for name in each)
    assert Elements(html).buttons()["0-0"]["aria-label"] == f"True {HOSTILE}, predicted {HOSTILE}: 4 texts"


def test_nothing_yet_says_what_to_do_and_the_style_is_in_the_page():
    assert "true labels" in view.waiting() and "eval_share" in view.waiting(view.UNMEASURED)
    assert view.style() in css() and "data-shows" not in view.style()
