import pickle
from pathlib import Path

import datasets
import pytest

from lit_distil.data import HubDataset
from lit_distil.tasks import ClassName, TextClassification
from tests.data.sources.test_base import write


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    rows = datasets.Dataset.from_dict({"text": [f"line {n}\nx\u2028y" for n in range(10)], "label": list(range(10))})
    datasets.DatasetDict({"train": rows, "dev": rows.select([3])}).save_to_disk(folder / "dict")
    rows.save_to_disk(folder / "single")
    return folder


@pytest.fixture(autouse=True)
def _quiet_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def labels(source, split):
    return [row["label"] for row in source.rows(split)]


def test_splits_can_be_renamed_and_sliced(saved):
    name = str(saved / "dict")
    assert labels(HubDataset(name, splits={"validation": "dev"}), "validation") == [3]
    sliced = HubDataset(name, splits={"train": "train[20%:]", "validation": "train[:20%]", "test": "train[:1]+dev"})
    assert labels(sliced, "validation") == [0, 1]
    assert labels(sliced, "train") == list(range(2, 10))
    assert labels(sliced, "test") == [0, 3]
    assert len({sliced.fingerprint(split) for split in ("train", "validation", "test")}) == 3
    assert HubDataset(name).fingerprint("train") == HubDataset(name).fingerprint("train")


def test_a_missing_split_warns_and_a_missing_named_one_is_refused(saved):
    name = str(saved / "dict")
    with pytest.warns(UserWarning, match=r"has no split 'validation', only \['train', 'dev'\]: nothing is used"):
        assert labels(HubDataset(name), "validation") == []
    assert labels(HubDataset(name, splits={"validation": None}), "validation") == []
    with pytest.raises(ValueError, match=r"source\.splits\.validation: dataset .* has no 'val'"):
        labels(HubDataset(name, splits={"validation": "val"}), "validation")
    with pytest.raises(ValueError, match=r"source\.splits: no split 'valid'"):
        HubDataset(name, splits={"valid": "dev"})


def test_a_dataset_without_splits_is_the_training_split_only(saved):
    source = HubDataset(str(saved / "single"))
    assert len(labels(source, "train")) == 10
    with pytest.warns(UserWarning, match="has no split 'test'"):
        assert labels(source, "test") == []


def test_each_row_of_a_dataset_is_a_document(saved):
    source = HubDataset(str(saved / "single"))
    assert next(iter(source.documents("train"))) == ["line 0", "x\u2028y"]
    with pytest.raises(ValueError, match=r"has no column 'body'; there are \['label', 'text'\]"):
        list(HubDataset(str(saved / "single"), text_column="body").documents("train"))


def test_a_folder_of_data_files_is_a_dataset_without_a_network(tmp_path):
    write(tmp_path / "train.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert labels(HubDataset(str(tmp_path)), "train") == [0, 1]


def test_a_missing_dataset_is_reported_with_the_fix(tmp_path):
    with pytest.raises(ValueError, match=r"source\.name: cannot load dataset .*save_to_disk"):
        list(HubDataset(str(tmp_path / "nothing")).rows("train"))


# Streams


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 10), ("test", 3)):
        rows = "".join(f'{{"text": "{split} {n}\\nmore", "label": {n}, "other": 0}}\n' for n in range(count))
        write(tmp_path / f"{split}.jsonl", rows)
    return str(tmp_path)


def test_a_stream_gives_the_same_rows_as_a_download(folder):
    for split in ("train", "test"):
        stream, loaded = HubDataset(folder, streaming=True), HubDataset(folder)
        assert list(stream.rows(split)) == list(loaded.rows(split))
        assert list(stream.documents(split)) == list(loaded.documents(split))
    assert len(list(stream.documents("test"))) == 3


