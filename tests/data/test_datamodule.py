import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from lit_distil import cli
from lit_distil.data import (
    Docstrings,
    FrequencyMasking,
    FullSentences,
    SentencePair,
    TableFiles,
    TextDataModule,
    TextFiles,
    TokenMasking,
    WholeWordMasking,
)
from lit_distil.data.datamodule import _content_of
from lit_distil.data.sequences import LabelledSequences, SpreadSequences
from lit_distil.schedules import LinearRamp
from lit_distil.tasks import TextClassification, TextRegression
from lit_distil.tasks.base import Features
from tests.data.batches import same
from tests.workspace import kept_environment, with_trainer, write_config

WORDS = ["the", "dog", "fox", "sleeps", "jumps", "over", "lazy", "quick", "brown", "and"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# every word is its own entry, so that a document's tokens can be counted by eye
ENTRIES = [*SPECIALS, *WORDS, *"abcdefgh", *"0123456789"]


def trainer_of(command="fit", rank=0, world_size=1, accumulate=1, step=0):
    return SimpleNamespace(
        state=SimpleNamespace(fn=command),
        global_rank=rank,
        world_size=world_size,
        accumulate_grad_batches=accumulate,
        lightning_module=None,
        limit_train_batches=1.0,
        limit_val_batches=1.0,
        val_check_interval=1.0,
        check_val_every_n_epoch=1,
        global_step=step,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


@pytest.fixture
def made(tmp_path):
    """A tokenizer and three files of documents; `corpora` is where they are kept once tokenised."""
    BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)}).save_pretrained(tmp_path / "tokenizer")
    draw = random.Random(0)
    for split, size in {"train": 60, "validation": 20, "test": 12}.items():
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(3 * size)]
        text = "\n\n".join("\n".join(lines[n : n + 3]) for n in range(0, len(lines), 3))
        (tmp_path / f"{split}.txt").write_text(text)
    return SimpleNamespace(root=tmp_path, tokenizer=str(tmp_path / "tokenizer"), corpora=tmp_path / "cache" / "corpora")


def text_data(made, source=None, trainer=None, **settings):
    source = source or TextFiles(str(made.root / "train.txt"), validation=str(made.root / "validation.txt"))
    settings = {"format": FullSentences(), "masking": TokenMasking(), "max_length": 32, "batch_size": 8} | settings
    settings = {"cache_dir": str(made.root / "cache"), "seed": 3} | settings
    data = TextDataModule(settings.pop("tokenizer", made.tokenizer), source, **settings)
    data.trainer = trainer or trainer_of()
    return data


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def first_batches(data, num=4):
    return [batch for batch, _ in zip(data.train_dataloader(), range(num), strict=False)]


