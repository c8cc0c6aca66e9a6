import random
import re

import pysbd
import pytest
from pysbd.languages import LANGUAGE_CODES

from lit_distil.data import Mixture, Sentences, TextFiles, prepare_corpus
from lit_distil.data.corpus.engine import workers
from lit_distil.data.sources import sentences as sentences_module
from lit_distil.data.sources.base import DocumentSource
from lit_distil.data.sources.sentence_rules import SentenceCutter


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


def test_the_rules_follow_the_language():
    german = "Das ist z. B. am 3. Mai 2020 so gewesen. Danach nicht mehr."
    assert sentences(german, language="de") == ["Das ist z. B. am 3. Mai 2020 so gewesen.", "Danach nicht mehr."]
    japanese = "これはペンです。それはマーカーです。"
    assert sentences(japanese, language="ja") == ["これはペンです。", "それはマーカーです。"]


def test_documents_stay_separate():
    source = Sentences(Given(["One. Two."], ["Three"]), language="en")
    assert list(source.documents("train")) == [["One.", "Two."], ["Three"]]


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_a_long_unit_keep_sentences_whole(seed):
    draw = random.Random(seed)
    words = ["the", "model", "learns", "from", "Dr. Who", "at 3.5", "a teacher"]
    expected = [
        " ".join(draw.choice(words) for _ in range(draw.choice([3, 12, 40, 400]))).capitalize() + " indeed."
        for _ in range(60)
    ]
    expected = ["We say that " + sentence[0].lower() + sentence[1:] for sentence in expected]
    assert sentences(" ".join(expected)) == expected


def test_an_endless_sentence_is_cut_and_nothing_is_lost():
    text = "word, and (another) " * 5000
    found = sentences(text.strip())
    assert max(map(len, found)) <= 6400 and "".join("".join(found).split()) == "".join(text.split())
    assert "".join(sentences("." * 20_000)) == "." * 20_000


def test_text_that_pysbd_fails_on_is_left_uncut_and_counted(monkeypatch):
    source = Sentences(Given(["One. Two.", "Plain text"]), language="en")

    def fail(self, text):
        raise IndexError("string index out of range")

    monkeypatch.setattr(pysbd.Segmenter, "processor", fail)
    with pytest.warns(UserWarning, match="pysbd failed on 1 pieces of text, which are left uncut"):
        assert list(source.documents("train")) == [["One. Two.", "Plain text"]]


def test_plain_text_gives_the_same_without_the_rules(monkeypatch):
    draw = random.Random(1)
    words = ["the", "model's", "self-taught", "layer", "T5", "x", "No", "Mr", "it,", "e", "1", "20"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(["", ".", "!", "?"]) for _ in range(300)]
    fast = [sentences(text) for text in texts]
    monkeypatch.setattr("lit_distil.data.sources.sentence_rules._IS_PLAIN", lambda text: None)
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


MARKS = ["no.", "No. 7", "U.S.", "p.m.", "Mr.", "e.g.", "eng.", "art.", "St. Ives", "vs.", "a. b.", "(ii) x", "1) y"]
MARKS += ["2. z", "K. o.", "ſt. x", "İn. y", "etc.", "“Dr. No.”", "s. d.", "z.B. so", "usw.", "м.н.с.", "\u3000Mr. X"]


@pytest.mark.parametrize("language", sorted(LANGUAGE_CODES))
def test_fewer_searches_give_the_same_sentences(language):
    draw = random.Random(language)
    rules = LANGUAGE_CODES[language].Abbreviation.ABBREVIATIONS
    cutter = SentenceCutter(language)
    plain = pysbd.Segmenter(language=language, clean=False)
    num_compared = 0
    for _ in range(60):
        words = [
            draw.choice([draw.choice(MARKS), draw.choice(rules or MARKS).strip() + ".", "Then", "it was", "so.", "No"])
            for _ in range(draw.randint(2, 14))
        ]
        text = draw.choice([" ", " ", "\n"]).join(word.title() if draw.random() < 0.2 else word for word in words)
        try:
            expected = plain.processor(text).process()
        except (IndexError, ValueError, re.error):
            continue
        assert cutter._segmenter.processor(text).process() == expected, text
        num_compared += 1
    assert num_compared > 40


def paragraphs(number):
    draw = random.Random(number)
    words = ["Dr. Who", "came.", "He", "saw 3.5 things!", "Nobody did?", "the layer", "learns", "from it."]
    units = [" ".join(draw.choices(words, k=draw.choice([3, 20, 200]))) for _ in range(number)]
    return [units[start : start + 7] for start in range(0, number, 7)]


def test_worker_processes_cut_the_same_sentences(monkeypatch):
    monkeypatch.setattr(sentences_module, "_BATCH_CHARACTERS", 3000)  # so that documents are cut in the middle
    given = Given(*paragraphs(60), [], ["One. Two."])
    source = Sentences(given, language="en")
    nested = Mixture({"only": Sentences(Mixture({"only": given}), language="en")})
    expected = list(source.documents("train"))
    assert expected[-2:] == [[], ["One.", "Two."]] and sum(map(len, expected)) > 300
    with workers(2):
        assert list(source.documents("train")) == expected == list(nested.documents("train"))
        # a reader may stop early
        documents = source.documents("train")
        assert next(documents) == expected[0]
        documents.close()


def test_a_prepared_corpus_of_sentences_is_the_same_for_any_number_of_processes(wordpiece, tmp_path, monkeypatch):
    monkeypatch.setattr(sentences_module, "_BATCH_CHARACTERS", 3000)
    hashes = []
    for number in (1, 2, 3):
        source = Sentences(Given(*paragraphs(60)), language="en")
        prepare_corpus(
            source,
            "train",
            wordpiece,
            tmp_path / str(number),
            num_processes=number,
            shard_characters=9000,
            progress=False,
        )
        hashes.append((tmp_path / str(number) / "manifest.json").read_bytes())
    assert hashes[0] == hashes[1] == hashes[2] and hashes[0].count(b"shard-") > 2
