import json
import sys
import warnings
from collections import Counter

import pytest

from lit_distil.data import Docstrings

MODULE = '''"""The module's own documentation, module {n}."""
class Thing:
    """What a thing of module {n} is,

        with an indented line,
    and one that is not."""
    def method(self):
        r"""A method of module {n} that does something."""
        def inner(): "One line in single quotes, module {n}."
def short():
    """Too short."""
def shared():
    """This docstring stands in every module of the package."""
if True:
    try:
        pass
    except ValueError:
        def hidden():
            """Deep in a handler of module {n} this one stands."""
not_one = """A string that is assigned to a name is no docstring."""
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    def make(name, num_modules=12, text=MODULE):
        folder = tmp_path / "path" / name
        (folder / "sub" / "tests").mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('this must not be imported')")
        for number in range(num_modules):
            (folder / "sub" / f"m{number}.py").write_text(text.format(n=f"{name}-{number}"))
        (folder / "sub" / "broken.py").write_text('"""A template, not Python."""\nprint {{ x }}')
        (folder / "sub" / "tests" / "test_m.py").write_text('"""Documentation of a test that is left out."""')
        return folder

    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return make


def read(source, split):
    return list(source.documents(split))


def test_docstrings_of_modules_classes_and_functions_are_found_once(package, tmp_path):
    package("fakea", num_modules=2)
    source = Docstrings(["fakea"], validation_share=0, test_share=0, cache_dir=str(tmp_path))
    first, second = read(source, "train")
    assert first == [
        "The module's own documentation, module fakea-0.",
        "What a thing of module fakea-0 is,",
        "    with an indented line,",
        "and one that is not.",
        "A method of module fakea-0 that does something.",
        "One line in single quotes, module fakea-0.",
        "This docstring stands in every module of the package.",
        "Deep in a handler of module fakea-0 this one stands.",
    ]
    assert len(second) == len(first) - 1  # what both have is kept once


def test_every_document_is_in_one_split_and_stays_there(package, tmp_path):
    package("fakea", num_modules=40)
    settings = {"validation_share": 0.3, "test_share": 0.2, "cache_dir": str(tmp_path)}
    splits = {s: read(Docstrings(["fakea"], **settings), s) for s in ("train", "validation", "test")}
    titles = {split: {document[0] for document in documents} for split, documents in splits.items()}
    assert all(len(found) > 3 for found in titles.values())
    assert sum(map(len, titles.values())) == len(set.union(*titles.values())) == 40
    package("fakeb", num_modules=5)
    both = Docstrings(["fakea", "fakeb"], **settings)
    for split, found in titles.items():
        assert found <= {document[0] for document in read(both, split)}


def test_rows_have_their_package_as_label_a_cap_and_a_least_length(package, tmp_path):
    package("fakea", num_modules=9)
    package("fakeb", num_modules=9)
    source = Docstrings(["fakea", "fakeb"], rows_per_package={"train": 5}, min_characters=45, cache_dir=str(tmp_path))
    rows = list(source.rows("train"))
    assert Counter(row["package"] for row in rows) == {"fakea": 5, "fakeb": 5}
    assert all(len(row["text"]) >= 45 for row in rows)
    assert all(row["module"].startswith(row["package"]) and row["__source__"] == row["module"] for row in rows)
    assert rows == list(source.rows("train"))
    assert list(source.rows("predict")) == []


def test_rows_have_words_intact_or_exchanged_and_the_marks_that_were_cut_off(package, tmp_path):
    """Nothing but the order may tell the label, and the words with their marks are the text again."""
    package("fakea", num_modules=40)
    (tmp_path / "path/fakea/sub/marks.py").write_text('"""Reads: all, or one ... and no: more. Then, it ends..."""')
    source = Docstrings(["fakea"], validation_share=0, test_share=0, min_characters=30, cache_dir=str(tmp_path))
    rows = list(source.rows("train"))
    assert len({row["text"] for row in rows}) == len(rows) > 150
    for row in rows:
        words, given = row["text"].split()[:16], row["words"].split()
        step = -1 if row["order"] == "exchanged" else 1
        assert given[0] == words[0]
        assert all(given[place : place + 2] == words[place : place + 2][::step] for place in range(1, len(words), 2))
    assert min(Counter(row["order"] for row in rows).values()) > 0.4 * len(rows)
    (row,) = (row for row in rows if row["module"].endswith("marks"))
    assert list(zip(row["bare"], row["marks"], strict=True)) == [
        ("Reads", "colon"),
        ("all", "comma"),
        ("or", "none"),
        ("one", "none"),
        ("and", "none"),
        ("no", "colon"),
        ("more", "stop"),
        ("Then", "comma"),
        ("it", "none"),
        ("ends", "stop"),
    ]


def test_docstrings_that_begin_alike_make_one_row_whatever_their_splits(package, tmp_path):
    """Else a row to test on could be one that was trained on, but for its end."""
    folder = package("fakea", num_modules=1)
    beginning = " ".join(f"word{number}" for number in range(16))
    for number in range(40):
        (folder / f"alike{number}.py").write_text(f'"""{beginning} and {number}."""')
    source = Docstrings(["fakea"], validation_share=0.3, test_share=0.3, cache_dir=str(tmp_path))
    rows = [row for split in ("train", "validation", "test") for row in source.rows(split)]
    assert [row["module"] for row in rows if row["words"].startswith("word0")] == ["fakea.alike0"]
    with pytest.raises(ValueError, match=r"have the splits \['train', 'validation', 'test'\], not 'dev'"):
        next(source.rows("dev"))


def test_docstrings_are_cached_until_a_file_changes(package, tmp_path, monkeypatch):
    folder = package("fakea", num_modules=2)
    source = Docstrings(["fakea"], validation_share=0, test_share=0, cache_dir=str(tmp_path / "cache"))
    before, documents = source.fingerprint("train"), read(source, "train")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("lit_distil.data.sources.docstrings._read_files", None)  # would fail if called
        assert read(source, "train") == documents
        assert source.fingerprint("train") == before
    (folder / "sub" / "m9.py").write_text('"""A module that came later than the others."""')
    assert source.fingerprint("train") != before
    assert len(read(source, "train")) == 3


def test_the_fingerprint_changes_with_the_settings(package, tmp_path):
    package("fakea", num_modules=2)
    one = Docstrings(["fakea"], cache_dir=str(tmp_path))
    other = Docstrings(["fakea"], validation_share=0.2, cache_dir=str(tmp_path))
    assert one.fingerprint("train") != one.fingerprint("validation")
    assert one.fingerprint("train") != other.fingerprint("train")


def test_reading_gives_no_warning_and_writes_one_file(package, tmp_path):
    import torch  # noqa: F401

    package("fakea", num_modules=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = Docstrings(["fakea"], validation_share=0, test_share=0, cache_dir=str(tmp_path / "cache"))
        assert len(read(source, "train")) == 3
    assert "fakea" not in sys.modules
    (file,) = (tmp_path / "cache").iterdir()
    assert {"package", "module", "docstrings"} == set(json.loads(file.read_text().splitlines()[0]))


def test_a_real_package_is_read(tmp_path):
    source = Docstrings(["tqdm"], validation_share=0, test_share=0, cache_dir=str(tmp_path))
    text = "\n".join(line for document in read(source, "train") for line in document)
    assert "progress" in text and len(text) > 10_000


def test_wrong_settings_are_refused_by_name(tmp_path):
    for name in ("nopackage", "os.path"):
        with pytest.raises(ValueError, match=rf"source\.packages: no top-level package '{name}' is installed"):
            read(Docstrings([name], cache_dir=str(tmp_path)), "train")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), got 0\.5 \+ 0\.5"):
        Docstrings(validation_share=0.5, test_share=0.5)
    with pytest.raises(ValueError, match=r"source\.rows_per_package: no split 'valid'"):
        Docstrings(rows_per_package={"valid": 3})
    with pytest.raises(ValueError, match="not 'predict'"):
        read(Docstrings(["tqdm"], cache_dir=str(tmp_path)), "predict")