def rows_file(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def row_data(made, source, trainer=None, task=None, **settings):
    settings = {"task": task or TextClassification(), "max_length": 16, "batch_size": 4} | settings
    data = TextDataModule(made.tokenizer, source, seed=3, **settings)
    data.trainer = trainer or trainer_of()
    return data


# Pretraining


def test_ranks_take_disjoint_shares_of_the_same_global_batch(made):
    one = first_batches(ready(text_data(made)))
    for accumulate in (1, 2):
        share = 2 * accumulate
        ranks = [
            first_batches(
                ready(text_data(made, trainer=trainer_of(rank=r, world_size=2, accumulate=accumulate))), 4 * accumulate
            )
            for r in range(2)
        ]
        for step, whole in enumerate(one):
            parts = [b for rank in ranks for b in rank[step * accumulate : (step + 1) * accumulate]]
            assert [len(part.lengths) for part in parts] == [8 // share] * share
            assert torch.cat([part.sample_ids for part in parts]).tolist() == whole.sample_ids.tolist()
            assert torch.cat([part.input_ids[0] for part in parts]).tolist() == whole.input_ids[0].tolist()
            assert sum(len(part.masked_labels) for part in parts) == len(whole.masked_labels) > 0


def test_evaluation_covers_every_sequence_once_over_the_ranks(made):
    for world_size in (1, 2, 3):
        found = []
        for rank in range(world_size):
            data = ready(text_data(made, trainer=trainer_of(rank=rank, world_size=world_size)))
            found += [int(i) for batch in data.val_dataloader() for i in batch.sample_ids]
        assert sorted(found) == list(range(len(data.datasets["validation"])))


def test_a_run_resumes_at_its_step(made):
    batches = first_batches(ready(text_data(made)), 6)
    resumed = first_batches(ready(text_data(made, trainer=trainer_of(step=4))), 2)
    for before, after in zip(batches[4:], resumed, strict=True):
        assert torch.equal(before.input_ids, after.input_ids)


@pytest.mark.parametrize("kind", ["documents", "rows"])
def test_a_run_does_not_go_on_with_other_training_data(made, tables, kind):
    """The settings name the same files, whatever is in them."""

    def opened():
        return ready(text_data(made) if kind == "documents" else row_data(made, tables))

    file = made.root / "train.txt" if kind == "documents" else Path(tables.files["train"])
    kept = opened().state_dict()
    text = file.read_text()
    file.write_text(text)  # another time, and the same content
    opened().load_state_dict(kept)
    opened().load_state_dict({})  # of an earlier version
    file.write_text(text.replace("dog", "fox", 1))
    data = opened()
    with pytest.raises(ValueError, match=r"data\.source: the training data has changed .* --allow_changes"):
        data.load_state_dict(kept)
    data.allows_other_data = True
    data.load_state_dict(kept)


def test_the_hash_of_the_training_data_sees_every_label():
    """NumPy writes long arrays with dots in their middle, and fractions with eight digits."""

    def hash_with(label):
        features = [Features(np.arange(4), None, label)]
        return _content_of(LabelledSequences(features, label_kind=TextRegression().label_kind))

    tags = np.arange(2_000)
    other = np.where(tags == 1_000, 0, tags)
    labels = [None, 0.1, np.float32(0.1), (3, 4), tags, other, np.array([0.1, 1]), np.array([0.1 + 1e-12, 1])]
    assert len({hash_with(label) for label in labels}) == len(labels)


def test_validation_masks_are_the_same_in_every_epoch_and_for_every_seed(made):
    def validation(data):
        return [(b.input_ids.tolist(), b.masked_positions.tolist()) for b in data.val_dataloader()]

    data = ready(text_data(made, seed=3))
    other = ready(text_data(made, seed=4))
    assert validation(data) == validation(data) == validation(other)
    first, second = first_batches(data, 1)[0], first_batches(other, 1)[0]
    assert first.sample_ids.tolist() != second.sample_ids.tolist()


def test_validation_masks_are_the_same_for_all_recipes_unless_they_are_set(made):
    """A teacher trained with token masks and a student trained with others were measured on different tokens."""

    def masks(batches):
        return [(b.input_ids.tolist(), b.masked_positions.tolist(), b.mask_keys) for b in batches]

    recipes = {
        "tokens": {"seed": 3},
        "words": {"masking": WholeWordMasking(0.3), "seed": 4},
        "rare": {"masking": FrequencyMasking(0.4, mask_share=1.0, random_share=0.0, patterns=10)},
        "scheduled": {"masking": TokenMasking(LinearRamp(0.5, 0.1, steps=100))},
    }
    found = {name: masks(ready(text_data(made, **settings)).val_dataloader()) for name, settings in recipes.items()}
    assert len(found["tokens"]) > 0 and all(each == found["tokens"] for each in found.values())
    data = ready(text_data(made, **recipes["rare"]))
    batch = next(iter(data.val_dataloader()))
    assert len(batch.masked_positions) == sum(max(1, round(0.15 * length)) for length in batch.lengths)
    assert [pattern for _, pattern in batch.mask_keys] == [0] * batch.num_sequences  # a cached teacher's key

    as_training = ready(text_data(made, **recipes["rare"], eval_masking="as_training"))
    own = ready(text_data(made, **recipes["rare"], eval_masking=FrequencyMasking(0.4, 1.0, 0.0)))
    assert masks(as_training.val_dataloader()) == masks(own.val_dataloader()) != found["rare"]
    # training does not see it
    assert masks(first_batches(as_training)) == masks(first_batches(data)) == masks(first_batches(own))
    # whoever keeps what depends on masks is told which
    identities = [each.identity("validation")["masking"] for each in (data, as_training, own)]
    assert identities[0] == ready(text_data(made)).identity("validation")["masking"]
    assert identities[0] != identities[1] == data.identity("train")["masking"] != identities[2]
    assert next(iter(ready(text_data(made, masking=None)).val_dataloader())).masked_positions is None


def test_the_seed_defaults_to_that_of_the_run(made, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert text_data(made, seed=None).seed == 17
    assert text_data(made, seed=5).seed == 5


def test_setting_up_twice_changes_nothing(made):
    data = ready(text_data(made))
    before = dict(data.datasets)
    data.prepare_data()
    data.setup("fit")
    assert data.datasets == before and set(before) == {"train", "validation"}


def test_text_is_tokenised_once_and_again_only_when_it_or_the_tokenizer_changes(made, monkeypatch):
    ready(text_data(made))
    corpora = set(made.corpora.iterdir())
    assert len(corpora) == 2
    with monkeypatch.context() as patch:
        patch.setattr("lit_distil.data.datamodule.prepare_corpus", None)  # would fail if called
        ready(text_data(made, masking=WholeWordMasking(), format=SentencePair(), max_length=16, seed=9))
    with (made.root / "train.txt").open("a") as file:
        file.write("\n\nthe dog and the fox")
    ready(text_data(made))
    assert len(set(made.corpora.iterdir())) == 3
    entries = [*ENTRIES, "more"]
    other = BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)})
    other.save_pretrained(made.root / "other")
    ready(text_data(made, tokenizer=str(made.root / "other")))
    assert len(set(made.corpora.iterdir())) == 5
    assert corpora < set(made.corpora.iterdir())


