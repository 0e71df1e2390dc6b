"""Columns to messages: every format finds itself, and says what is wrong with a row."""

import json
import time

import pytest

from studio.backend.data.detection import formats
from studio.backend.data.rows import Problem
from studio.backend.data.turns import has_keys

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
NAN = float("nan")


def found(row: dict):
    """(name, messages) of the first format that the row fits."""
    for format in formats():
        columns = format.locate(list(row))
        if columns and format.fits(format.cells(row, columns)):
            return format.name, format.convert(row, columns)
    return None


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "alpaca"),
        ({"Instruction": "Hi", "Response": "Hello", "category": "x"}, "alpaca"),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt_completion"),
        ({"prompt": "Hi", "response": "Hello"}, "prompt_completion"),
        ({" Question": "Hi", "Answer ": "Hello"}, "prompt_completion"),
        ({"input": "Hi", "output": "Hello"}, "prompt_completion"),
        ({"messages": TURNS}, "messages"),
        ({"conversation": TURNS}, "messages"),
        ({"conversations": TURNS, "id": 1}, "messages"),
        ({"messages": json.dumps(TURNS)}, "messages"),
        ({"chat": TURNS}, "messages"),
        ({"conversations": SHAREGPT, "id": 1}, "sharegpt"),
        ({"conversations": json.dumps(SHAREGPT)}, "sharegpt"),
    ],
)
def test_a_format_finds_itself(row, name):
    assert found(row) == (name, TURNS)


def test_a_system_message_of_its_own_column():
    assert found({"instruction": "Hi", "output": "Hello", "system": "Be brief."})[1] == SYSTEM + TURNS
    assert found({"prompt": "Hi", "completion": "Hello", "system": "Be brief."})[1] == SYSTEM + TURNS
    assert found({"conversations": SHAREGPT, "system": "Be brief."})[1] == SYSTEM + TURNS
    assert found({"prompt": "Hi", "completion": "Hello", "system": None})[1] == TURNS


def test_an_input_follows_its_instruction():
    assert found({"instruction": "Sum", "input": "1, 2", "output": "3"})[1][0]["content"] == "Sum\n\n1, 2"
    assert found({"instruction": "Sum", "input": NAN, "output": "3"})[1][0]["content"] == "Sum"


@pytest.mark.parametrize("row", [{"text": "Once", "n": 1}, {"anything": "Once"}])
def test_plain_text(row):
    assert found(row) == ("text", [{"role": "text", "content": "Once"}])


@pytest.mark.parametrize("text", ['[{"entity": "Paris"}]', "[ ] Buy milk", "[\n1, 2]", '[{"role": "admin"}]', "[{"])
def test_a_completion_that_is_another_list_is_text(text):
    assert found({"prompt": text, "completion": text})[1] == [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text},
    ]


def test_a_prompt_or_a_completion_may_be_the_text_of_messages():
    assert found({"prompt": json.dumps(TURNS[:1]), "completion": str(TURNS[1:])}) == ("prompt_completion", TURNS)
    assert found({"prompt": "Hi", "completion": f"[ {TURNS[1]}]"}) == ("prompt_completion", TURNS)


def test_nothing_fits():
    assert found({"a": "x", "b": "y"}) is None


def test_chosen_columns_come_first():
    alpaca, prompt_completion = (format for format in formats() if format.name in ("alpaca", "prompt_completion"))
    columns = ["prompt", "answer", "completion"]
    assert prompt_completion.locate(columns, {"completion": "answer"}) == {"prompt": "prompt", "completion": "answer"}
    assert alpaca.locate(columns, {"completion": "answer"}) is None
    assert alpaca.locate(columns, {"instruction": "prompt", "output": "answer", "completion": "answer"}) is None


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"Prompt": "Hi", "answer": ""}, "answer", "is empty"),
        ({"Prompt": " \n", "answer": "x"}, "Prompt", "is empty"),
        ({"Prompt": NAN, "answer": "x"}, "Prompt", "is empty"),
        ({"Prompt": None, "answer": "x"}, "Prompt", "is empty"),
        ({"Prompt": "Hi", "answer": 4}, "answer", "int '4' instead of text"),
        ({"Prompt": "Hi", "answer": ["a"]}, "answer", "list"),
        ({"instruction": "Hi", "output": None}, "output", "is empty"),
        ({"instruction": "Hi", "output": "x", "input": {"a": 1}}, "input", "dict"),
        ({"text": "", "id": 3}, "text", "is empty"),
    ],
)
def test_bad_cells(row, column, reason):
    with pytest.raises(Problem) as problem:
        found(row)
    assert problem.value.args[0] == column and reason in problem.value.args[1] and problem.value.args[2]


