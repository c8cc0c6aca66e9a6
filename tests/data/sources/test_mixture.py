import itertools
import tracemalloc
import warnings

import pytest

from lit_distil.data import DocumentSource, Mixture, TableFiles, TextFiles


class Counted(DocumentSource):
    """Documents "<name> 0", "<name> 1", ... of so many characters."""

    def __init__(self, name, number, characters=10):
        self.name, self.number, self.characters = name, number, characters

    def documents(self, split):
        for index in range(self.number if split == "train" else 2):
            yield [f"{self.name} {index}".ljust(self.characters, ".")]

    def fingerprint(self, split):
        return f"{self.name}{self.number}{self.characters}{split}"


def names(mixture, split="train"):
    return "".join(document[0][0] for document in mixture.documents(split))


def numbers(mixture, name):
    return [int(d[0].split()[1].strip(".")) for d in mixture.documents("train") if d[0][0] == name]


def test_documents_are_interleaved_by_weight_and_given_once():
    mixture = Mixture({"a": Counted("a", 30), "b": Counted("b", 10)}, weights={"a": 3, "b": 1})
    assert names(mixture) == "ab" + "aaab" * 9 + "aa" == names(mixture)
    assert numbers(mixture, "a") == list(range(30)) and numbers(mixture, "b") == list(range(10))


def test_shares_match_the_weights_at_any_point_to_within_a_document():
    parts = {"a": Counted("a", 900, 7), "b": Counted("b", 900, 31), "c": Counted("c", 900, 12)}
    weights = {"a": 0.2, "b": 1.7, "c": 0.5}
    for measure in ("characters", "documents"):
        mixture = Mixture(parts, weights=weights, measure=measure, at_the_end="stop")
        given = dict.fromkeys(parts, 0)
        for count, document in enumerate(mixture.documents("train"), start=1):
            given[document[0][0]] += len(document[0]) if measure == "characters" else 1
            if count > 100:
                for name, share in weights.items():
                    error = abs(given[name] - sum(given.values()) * share / 2.4)
                    assert error <= 2 * (31 if measure == "characters" else 1)
        assert count > 500


def test_at_the_end_decides_what_happens_when_a_source_ends():
    parts = {"a": Counted("a", 5), "b": Counted("b", 2)}
    assert names(Mixture(parts)) == "ababaaa"
    assert names(Mixture(parts, at_the_end="stop")) == "ababa"
    assert names(Mixture(parts, at_the_end="repeat")) == "ababababab"[:10]
    assert numbers(Mixture(parts, at_the_end="repeat"), "b") == [0, 1, 0, 1, 0]
    assert names(Mixture(parts, at_the_end="first")) == "ababababab"[:10]
    assert names(Mixture(dict(reversed(parts.items())), at_the_end="first")) == "baba"
    weights = {"a": 3, "b": 1}
    assert names(Mixture(parts, weights=weights, at_the_end="first")) == "abaaaba"[:7]


def test_shares_that_do_not_match_the_weights_in_the_end_are_told():
    parts = {"domain": Counted("d", 9), "general": Counted("g", 21)}
    weights = {"domain": 9, "general": 1}
    with pytest.warns(UserWarning, match=r"domain 30% \(90%\), general 70% \(10%\); at_the_end: first, stop or repeat"):
        assert len(names(Mixture(parts, weights=weights))) == 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(Mixture(parts, weights=weights, at_the_end="first")).count("g") == 1
        names(Mixture(parts))  # without weights, nobody asked for shares
        names(Mixture({"domain": Counted("d", 9), "general": Counted("g", 1)}, weights=weights))


def test_caps_and_shares_hold_per_source():
    parts = {"a": Counted("a", 50), "b": Counted("b", 50)}
    mixture = Mixture(parts, max_documents={"a": 3}, max_characters={"b": 49})
    assert numbers(mixture, "a") == [0, 1, 2] and numbers(mixture, "b") == [0, 1, 2, 3]
    assert names(Mixture(parts, max_documents={"a": 3}, at_the_end="repeat")).count("a") == 51
    assert numbers(Mixture(parts, shares={"a": 0.1}), "a") == [9, 19, 29, 39, 49]
    assert numbers(Mixture(parts, shares={"a": 0.1}, max_documents={"a": 2}), "a") == [9, 19]