def test_a_missing_validation_split_is_an_error_only_if_it_is_needed(made):
    source = TextFiles(str(made.root / "train.txt"))
    assert ready(text_data(made, source)).val_dataloader() == []
    asked = text_data(made, source, trainer_of("validate"))
    asked.prepare_data()
    asked.setup("validate")
    with pytest.raises(ValueError, match=r"data\.source: it gives no validation split.*source\.validation"):
        asked.val_dataloader()


def test_a_run_without_text_to_train_on_is_refused(made):
    with pytest.raises(ValueError, match="the train split has no documents"):
        text_data(made, TextFiles(validation=str(made.root / "validation.txt"))).prepare_data()
    (made.root / "blank.txt").write_text(" \n\n\t\n")
    with pytest.raises(ValueError, match=r"source\.train: all of its 1 file\(s\) are empty or blank"):
        text_data(made, TextFiles(str(made.root / "blank.txt"))).prepare_data()
    with pytest.raises(ValueError, match="no train split, which this run needs"):
        text_data(made).train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loaded_tokenizer_serves_as_its_folder_does(made, num_workers):
    loaded = AutoTokenizer.from_pretrained(made.tokenizer)
    data = ready(text_data(made, tokenizer=loaded, num_workers=num_workers))
    by_name = ready(text_data(made))
    assert data.tokenizer is loaded and data.vocabulary == by_name.vocabulary
    assert data.identity("train") == by_name.identity("train")
    for ours, theirs in zip(first_batches(data), first_batches(by_name), strict=True):
        assert same(ours, theirs) and len(ours.masked_labels) > 0
    data.check_same_vocabulary(made.tokenizer)
    data.check_same_vocabulary(loaded)
    other = BertTokenizer(vocab={entry: index for index, entry in enumerate([*ENTRIES, "new"])})
    with pytest.raises(ValueError, match=r"is not the teacher's vocabulary \('BertTokenizer', 34 entries\)"):
        data.check_same_vocabulary(other)


def test_a_loaded_tokenizer_is_checked_as_one_that_is_named(made):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(ValueError, match=r"data\.tokenizer: '.*Tokenizer.*' has no mask_token"):
        text_data(made, tokenizer=bare).prepare_data()