BLANKS = " " * 90_000


@pytest.mark.parametrize(
    "text",
    [
        "[INST]" + BLANKS,
        f"[INST]a[/INST]x{BLANKS}y",
        "[INST]<<SYS>>" + "<</SYS>>" * 10_000,
        "[" + BLANKS,
        "['" + "\\'" * 45_000,
        "[array(" + '"' + '\\"' * 45_000,
    ],
    ids=["blanks", "blanks in an answer", "ends of a system message", "blanks in a list", "quotes", "double quotes"],
)
def test_a_hostile_cell_takes_no_time(text):
    before = time.process_time()
    found({"text": text})
    has_keys({"messages": text}, "messages", {"role"})
    assert time.process_time() - before < 0.4


def test_blanks_around_the_texts_of_a_template_are_dropped():
    text = "<s>[INST]  <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi  [/INST] Hello  </s><s> [INST]Bye[/INST] See you </s>"
    turns = [*SYSTEM, *TURNS, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]
    assert found({"text": text}) == ("templated", turns)


USER, ASSISTANT, SYSTEM_TURN = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "does not end with an answer"),
        ([USER], "does not end with an answer"),
        ([USER, ASSISTANT, USER], "does not end with an answer"),
        ([SYSTEM_TURN], "does not end with an answer"),
        ([ASSISTANT], "assistant after nothing"),
        ([SYSTEM_TURN, ASSISTANT], "assistant after system"),
        ([USER, USER, ASSISTANT], "message 2 has the role user after user"),
        ([USER, ASSISTANT, ASSISTANT], "assistant after assistant"),
        ([USER, SYSTEM_TURN, ASSISTANT], "system after user"),
        ([USER, {"role": "tool", "content": "x"}], "a tool call in message 2"),
        ([USER, {"role": ["assistant"], "content": "x"}], "role"),
        ([USER, {"content": "x"}], "role 'None' in message 2"),
        ([USER, {"role": "assistant", "content": ""}], "message 2 whose content is empty"),
        ([USER, {"role": "assistant", "content": None}], "message 2 whose content is empty"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "a part without a text in message 2"),
        ([USER, "x"], "not a list of messages"),
        ({"role": "user"}, "not a list of messages"),
        (None, "not a list of messages"),
        ("[{", "not valid JSON"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_bad_conversations(turns, reason):
    (format,) = (format for format in formats() if format.name == "messages")
    with pytest.raises(Problem) as problem:
        format.convert({"Chat": turns}, {"messages": "Chat"})
    assert problem.value.args[0] == "Chat" and reason in problem.value.args[1] and problem.value.args[2]


def test_a_system_column_repeats_the_turn_but_for_blanks():
    row = {"system": "Be brief. ", "messages": [{"role": "system", "content": "Be brief."}, *TURNS]}
    assert found(row)[1] == [{"role": "system", "content": "Be brief. "}, *TURNS]


def test_a_weight_that_trains_a_question_is_an_unused_key():
    row = {"messages": [{**TURNS[0], "train": True}, {**TURNS[1], "train": True}]}
    messages = next(each for each in formats() if each.name == "messages")
    assert messages.unused_keys(row) == {"train of a question"}
    assert messages.unused_keys({"messages": [{**TURNS[0], "train": False}, TURNS[1]]}) == set()