def test_a_stream_is_sliced_by_numbers_of_rows(folder):
    splits = {"train": "train[2:]", "validation": "train[:2]", "test": "test[1:2]+train[4:5]"}
    source = HubDataset(folder, streaming=True, splits=splits)
    assert labels(source, "validation") == [0, 1]
    assert labels(source, "train") == list(range(2, 10)) == labels(source, "train")
    assert labels(source, "test") == [1, 4]
    assert len({source.fingerprint(split) for split in ("train", "validation", "test")}) == 3
    for spec in ("train[:10%]", "train[-2:]", "dev"):
        with pytest.raises(ValueError, match=r"source\.splits\.train: dataset .* slice counts rows: train\[:1000\]"):
            labels(HubDataset(folder, streaming=True, splits={"train": spec}), "train")


def test_the_fingerprint_of_a_stream_follows_its_files(folder):
    before = HubDataset(folder, streaming=True).fingerprint("train")
    assert HubDataset(folder, streaming=True).fingerprint("train") == before
    write(Path(folder, "train.jsonl"), '{"text": "another"}\n')
    assert HubDataset(folder, streaming=True).fingerprint("train") != before


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unreadable_file_is_reported_with_the_datasets_name(folder, streaming):
    write(Path(folder, "train.jsonl"), '{"text": "fine"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"source\.name: (cannot load dataset|dataset) "):
        list(HubDataset(folder, streaming=streaming).rows("train"))


def test_a_saved_dataset_needs_no_stream(saved):
    assert labels(HubDataset(str(saved / "dict"), streaming=True, splits={"train": "train[:20%]"}), "train") == [0, 1]


# Columns


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_chosen_by_name(folder, streaming):
    rows = list(HubDataset(folder, columns=["text", "label"], streaming=streaming).rows("test"))
    assert [set(row) for row in rows] == [{"text", "label", "__source__"}] * 3
    with pytest.raises(ValueError, match=r"source\.columns: dataset .* has no column 'lable'; there are \['label', "):
        list(HubDataset(folder, columns=["lable"], streaming=streaming).rows("test"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["yes", "maybe", "no"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = [{"text": f"t{n}", "label": n % 3, "tags": [0, 1]} for n in range(6)]
    folder = tmp_path_factory.mktemp("classes")
    unlabelled = [{"text": "t", "label": -1, "tags": []}]
    parts = {
        "train": datasets.Dataset.from_list(rows, features),
        "test": datasets.Dataset.from_list(unlabelled, features),
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return str(folder)


def test_class_columns_give_names_with_numbers(classes):
    rows = list(HubDataset(classes).rows("train"))
    assert [row["label"] for row in rows] == ["yes", "maybe", "no"] * 2
    assert [row["label"].number for row in rows[:3]] == [0, 1, 2]
    assert rows[0]["tags"] == ["O", "B-X"] and rows[0]["tags"][1].number == 1
    assert next(HubDataset(classes).rows("test"))["label"] == -1
    copied = pickle.loads(pickle.dumps(rows[2]["label"]))
    assert (copied, copied.number, type(copied)) == ("no", 2, ClassName)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [0, 1, 2]),  # in the dataset's order, not the alphabet's
        (["no", "maybe", "yes"], [2, 1, 0]),  # by name, in another order
        (["Ja", "Vielleicht", "Nein"], [0, 1, 2]),  # by number, under other names
    ],
)
def test_a_task_may_use_or_rename_the_classes_of_a_dataset(classes, names, expected, wordpiece):
    task = TextClassification(labels=names)
    rows = list(HubDataset(classes).rows("train"))
    task.learn_labels(rows)
    features = task.encode(rows[:3], wordpiece, max_length=16)
    assert [feature.label for feature in features] == expected
    assert task.head_settings()["id2label"] == dict(enumerate(names or ["yes", "maybe", "no"]))
    numbered = [{**row, "label": row["label"].number} for row in rows[:3]]
    if names != ["no", "maybe", "yes"]:
        assert [feature.label for feature in task.encode(numbered, wordpiece, max_length=16)] == expected
    with pytest.raises(ValueError, match="label -1 marks an unlabelled split"):
        task.encode(list(HubDataset(classes).rows("test")), wordpiece, max_length=16)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source\.name: give a name on the Hub, or a folder"):
        HubDataset("")