def test_a_batch_larger_than_the_data_is_refused(made):
    data = ready(text_data(made, batch_size=4096))
    with pytest.raises(ValueError, match=r"batch_size 4096 is larger than the data \(\d+ sequences\)"):
        data.train_dataloader()


def test_a_corpus_shorter_than_a_sequence_is_a_warning(made):
    (made.root / "short.txt").write_text("the dog\n\nthe fox")
    with pytest.warns(UserWarning, match="4 tokens, fewer than one sequence"):
        ready(text_data(made, TextFiles(str(made.root / "short.txt"))))


def test_the_test_command_opens_the_test_split_alone(made):
    source = TextFiles(str(made.root / "train.txt"), test=str(made.root / "test.txt"))
    data = text_data(made, source, trainer_of("test"))
    data.prepare_data()
    data.setup("test")
    assert set(data.datasets) == {"test"} and len(list(made.corpora.iterdir())) == 1
    assert sum(batch.num_sequences for batch in data.test_dataloader()) == len(data.datasets["test"])


def test_evaluation_on_a_part_is_spread_over_the_whole(made):
    data = ready(text_data(made, max_eval_sequences=5))
    whole = ready(text_data(made)).datasets["validation"]
    part = data.datasets["validation"]
    assert isinstance(part, SpreadSequences) and len(part) == 5 < len(whole)
    batch = next(iter(data.val_dataloader()))
    chosen = (np.arange(5) * len(whole) // 5).tolist()
    assert batch.sample_ids.tolist() == chosen
    assert list(batch.lengths) == part.lengths.tolist() == whole.lengths[chosen].tolist()
    assert isinstance(ready(text_data(made, max_eval_sequences=5)).datasets["train"], type(whole))


def test_vocabularies_are_compared_entry_by_entry(made):
    data = text_data(made)
    data.check_same_vocabulary(made.tokenizer)

    def teacher(entries):
        BertTokenizer(vocab={entry: index for index, entry in enumerate(entries)}).save_pretrained(
            made.root / "teacher"
        )
        return str(made.root / "teacher")

    swapped = [*ENTRIES]
    swapped[7], swapped[9] = swapped[9], swapped[7]  # as large, and another
    with pytest.raises(
        ValueError, match=r"2 tokens differ, the first 'fox' is 7 here and 9 there.*tokenizer: .*teacher"
    ):
        data.check_same_vocabulary(teacher(swapped))
    sizes = rf"\({len(ENTRIES)} entries\).*{len(ENTRIES) + 1} entries\)"
    with pytest.raises(ValueError, match=sizes + ": 1 tokens differ, the first 'new' is absent here"):
        data.check_same_vocabulary(teacher([*ENTRIES, "new"]))
    same = BertTokenizer(vocab={entry: index for index, entry in enumerate(ENTRIES)}, mask_token=ENTRIES[7])
    same.save_pretrained(made.root / "teacher")  # the same entries, another of which is the mask
    with pytest.raises(ValueError, match=r"the same entries, but mask_token_id is \d+ here and 7 there"):
        data.check_same_vocabulary(str(made.root / "teacher"))
    (made.root / "bare").mkdir()
    with pytest.warns(UserWarning, match="could not be compared"):
        data.check_same_vocabulary(str(made.root / "bare"))
    with pytest.raises(ValueError, match=r"is not the student's vocabulary .*use a student that was trained with"):
        data.check_same_vocabulary(teacher(swapped), role="student")


def test_settings_that_do_not_fit_together_are_refused(made):
    text, rows = TextFiles("a.txt"), TableFiles("a.csv")
    for settings, source, message in [
        ({}, text, "give either format"),
        ({"format": FullSentences(), "task": TextClassification()}, text, "and not both"),
        ({"task": TextClassification()}, text, r"data\.source: TextFiles gives documents"),
        ({"task": TextClassification(), "validation_share": 1.0}, rows, r"data\.validation_share must be 0 or more"),
        ({"format": FullSentences(), "max_length": 3}, rows, r"data\.max_length must be at least 4, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            TextDataModule(made.tokenizer, source, **settings)


# Fine-tuning


@pytest.fixture
def tables(made):
    rows = [{"text": f"the dog {letter}", "label": letter in "aceg"} for letter in "abcdefgh"]
    return TableFiles(
        rows_file(made.root / "train.jsonl", rows),
        validation=rows_file(made.root / "validation.jsonl", rows[:3]),
        predict=rows_file(made.root / "predict.jsonl", [{"text": "fox"}, {"text": "a fox"}]),
        test=rows_file(made.root / "test.jsonl", rows[4:]),
    )


def test_rows_become_batches_with_the_labels_of_the_training_rows(made, tables):
    data = ready(row_data(made, tables))
    assert data.task.head_settings()["id2label"] == {0: "False", 1: "True"}
    (batch,) = data.val_dataloader()
    assert batch.labels.tolist() == [1, 0, 1] and batch.num_sequences == 3
    samples = torch.cat([b.sample_ids for b in first_batches(data, 2)])
    assert sorted(samples.tolist()) == list(range(8))


def test_predicting_needs_no_labels_and_falls_back_to_the_test_split(made, tables):
    data = row_data(made, tables, trainer_of("predict"))
    data.prepare_data()
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.labels is None and batch.num_sequences == 2
    fallback = row_data(made, TableFiles(tables.files["train"], test=tables.files["test"]), trainer_of("predict"))
    fallback.setup("predict")
    assert sum(batch.num_sequences for batch in fallback.predict_dataloader()) == 4


@pytest.mark.parametrize(("with_test", "split"), [(True, "test"), (False, "validation")])
def test_masked_tokens_are_predicted_in_the_test_split_or_else_in_validation(made, with_test, split):
    files = {"validation": str(made.root / "validation.txt")}
    files |= {"test": str(made.root / "test.txt")} if with_test else {}
    data = text_data(made, TextFiles(str(made.root / "train.txt"), **files), trainer_of("predict"))
    data.prepare_data()
    data.setup("predict")
    assert data.predict_split == split and len(data.predict_dataloader()) > 0


def test_missing_training_rows_are_an_error_and_missing_validation_rows_are_not(made, tables):
    assert ready(row_data(made, TableFiles(tables.files["train"]), validation_share=0)).val_dataloader() == []
    with pytest.raises(
        ValueError, match=r"task\.labels: the names of the classes are not given, and there are no training"
    ):
        ready(row_data(made, TableFiles(validation=tables.files["validation"])))
    named = row_data(
        made, TableFiles(validation=tables.files["validation"]), task=TextClassification(labels=["a", "b"])
    )
    with pytest.raises(ValueError, match=r"validation\.jsonl:1: label 'True' is not one of"):
        ready(named)


def test_a_missing_validation_split_is_held_out_and_reported(made, tables, caplog):
    rows = [{"text": f"the dog {n % 10}", "label": "x" if n % 3 else "y"} for n in range(30)]
    source = TableFiles(rows_file(made.root / "many.jsonl", rows))
    split = {}
    with caplog.at_level("INFO"):
        for rank in range(2):  # whatever the rank
            data = ready(row_data(made, source, trainer_of(rank=rank, world_size=2), validation_share=0.2))
            split[rank] = [[row["text"] for row in data.datasets[name].rows] for name in ("train", "validation")]
    assert split[0] == split[1] and [len(part) for part in split[0]] == [24, 6]
    told = "holding out 6 of 30 training rows (data.validation_share 0.2, seed 3; 0 holds out none)"
    assert told in caplog.text
    asked = row_data(made, source, trainer_of("validate"), validation_share=0.2)  # afterwards, by itself
    asked.setup("validate")
    assert [row["text"] for row in asked.datasets["validation"].rows] == split[0][1]
    given = ready(row_data(made, tables))
    assert len(given.datasets["validation"]) == 3 and len(given.datasets["train"]) == 8


def test_an_unseen_label_names_file_and_row(made, tables):
    path = rows_file(made.root / "odd.jsonl", [{"text": "a", "label": True}, {"text": "a", "label": "maybe"}])
    with pytest.raises(ValueError, match=r"odd\.jsonl:2: label 'maybe' is not one of \['False', 'True'\]"):
        ready(row_data(made, TableFiles(tables.files["train"], validation=path)))


def test_values_are_trained_on_as_numbers(made):
    path = rows_file(
        made.root / "pairs.jsonl", [{"a": "the dog", "b": "the fox", "score": str(n / 2)} for n in range(4)]
    )
    data = ready(row_data(made, TableFiles(path), task=TextRegression("a", pair="b", label="score")))
    (batch,) = first_batches(data, 1)
    assert sorted(batch.labels.tolist()) == [0.0, 0.5, 1.0, 1.5] and batch.labels.dtype == torch.float32
    assert batch.token_type_ids.sum() > 0


def test_a_source_of_rows_is_made_ready_before_the_ranks_start(made, monkeypatch):
    data = row_data(
        made, Docstrings(["tqdm"], cache_dir=str(made.root / "cache")), task=TextClassification(label="package")
    )
    data.prepare_data()
    assert [path.suffix for path in (made.root / "cache").iterdir()] == [".jsonl"]
    monkeypatch.setattr("lit_distil.data.sources.docstrings._read_files", None)  # would fail if called in a rank
    with pytest.raises(ValueError, match="two are needed"):  # one package is no task, but it was read
        data.setup("fit")


class Hanging(TokenMasking):
    """Stops the worker process that asks it."""

    def select(self, view, draws):
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().select(view, draws)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_run_whose_workers_hang_ends_with_the_way_out(workspace, tmp_path, command, capsys):
    """It used to wait for ever, behind an error of the worker's that nobody waited for."""
    config = with_trainer(workspace.pretraining(), tmp_path / "run")
    config["data"]["init_args"] |= {"num_workers": 1, "worker_timeout": 1.0, "eval_masking": "as_training"}
    config["data"]["init_args"]["masking"] = {"class_path": "tests.data.test_datamodule.Hanging"}
    file = write_config(config, tmp_path / "config.yaml")
    others = multiprocessing.active_children()  # of other tests in this process
    with kept_environment(), pytest.raises(SystemExit) as stop:
        cli.main([command, "--config", file])
    assert stop.value.code == 2
    assert "error: data.worker_timeout: the 1 worker processes made no batch in 1 s. Set" in capsys.readouterr().err
    assert not [each for each in multiprocessing.active_children() if each not in others]


def test_a_multiple_that_would_be_filler_for_the_most_part_is_refused(made):
    with pytest.raises(ValueError, match=r"data\.pad_to_multiple_of: 1,000,000 tokens would be filler .* at most "):
        text_data(made, pad_to_multiple_of=1_000_000)
    with pytest.raises(ValueError, match=r"data\.pad_to_multiple_of must be at least 1"):
        text_data(made, pad_to_multiple_of=0)


@pytest.mark.parametrize("timeout", [-1.0, float("inf"), float("nan")])
def test_a_timeout_that_is_none_is_refused(made, timeout):
    with pytest.raises(ValueError, match=r"data\.worker_timeout must be 0 or more seconds"):
        text_data(made, worker_timeout=timeout)


def test_documents_that_are_evaluated_and_trained_on_are_counted(made):
    train, validation = (made.root / f"{split}.txt" for split in ("train", "validation"))
    shared = train.read_text().split("\n\n")[3:8]
    validation.write_text("\n\n".join([validation.read_text(), *shared]))
    data = text_data(made)
    with pytest.warns(
        UserWarning, match=r"data\.source: 5 of 25 documents of the validation split are in the training"
    ):
        data.prepare_data()


def test_an_interval_of_validations_that_no_epoch_reaches_is_refused(made):
    trainer = trainer_of()
    trainer.val_check_interval = 1000
    data = text_data(made, trainer=trainer)
    data.prepare_data()
    data.setup("fit")
    batches = -(-len(data.datasets["train"]) // 8)
    with pytest.raises(ValueError, match=rf"trainer\.val_check_interval: 1000 batches are more .* which is {batches};"):
        data.train_dataloader()
    trainer.check_val_every_n_epoch = None
    assert len(data.train_dataloader()) == batches
