import multiprocessing
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from lit_distil.data.batching import EvalLoader, MaskedSequences, SequenceDataset, StepPlan, TrainLoader
from lit_distil.data.corpus import write_corpus
from lit_distil.data.formats import FullSentences, SegmentPair, SequenceFormat
from lit_distil.data.masking import TokenMasking, TokenView, WholeWordMasking
from lit_distil.types import Batch, Vocabulary
from tests.data.conftest import LINES, SPECIAL, make_corpus, vocabulary_of

CLS, SEP, MASK = SPECIAL["cls_token_id"], SPECIAL["sep_token_id"], SPECIAL["mask_token_id"]
DOCUMENTS = [[4, 3, 5, 2, 6, 3], [2, 2], [7, 1, 1, 8, 3, 3, 3], [5, 5, 5], [30, 2]] * 5
FIELDS = ("input_ids", "position_ids", "cu_seq_lens", "sample_ids", "token_type_ids")
LABELS = ("masked_positions", "masked_labels", "next_sentence_labels", "labels")


def make_dataset(form: SequenceFormat | None = None, masking=True, max_length=16, seed=3) -> MaskedSequences:
    form = form or FullSentences()
    corpus = make_corpus(DOCUMENTS)
    table = form.build(corpus, max_length, 0)
    return MaskedSequences(
        corpus,
        table,
        format=form,
        vocabulary=vocabulary_of(corpus),
        masking=TokenMasking() if masking else None,
        seed=seed,
    )


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal in everything."""
    if first.lengths != second.lengths or first.step_counts != second.step_counts:
        return False
    for name in FIELDS + LABELS:
        a, b = getattr(first, name), getattr(second, name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not torch.equal(a, b))):
            return False
    return True


def sequences_of(batches: list[Batch]) -> list[tuple]:
    """What each sequence of some batches is: its number, its input, its labels."""
    found = []
    for batch in batches:
        for index, sample in enumerate(batch.sample_ids.tolist()):
            start, end = batch.cu_seq_lens[index : index + 2].tolist()
            here = (batch.masked_positions >= start) & (batch.masked_positions < end)
            inputs = tuple(batch.input_ids[0, start:end].tolist())
            places = tuple((batch.masked_positions[here] - start).tolist())
            found.append((sample, inputs, places, tuple(batch.masked_labels[here].tolist())))
    return found


def take(loader: TrainLoader, steps: int) -> list[list[Batch]]:
    """The micro-batches of the next steps."""
    batches = list(islice(loader, steps * loader.accumulate))
    return [batches[index : index + loader.accumulate] for index in range(0, len(batches), loader.accumulate)]


@pytest.mark.parametrize("form", [FullSentences(), SegmentPair()])
def test_collate_equals_a_slow_assembly(form):
    dataset = make_dataset(form, masking=False)
    table, corpus = dataset.table, dataset.corpus
    samples = np.array([5, 0, len(dataset) - 1, 5, 2])
    batch = dataset.collate(samples, np.zeros(5, dtype=np.int64))
    ids, positions, segments, bounds = [], [], [], [0]
    for sample in samples:
        sequence, segment = [CLS], [0]
        for number, piece in enumerate(range(table.offsets[sample], table.offsets[sample + 1])):
            part = [*corpus.tokens[table.piece_starts[piece] : table.piece_ends[piece]].tolist(), SEP]
            sequence += part
            segment += [min(number, 1)] * len(part)
        ids += sequence
        segments += segment
        positions += range(len(sequence))
        bounds.append(len(ids))
    assert batch.input_ids.tolist() == [ids]
    assert batch.position_ids.tolist() == [positions]
    assert batch.cu_seq_lens.tolist() == bounds and batch.cu_seq_lens.dtype == torch.int32
    assert batch.lengths == tuple(np.diff(bounds).tolist()) == tuple(dataset.lengths[samples].tolist())
    assert batch.sample_ids.tolist() == samples.tolist()
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    assert batch.masked_positions is None and batch.masked_labels is None
    if form.has_segments:
        assert batch.token_type_ids.tolist() == [segments]
        assert batch.next_sentence_labels.tolist() == table.next_sentence_labels[samples].tolist()
    else:
        assert batch.token_type_ids is None and batch.next_sentence_labels is None


def test_the_mask_is_put_on_the_assembled_batch():
    dataset = make_dataset()
    samples, epochs = np.array([3, 1, 4]), np.array([0, 2, 0])
    plain, masked = make_dataset(masking=False).collate(samples, epochs), dataset.collate(samples, epochs)
    assert masked.masked_positions.numel() >= 3
    assert torch.equal(plain.input_ids[0, masked.masked_positions], masked.masked_labels)
    changed = torch.nonzero(plain.input_ids[0] != masked.input_ids[0])[:, 0]
    assert changed.numel() > 0 and set(changed.tolist()) <= set(masked.masked_positions.tolist())
    assert not np.isin(masked.masked_labels, list(SPECIAL.values())).any()
    assert not torch.equal(dataset.collate(samples, epochs + 1).masked_positions, masked.masked_positions)


def test_a_batch_of_static_masks_says_which_they_are_and_that_key_is_enough():
    """What is kept of a masked sequence is found by it, in whatever batch, epoch or rank it comes again."""
    dataset = make_dataset(masking=True)
    dataset.masking = TokenMasking(0.3, patterns=3)
    seen = {}
    for step in range(12):
        samples, epochs = StepPlan(len(dataset), 4, seed=1).samples(step)
        batch = dataset.collate(samples, epochs)
        assert batch.mask_keys == tuple((int(s), int(e) % 3) for s, e in zip(samples, epochs, strict=True))
        for key, ids in zip(batch.mask_keys, batch.input_ids[0].split(list(batch.lengths)), strict=True):
            assert torch.equal(seen.setdefault(key, ids), ids)
    assert len({pattern for _, pattern in seen}) > 1
    dataset.masking = TokenMasking(0.3)
    assert dataset.collate(samples, epochs).mask_keys is None


def test_words_begin_anew_after_special_tokens(monkeypatch):
    views = []

    class Spy(WholeWordMasking):
        def select(self, view: TokenView, draws):
            views.append(view)
            return super().select(view, draws)

    dataset = make_dataset(SegmentPair())
    dataset.masking = Spy()
    batch = dataset.collate(np.arange(len(dataset)), np.zeros(len(dataset), dtype=np.int64))
    (view,) = views
    is_special = np.isin(view.ids, [CLS, SEP])
    assert np.array_equal(view.maskable, ~is_special) and view.word_starts[is_special].all()
    assert is_special.sum() == 3 * len(dataset)
    text = dataset.corpus.word_starts[view.ids[~is_special] - 5]  # a token's id says where it stands in the corpus
    assert np.array_equal(view.word_starts[~is_special], text)
    assert batch.masked_positions.numel() > 0


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (7, 7), (12, 4), (5, 3), (9, 1)])
def test_every_epoch_is_a_permutation_and_no_step_is_short(num_samples, batch_size):
    plan = StepPlan(num_samples, batch_size, seed=5)
    steps = [plan.samples(step) for step in range(3 * num_samples)]
    samples, epochs = (np.concatenate(values) for values in zip(*steps, strict=True))
    assert all(len(step[0]) == batch_size for step in steps)
    assert np.array_equal(epochs, np.arange(len(epochs)) // num_samples)
    orders = set()
    for epoch in range(3):
        order = samples[epochs == epoch]
        assert np.array_equal(np.sort(order), np.arange(num_samples))
        orders.add(tuple(order))
    assert len(orders) == 3
    assert plan.steps_per_epoch == -(-num_samples // batch_size)
    still = StepPlan(num_samples, batch_size, seed=5, shuffle=False)
    assert np.array_equal(still.samples(1)[0], np.arange(batch_size, 2 * batch_size) % num_samples)


def test_ranks_and_accumulation_see_the_same_global_batches_and_masks():
    dataset = make_dataset()
    steps = 2 * -(-len(dataset) // 8) + 1
    reference = [sequences_of(step) for step in take(TrainLoader(dataset, batch_size=8, seed=1), steps)]
    assert len(dataset) % 8  # so that a step straddles two epochs
    for world_size, accumulate in [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]:
        ranks = [
            take(
                TrainLoader(dataset, batch_size=8, seed=1, rank=rank, world_size=world_size, accumulate=accumulate),
                steps,
            )
            for rank in range(world_size)
        ]
        for step in range(steps):
            found = [sequence for rank in ranks for sequence in sequences_of(rank[step])]
            assert found == reference[step], (world_size, accumulate, step)


def test_the_same_micro_batches_are_cut_whoever_computes_them():
    dataset = make_dataset()
    alone = [batch for step in take(TrainLoader(dataset, batch_size=8, accumulate=4), 3) for batch in step]
    pairs = [take(TrainLoader(dataset, batch_size=8, accumulate=2, rank=rank, world_size=2), 3) for rank in (0, 1)]
    together = [batch for step in range(3) for rank in pairs for batch in rank[step]]
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.input_ids, second.input_ids)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_at_any_step_gives_the_same_remaining_batches(accumulate):
    dataset = make_dataset()
    done = 0
    loader = TrainLoader(dataset, batch_size=4, accumulate=accumulate, first_step=lambda: done)
    unbroken = take(loader, 2 * loader.steps_per_epoch + 2)
    for done in range(len(unbroken)):
        rest = take(loader, len(unbroken) - done)
        assert all(
            same(a, b)
            for first, second in zip(rest, unbroken[done:], strict=True)
            for a, b in zip(first, second, strict=True)
        )
    assert loader.state_dict() == {} and loader.load_state_dict({}) is None
    assert len(loader) == loader.steps_per_epoch * accumulate


def test_workers_change_nothing_and_end_with_the_iteration():
    dataset = make_dataset(SegmentPair())
    expected = list(islice(TrainLoader(dataset, batch_size=4, accumulate=2), 9))
    loader = TrainLoader(dataset, batch_size=4, accumulate=2, num_workers=2)
    iterator = iter(loader)
    found = list(islice(iterator, 9))
    assert multiprocessing.active_children()
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    iterator.close()
    assert not multiprocessing.active_children()
    evaluation = list(EvalLoader(dataset, batch_size=5, num_workers=2))
    assert all(same(a, b) for a, b in zip(evaluation, EvalLoader(dataset, batch_size=5), strict=True))
    assert len(evaluation) > 2 and not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_iterating_leaves_the_global_generator_alone(num_workers):
    state = torch.get_rng_state()
    list(islice(TrainLoader(make_dataset(), batch_size=4, num_workers=num_workers), 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_step_counts_are_the_sums_over_this_ranks_micro_batches():
    dataset = make_dataset(SegmentPair())
    for rank in (0, 1):
        for step in take(TrainLoader(dataset, batch_size=12, accumulate=3, rank=rank, world_size=2), 4):
            assert len(step) == 3
            sums = {kind: sum(batch.counts[kind] for batch in step) for kind in step[0].counts}
            assert all(batch.step_counts == sums for batch in step)
            assert sums["sequences"] == 6 and sums["tokens"] > 0 and sums["masked"] >= 6


@pytest.mark.parametrize("sort_by_length", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 1000])
def test_evaluation_counts_every_sample_once_and_ranks_keep_step(world_size, batch_size, sort_by_length):
    dataset = make_dataset()
    ranks = []
    for rank in range(world_size):
        loader = EvalLoader(
            dataset, batch_size=batch_size, rank=rank, world_size=world_size, sort_by_length=sort_by_length
        )
        ranks.append(list(loader))
        assert len(ranks[-1]) == len(loader)
    assert len({len(batches) for batches in ranks}) == 1
    samples = [sample for batches in ranks for batch in batches for sample in batch.sample_ids.tolist()]
    assert sorted(samples) == list(range(len(dataset)))
    sizes = [batch.num_sequences for batches in ranks for batch in batches]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size + 1
    assert all(batch.step_counts == {} for batches in ranks for batch in batches)
    if sort_by_length:
        in_order = [ranks[rank][index].lengths for index in range(len(ranks[0])) for rank in range(world_size)]
        lengths = [length for batch in in_order for length in batch]
        assert lengths == sorted(lengths, reverse=True)


def test_evaluation_has_the_same_masks_every_time_and_those_of_epoch_0():
    dataset = make_dataset()
    loader = EvalLoader(dataset, batch_size=4)
    first, second = list(loader), list(loader)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    samples = first[1].sample_ids.numpy()
    assert same(first[1], dataset.collate(samples, np.zeros_like(samples)))


def test_what_does_not_divide_is_refused_with_the_way_out():
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"batch_size 10 .* devices × accumulate_grad_batches = 2 × 3 = 6: .* 12"):
        TrainLoader(dataset, batch_size=10, world_size=2, accumulate=3)
    with pytest.raises(ValueError, match=r"batch_size 1 .* take batch_size 4"):
        TrainLoader(dataset, batch_size=1, world_size=4)
    with pytest.raises(ValueError, match=f"batch_size 1000 is larger than the data .{len(dataset)} sequences"):
        TrainLoader(dataset, batch_size=1000)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        StepPlan(10, 0, seed=0)
    with pytest.raises(ValueError, match="accumulate_grad_batches must be at least 1"):
        TrainLoader(dataset, batch_size=4, accumulate=0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TrainLoader(dataset, batch_size=4, rank=2, world_size=2)
    with pytest.raises(ValueError, match=f"{len(dataset)} sequences for 999 devices"):
        EvalLoader(dataset, batch_size=4, world_size=999)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        EvalLoader(dataset, batch_size=0)


def test_a_vocabulary_that_does_not_fit_is_refused():
    corpus = make_corpus(DOCUMENTS)
    facts = {"format": FullSentences(), "masking": TokenMasking(), "seed": 0}
    table = FullSentences().build(corpus, 16, 0)
    size = len(corpus.token_counts)
    without_mask = {name: value for name, value in SPECIAL.items() if name != "mask_token_id"}
    with pytest.raises(ValueError, match="no mask_token_id"):
        MaskedSequences(corpus, table, vocabulary=Vocabulary(size, without_mask), **facts)
    with pytest.raises(ValueError, match="no cls_token_id or bos_token_id"):
        MaskedSequences(corpus, table, vocabulary=Vocabulary(size, {"mask_token_id": 4}), **facts)
    with pytest.raises(ValueError, match="prepare the corpus with this tokenizer"):
        MaskedSequences(corpus, table, vocabulary=Vocabulary(10, SPECIAL), **facts)
    others = {"bos_token_id": 0, "eos_token_id": 2, "mask_token_id": 4}
    batch = MaskedSequences(corpus, table, vocabulary=Vocabulary(size, others), **facts).collate(
        np.array([0]), np.array([0])
    )
    assert batch.input_ids[0, 0] == 0 and batch.input_ids[0, -1] == 2


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level_bpe"])
def test_text_comes_out_of_a_batch_as_it_went_in(kind, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    corpus = write_corpus([LINES[:2], LINES[2:3]], tokenizer, tmp_path / "corpus", progress=False)
    names = [f"{name}_token_id" for name in ("cls", "sep", "pad", "unk", "mask")]
    vocabulary = Vocabulary(len(tokenizer), {name: getattr(tokenizer, name) for name in names})
    with pytest.warns(UserWarning, match="fewer than one sequence"):
        table = FullSentences().build(corpus, 100, 0)
    assert table.offsets.tolist() == [0, 2]
    dataset = MaskedSequences(corpus, table, format=FullSentences(), vocabulary=vocabulary, masking=None, seed=0)
    batch = dataset.collate(np.array([0]), np.array([0]))
    encode = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in LINES[:3]]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert batch.input_ids[0].tolist() == [cls, *encode[0], *encode[1], sep, *encode[2], sep]
    # a worker that does not fork gets the folder's name, not the tokens
    assert len(pickle.dumps(dataset.corpus)) < 1000
    copy = pickle.loads(pickle.dumps(dataset))
    assert same(copy.collate(np.array([0]), np.array([0])), batch)


def test_another_kind_of_data_set_needs_lengths_and_collate_only():
    class Numbers(SequenceDataset):
        @property
        def lengths(self):
            return np.full(6, 1)

        def collate(self, sample_ids, epochs):
            size = len(sample_ids)
            values = torch.from_numpy(sample_ids)
            bounds = torch.arange(size + 1, dtype=torch.int32)
            return Batch(values[None], torch.zeros(1, size), bounds, (1,) * size, values, labels=values)

    batches = list(islice(TrainLoader(Numbers(), batch_size=3), 2))
    assert sorted(torch.cat([batch.sample_ids for batch in batches]).tolist()) == list(range(6))
    assert batches[0].step_counts == {"masked": 0, "tokens": 3, "sequences": 3, "labels": 3}
