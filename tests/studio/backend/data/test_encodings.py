"""Older code pages are recognized by their text, and a few accents are Western."""

import pytest

from studio.backend.data import encodings

RUSSIAN = "Какой город столица Франции?,Столица Франции город Париж.\nСколько будет два плюс два?,Будет четыре.\n"
POLISH = "Ile to jest dwa plus dwa?,Cztery; łatwe i zażółć gęślą jaźń.\nGdzie płynie źródło?,Śnieg i ćma są świeże\n"
FRENCH = "Ça va ?,Très bien, à bientôt.\nQuelle ville ?,C’est Paris, où l’été est beau.\n"
TEXTS = {
    "cp1251": RUSSIAN,
    "koi8_r": RUSSIAN,
    "cp866": RUSSIAN,
    "mac_cyrillic": RUSSIAN,
    "cp1250": POLISH,
    "iso8859_2": POLISH,
    "cp1252": FRENCH,
    "mac_roman": FRENCH,
    "cp1253": "Ποια είναι η πρωτεύουσα της Γαλλίας;,Το Παρίσι είναι η πρωτεύουσα.\n",
    "cp1255": "מהי בירת צרפת?,בירת צרפת היא פריז.\nמהי בירת יפן?,בירת יפן היא טוקיו.\n" * 2,
    "cp1256": "ما هي عاصمة فرنسا؟,عاصمة فرنسا هي باريس.\n",
    "cp874": "เมืองหลวงของฝรั่งเศสคือเมืองอะไร,เมืองหลวงของฝรั่งเศสคือปารีส\n",
    "cp1257": "Koks miestas yra Prancūzijos sostinė?,Paryžius. Ačiū, šiandien žemė ir ąžuolas, įdomu.\n",
    "cp1258": "Thu\u0309 đô cu\u0309a nươ\u0301c Pháp là gi\u0300?,Paris, mô\u0323t thành phô\u0301 đe\u0323p.\n",
    "gb18030": "法国的首都是哪个城市？,法国的首都是巴黎。\n日本的首都是哪个城市？,日本的首都是东京。\n",
    "big5": "法國的首都是哪個城市？,法國的首都是巴黎。\n",
    "cp932": "フランスの首都はどこですか。,フランスの首都はパリです。\n",
    "euc_jp": "フランスの首都はどこですか。,フランスの首都はパリです。\n",
    "euc_kr": "프랑스의 수도는 어디입니까?,프랑스의 수도는 파리입니다.\n",
}


@pytest.fixture
def written(tmp_path):
    def path(text: str, encoding: str):
        (tmp_path / "x.csv").write_bytes(f"prompt,completion\n{text}".encode(encoding))
        return tmp_path / "x.csv"

    return path


def test_every_older_code_page_but_turkish_has_a_text():
    assert {*TEXTS, "cp1254"} == {*encodings.OLDER}  # Turkish and Western differ in six letters


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_code_page_is_recognized(encoding, written):
    found, notices = encodings.detect(written(TEXTS[encoding], encoding))
    assert found == encoding and encodings.NAMES[found] in notices[0]


@pytest.mark.parametrize("text", ["São Paulo", "Ça va ?", "£5", "© 2020 Foo®", "déjà vu", "ß", "Paris–Lyon"])
@pytest.mark.parametrize("before", ["", "The quick brown fox jumps over the lazy dog. "])
def test_a_few_accents_are_western(text, before, written):
    assert encodings.detect(written(f"{before}{text},Yes.\n", "cp1252"))[0] == "cp1252"
