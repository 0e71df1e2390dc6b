"""A file becomes a data set: bad rows are listed or end it, and nothing leaks from training into evaluation."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.backend.data.dataset import SAMPLES, Dataset, DataSettings, read, resolve
from studio.backend.data.examples import Example, Examples
from studio.errors import StudioError


@pytest.fixture
def write(tmp_path):
    def path(content: str, name: str = "x.csv"):
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return path


def dataset(*prompts: str) -> Dataset:
    examples = [
        Example(1, [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"answer {i}"}])
        for i, prompt in enumerate(prompts)
    ]
    return Dataset(SAMPLES["identity"], "x", "messages", {}, Examples.of(examples), [], (), len(examples))


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_no_bad_row(name):
    sample = read(name, DataSettings(on_bad_rows="stop"))
    assert len(sample.examples) > 90 and not sample.bad_rows and not sample.notices
    assert sample.fingerprint == hashlib.sha256(resolve(name).read_bytes()).hexdigest()
    assert f"| {len(sample.examples)} |" in SAMPLES[name].with_name("README.md").read_text()


def test_a_file_as_people_have_it(write):
    path = write("id,Question,Answer\n1,Hi,Hello\n2,hi ,HELLO\n3,Bye,\n4,Why?\n5,How?,   \n")
    found = read(path)
    assert found.format == "prompt_completion" and found.columns == {"prompt": "Question", "completion": "Answer"}
    assert [example.line for example in found.examples] == [2, 3] and found.duplicates == 1
    assert found.examples[0].messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert [(bad.line, bad.column) for bad in found.bad_rows] == [(4, "Answer"), (5, ""), (6, "Answer")]
    assert str(found.bad_rows[0]) == "line 4, column 'Answer': is empty. Fill it in, or delete the row."
    assert found.warnings == ("Unused columns: 'id'.",)


def test_stop_lists_the_first_bad_rows_and_their_number(write):
    path = write("prompt,completion\nHi,Hello\n" + "Hi,\n" * 30)
    with pytest.raises(StudioError, match="30 bad rows") as error:
        read(path, DataSettings(on_bad_rows="stop"))
    assert str(error.value).count("is empty") == 20 and "and 10 more" in str(error.value)


@pytest.mark.parametrize("content", ["prompt,completion\nHi,\n", "prompt,completion\nHi\n"])
def test_no_good_row_always_ends(write, content):
    with pytest.raises(StudioError, match="no good row\\.\nline 2"):
        read(write(content))


def test_columns_are_chosen(write):
    path = write("frage,antwort\nHi,Hello\n")
    with pytest.raises(StudioError, match=r"'frage', 'antwort'.*columns"):
        read(path)
    found = read(path, DataSettings(columns={"prompt": "frage", "completion": "antwort"}))
    assert found.format == "prompt_completion" and len(found.examples) == 1
    with pytest.raises(StudioError, match="no column 'question'"):
        read(path, DataSettings(columns={"prompt": "question", "completion": "antwort"}))
    with pytest.raises(StudioError, match="don't match"):
        read(path, DataSettings(columns={"nonsense": "frage"}))
    text = read(path, DataSettings(format="text", columns={"text": "frage"}))
    assert text.examples[0].messages == [{"role": "text", "content": "Hi"}]


def test_the_format_is_told_by_the_first_row_that_fits(write):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"conversations": None}, {"conversations": []}, {"conversations": turns}]
    found = read(write("\n".join(map(json.dumps, rows)), "x.jsonl"))
    assert found.format == "sharegpt" and len(found.examples) == 1 and len(found.bad_rows) == 2


def test_paragraphs(write):
    found = read(write("One.\n\nTwo.\n", "x.md"))
    assert [example.messages[0] for example in found.examples] == [
        {"role": "text", "content": "One."},
        {"role": "text", "content": "Two."},
    ]


def test_bad_settings_are_named_at_once():
    with pytest.raises(StudioError, match=r"on_bad_rows is .*; columns is .*; format must"):
        DataSettings(format="x", on_bad_rows="y", columns={"prompt": 1})


@pytest.mark.parametrize("name", ["nonsense", "../../etc", "x" * 5000, "nul\0", ""])
def test_unknown_names_get_the_samples(name):
    with pytest.raises(StudioError, match="devils-dictionary, identity"):
        read(name)


def test_a_changed_file_has_another_fingerprint(write):
    before = read(write("text\na\n")).fingerprint
    assert read(write("text\nb\n")).fingerprint != before
    assert read(write("text\na\n")).fingerprint == before


def prompts(data: Dataset, indices) -> set[str]:
    return {" ".join(data.examples[i].messages[0]["content"].casefold().split()) for i in indices}


@settings(deadline=None)
@given(
    names=st.lists(st.sampled_from(["a", "A ", "b", "c  c", "C c", "d", "e"]), min_size=1, max_size=30),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_a_split_leaks_nothing_and_loses_nothing(names, share, seed):
    data = dataset(*names)
    train, held_out = (each.tolist() for each in data.split(share, seed))
    assert not prompts(data, train) & prompts(data, held_out)
    assert sorted(train + held_out) == list(range(len(names)))
    assert bool(held_out) == (share > 0 and len(prompts(data, range(len(names)))) > 1) and train
    assert [train, held_out] == [each.tolist() for each in data.split(share, seed)]


def test_a_split_has_its_share_and_depends_on_the_seed():
    data = dataset(*map(str, range(100)))
    assert [len(side) for side in data.split(0.2, 0)] == [80, 20]
    assert data.split(0.2, 0)[1].tolist() != data.split(0.2, 1)[1].tolist()
    with pytest.raises(StudioError, match="eval_share"):
        data.split(1.0, 0)


def rows_of(write, late: dict, count: int = 60):
    """The path of a file whose row on line 56 has more keys."""
    rows = [{"prompt": f"Say {i}", "completion": str(i)} for i in range(count)]
    rows[55] |= late
    return write("\n".join(map(json.dumps, rows)), "x.jsonl")


def test_an_optional_field_that_occurs_late_is_read(write):
    found = read(rows_of(write, {"system": "Be brief."}))
    assert found.examples[55].messages[0] == {"role": "system", "content": "Be brief."}
    assert found.columns["system"] == "system"
    assert found.warnings == ("'system' first occurs on line 56, and is read as system.",)
    guessed = read(rows_of(write, {"passage": "Once"}))
    assert guessed.examples[55].messages[0]["content"] == "Once\n\nSay 55"
    assert "A guess from the column names: context is read from 'passage'" in guessed.warnings[1]


def test_a_late_column_takes_no_field_that_has_one(write):
    found = read(rows_of(write, {"response": "Other", "score": 1}))
    assert found.examples[55].messages[1]["content"] == "55"
    assert found.warnings == (
        "Unused columns: 'response', 'score' ('response' from line 56 on, 'score' from line 56 on).",
    )


def test_keys_of_late_messages_are_noticed(write):
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "a"}]} for i in range(60)
    ]
    rows[55]["messages"][1]["mask"] = True
    found = read(write("\n".join(map(json.dumps, rows)), "x.jsonl"))
    assert found.warnings == ("Unused keys of the messages: 'mask'.",)


def test_keys_in_prompts_that_are_messages_are_noticed(write):
    row = {
        "prompt": [{"role": "user", "content": "a", "mask": 1}],
        "completion": [{"role": "assistant", "content": "b"}],
    }
    assert read(write(json.dumps(row), "x.jsonl")).warnings == ("Unused keys of the messages: 'mask'.",)


def test_preferences_are_read_by_mapping_the_chosen_answer(write):
    path = write("prompt,chosen,rejected\nHi,Hello,No\n")
    with pytest.raises(StudioError, match=r"map them: columns=\{prompt: prompt, completion: chosen\}"):
        read(path)
    found = read(path, DataSettings(columns={"prompt": "prompt", "completion": "chosen"}))
    assert found.examples[0].messages[1]["content"] == "Hello"
    with pytest.raises(StudioError, match="write them as a column of lists of messages"):
        read(write("chosen,rejected\nHuman: Hi,Human: No\n"))


def test_the_format_text_takes_json_only_if_it_is_chosen(write):
    path = write('"data"\n"{""a"": 1}"\n')
    with pytest.raises(StudioError, match="holds a JSON object with 'a', not plain text"):
        read(path)
    assert read(path, DataSettings(format="text")).examples[0].messages[0]["content"] == '{"a": 1}'
