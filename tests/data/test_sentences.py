import random

import pytest

from lit_distil.data import Sentences, TextFiles
from lit_distil.data.sources import DocumentSource


class Given(DocumentSource):
    def __init__(self, *documents):
        self.given = documents

    def documents(self, split):
        yield from map(list, self.given)

    def fingerprint(self, split):
        return str(self.given)


def sentences(*units, language="en"):
    (found,) = Sentences(Given(units), language=language).documents("train")
    return found


def test_units_are_cut_where_sentences_end_and_nowhere_else():
    text = "Dr. Smith paid $3.50 at 5 p.m. on Jan. 3rd. He left at once! Did anyone see (him)? Nobody did."
    assert sentences(text, "Hello World. My name is Jonas.") == [
        "Dr. Smith paid $3.50 at 5 p.m. on Jan. 3rd.",
        "He left at once!",
        "Did anyone see (him)?",
        "Nobody did.",
        "Hello World.",
        "My name is Jonas.",
    ]


def test_the_language_is_the_one_that_is_named():
    german = "Das ist z. B. am 3. Mai 2020 so gewesen. Danach nicht mehr."
    assert sentences(german, language="de") == ["Das ist z. B. am 3. Mai 2020 so gewesen.", "Danach nicht mehr."]
    japanese = "これはペンです。それはマーカーです。"
    assert sentences(japanese, language="ja") == ["これはペンです。", "それはマーカーです。"]


def test_documents_stay_apart():
    source = Sentences(Given(["One. Two."], ["Three"]), language="en")
    assert list(source.documents("train")) == [["One.", "Two."], ["Three"]]


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_a_long_unit_cut_no_sentence(seed):
    draw = random.Random(seed)
    words = ["the", "model", "learns", "from", "Dr. Who", "at 3.5", "a teacher"]
    expected = [
        " ".join(draw.choice(words) for _ in range(draw.choice([3, 12, 40, 400]))).capitalize() + " indeed."
        for _ in range(60)
    ]
    expected = ["We say that " + sentence[0].lower() + sentence[1:] for sentence in expected]
    assert sentences(" ".join(expected)) == expected


def test_a_unit_without_end_is_cut_in_the_end_and_nothing_is_lost():
    text = "word, and (another) " * 5000
    found = sentences(text.strip())
    assert max(map(len, found)) <= 6400 and "".join("".join(found).split()) == "".join(text.split())
    assert "".join(sentences("." * 20_000)) == "." * 20_000


def test_what_pysbd_fails_on_stands_uncut_and_is_counted(monkeypatch):
    source = Sentences(Given(["One. Two.", "Plain text"]), language="en")

    class Failing:
        def processor(self, text):
            raise IndexError("string index out of range")

    monkeypatch.setattr(source, "_segmenter", Failing())
    with pytest.warns(UserWarning, match="pysbd could not cut 1 pieces of text, which stand uncut"):
        assert list(source.documents("train")) == [["One. Two.", "Plain text"]]


def test_plain_text_takes_no_rules_and_gives_the_same(monkeypatch):
    draw = random.Random(1)
    words = ["the", "model's", "self-taught", "layer", "T5", "x", "No", "Mr", "it,", "e", "1", "20"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(["", ".", "!", "?"]) for _ in range(300)]
    fast = [sentences(text) for text in texts]
    monkeypatch.setattr("lit_distil.data.sentences._IS_PLAIN", lambda text: None)
    assert fast == [sentences(text) for text in texts]


def test_the_fingerprint_follows_source_and_language():
    given = Given(["One."])
    prints = {
        Sentences(source, language=language).fingerprint("train")
        for source in (given, Given(["Two."]))
        for language in ("en", "de")
    }
    assert len(prints) == 4


def test_wrong_settings_are_refused_by_name():
    with pytest.raises(
        ValueError, match=r"source\.language: pysbd has no rules for 'xx'; it has \['am', 'ar', .*'zh'\]"
    ):
        Sentences(TextFiles("a.txt"), language="xx")
    with pytest.raises(ValueError, match=r"source\.source: str gives no documents"):
        Sentences("a.txt", language="en")
