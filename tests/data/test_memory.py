"""Sources over lists and `datasets`, and a share held out of another source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from lit_distil.data import HeldOut, InMemory, TableFiles, TextFiles
from lit_distil.tasks.base import SOURCE_KEY, ClassName

TEXTS = [f"title {number}\n\nfirst line\nsecond line" for number in range(25)]


@pytest.mark.parametrize(
    "given",
    [TEXTS, tuple(TEXTS), [{"text": text, "n": 1} for text in TEXTS], datasets.Dataset.from_dict({"text": TEXTS})],
    ids=["list", "tuple", "rows", "dataset"],
)
def test_every_kind_of_text_gives_the_same_documents(given: Any) -> None:
    source = InMemory(given)
    assert list(source.documents("train")) == [[f"title {n}", "first line", "second line"] for n in range(25)]
    assert not list(source.documents("validation"))


def test_rows_keep_their_columns_their_origin_and_the_names_of_classes() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows = list(InMemory(dataset, validation=[{"text": "c", "label": "no"}]).rows("train"))
    assert [(row["text"], row["label"], row[SOURCE_KEY]) for row in rows] == [
        ("a", "yes", "train row 0"),
        ("b", "no", "train row 1"),
    ]
    assert isinstance(rows[0]["label"], ClassName) and rows[0]["label"].number == 1


def test_the_fingerprint_depends_on_the_content_only() -> None:
    first, second = InMemory(list(TEXTS)), InMemory(tuple(TEXTS), validation=["x"])
    assert first.fingerprint("train") == second.fingerprint("train") != first.fingerprint("validation")
    assert first.fingerprint("train") != InMemory(TEXTS[::-1]).fingerprint("train")
    assert InMemory([{"text": "a", "label": 1}]).fingerprint("train") != InMemory([{"text": "a"}]).fingerprint("train")


class Frame:
    """Has the methods of a data frame that the source looks at."""

    def iterrows(self) -> None: ...

    def __getitem__(self, key: str) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((text for text in TEXTS), r"source\.train: .* expected, got generator"),
        ("corpus.txt", "expected, got str"),
        (Frame(), r"to_dict\('records'\)"),
    ],
)
def test_anything_but_a_list_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InMemory(given)


def test_a_row_that_is_neither_text_nor_dictionary_is_named() -> None:
    with pytest.raises(ValueError, match="train row 1: a text or a dictionary is expected, got int"):
        list(InMemory(["a", 2]).rows("train"))
    with pytest.raises(ValueError, match=r"train row 0: no column 'text' .* there are \['body'\]"):
        list(InMemory([{"body": "a"}]).documents("train"))


@pytest.mark.parametrize(("share", "num_held"), [(0.1, 2), (0.2, 5), (0.5, 12)])
def test_every_nth_document_is_held_out_and_all_others_are_kept(share: float, num_held: int) -> None:
    source = HeldOut(InMemory(TEXTS, test=["t"]), share=share)
    kept, held = (list(source.documents(split)) for split in ("train", "validation"))
    assert len(held) == num_held and len(kept) == 25 - num_held
    assert sorted(kept + held) == sorted(InMemory(TEXTS).documents("train"))
    assert list(source.documents("test")) == [["t"]]


def test_few_documents_are_split_by_their_last_lines(tmp_path: Path) -> None:
    """A corpus without a blank line is one document."""
    file = tmp_path / "corpus.txt"
    file.write_text("".join(f"line {number}\n" for number in range(30)))
    source = HeldOut(TextFiles(str(file)))
    kept, held = (list(source.documents(split)) for split in ("train", "validation"))
    assert held == [["line 27", "line 28", "line 29"]] and len(kept[0]) == 27
    assert not list(HeldOut(InMemory(["one line"])).documents("validation"))


def test_each_part_has_its_own_fingerprint_and_size(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("a\n\n" * 100)
    inner = TextFiles(str(file))
    source, other = HeldOut(inner), HeldOut(inner, share=0.2)
    prints = [one.fingerprint(split) for one in (source, other) for split in ("train", "validation")]
    assert len(set(prints)) == 4 and inner.fingerprint("train") not in prints
    assert source.fingerprint("test") == inner.fingerprint("test")
    assert (source.text_bytes("train"), source.text_bytes("validation")) == (270, 30)
    assert HeldOut(TableFiles(None)).text_bytes("train") in (None, 0)
    with pytest.raises(ValueError, match=r"source\.share must be above 0 and at most 0\.5, got 0\.7"):
        HeldOut(inner, share=0.7)