def test_evaluation_splits_ignore_weights_and_caps():
    parts = {"a": Counted("a", 50), "b": Counted("b", 50)}
    mixture = Mixture(parts, max_documents={"a": 1}, shares={"b": 0.01}, weights={"a": 9}, at_the_end="stop")
    assert names(mixture, "validation") == "aabb"
    assert mixture.fingerprint("validation") == Mixture(parts).fingerprint("validation")


def test_a_source_without_documents_warns_and_is_left_out():
    with pytest.warns(UserWarning, match=r"source\.sources\.b: its train split has no documents"):
        assert names(Mixture({"a": Counted("a", 3), "b": Counted("b", 0)}, at_the_end="repeat")) == "aaa"
    with pytest.warns(UserWarning, match=r"source\.sources\.b: its train split has no documents"):
        assert names(Mixture({"b": Counted("b", 0), "a": Counted("a", 3)}, at_the_end="first")) == ""


def test_the_fingerprint_follows_the_parts_and_the_settings():
    parts = {"a": Counted("a", 5), "b": Counted("b", 2)}
    changed = [
        Mixture(parts),
        Mixture({"a": Counted("a", 6), "b": Counted("b", 2)}),
        Mixture({"b": Counted("b", 2), "a": Counted("a", 5)}),
        Mixture(parts, weights={"a": 2}),
        Mixture(parts, measure="documents"),
        Mixture(parts, shares={"a": 0.5}),
        Mixture(parts, max_documents={"a": 2}),
        Mixture(parts, max_characters={"a": 2}),
        Mixture(parts, at_the_end="stop"),
    ]
    assert len({mixture.fingerprint("train") for mixture in changed}) == len(changed)
    assert Mixture(parts).fingerprint("train") == Mixture(parts, weights={"a": 1.0}).fingerprint("train")


def test_memory_does_not_grow_with_the_sources():
    mixture = Mixture({name: Counted(name, 10**9, 1000) for name in "abc"}, weights={"a": 5}, at_the_end="repeat")
    tracemalloc.start()
    for _ in itertools.islice(mixture.documents("train"), 5000):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_files_of_different_kinds_can_be_mixed(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n')
    parts = {"text": TextFiles(str(tmp_path / "a.txt")), "rows": TableFiles(str(tmp_path / "b.jsonl"))}
    assert list(Mixture(parts).documents("train")) == [["one"], ["three"], ["two"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"c": 1}}, r"source\.weights: no source 'c'; there are \['a'\]"),
        ({"weights": {"a": 0}}, r"source\.weights\.a must be above 0, got 0; to use none of a source"),
        ({"weights": {"a": float("inf")}}, r"source\.weights\.a must be above 0"),
        ({"max_documents": {"a": -1}}, r"source\.max_documents\.a must be above 0, got -1"),
        ({"max_characters": {"b": 1}}, r"source\.max_characters: no source 'b'"),
        ({"shares": {"a": 1.5}}, r"source\.shares\.a must lie in \(0, 1\], got 1\.5"),
        ({"measure": "tokens"}, r"source\.measure must be one of \['characters', 'documents'\], got 'tokens'"),
        ({"at_the_end": "cry"}, r"source\.at_the_end must be one of \['go_on', 'stop', 'repeat', 'first'\], got 'cry'"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Mixture({"a": Counted("a", 1)}, **settings)


def test_sources_that_give_no_documents_are_refused():
    with pytest.raises(ValueError, match=r"source\.sources: give at least one source"):
        Mixture({})
    with pytest.raises(ValueError, match=r"source\.sources\.a: str gives no documents"):
        Mixture({"a": "docs"})
