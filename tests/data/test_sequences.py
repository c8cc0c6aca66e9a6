import pickle

import numpy as np
import pytest
import torch

from lit_distil.data import write_corpus
from lit_distil.data.formats import FullSentences, SegmentPair
from lit_distil.data.masking import TokenMasking, TokenView, WholeWordMasking
from lit_distil.data.ordering import StepPlan
from lit_distil.data.sequences import MaskedSequences
from lit_distil.data.tokenizers import vocabulary_of
from lit_distil.objectives import MaskedLMLoss
from lit_distil.schedules import LinearRamp
from lit_distil.types import EncoderOutput, Vocabulary
from tests.data.batches import DOCUMENTS, make_dataset, same
from tests.data.conftest import LINES, SPECIAL, make_corpus

CLS, SEP = SPECIAL["cls_token_id"], SPECIAL["sep_token_id"]


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
    vocabulary = vocabulary_of(tokenizer)
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
    assert copy.vocabulary.tokens[batch.input_ids[0]].tolist() == tokenizer.convert_ids_to_tokens(batch.input_ids[0])


def test_a_batch_without_a_word_has_no_masked_position_and_counts_none():
    dataset = make_dataset()
    dataset.corpus.tokens[:] = SPECIAL["unk_token_id"]
    batch = dataset.collate(np.array([0, 1]), np.array([0, 0]), 5)
    assert batch.counts["masked"] == 0 and batch.counts["tokens"] > 4
    assert batch.masked_positions.shape == batch.masked_labels.shape == (0,)
    hidden = torch.randn(batch.num_tokens, 8, requires_grad=True)
    output = EncoderOutput(hidden, logits=hidden[batch.masked_positions], rows=batch.masked_positions)
    loss = MaskedLMLoss()(output, None, batch) / max(batch.counts["masked"], 1)
    loss.backward()
    assert loss == 0 and torch.isfinite(hidden.grad).all()


def test_a_batch_of_static_masks_says_which_they_are_and_that_key_is_enough():
    """A cache of masked sequences finds an entry by its key, in any batch, epoch and rank."""
    dataset = make_dataset(masking=TokenMasking(0.3, patterns=3))
    seen = {}
    for step in range(12):
        samples, epochs = StepPlan(len(dataset), 4, seed=1).samples(step)
        batch = dataset.collate(samples, epochs)
        assert batch.mask_keys == tuple((int(s), int(e) % 3) for s, e in zip(samples, epochs, strict=True))
        for key, ids in zip(batch.mask_keys, batch.input_ids[0].split(list(batch.lengths)), strict=True):
            assert torch.equal(seen.setdefault(key, ids), ids)
    assert len({pattern for _, pattern in seen}) > 1
    for moving in (TokenMasking(0.3), TokenMasking(LinearRamp(0.4, 0.2, steps=9), patterns=3)):
        assert make_dataset(masking=moving).collate(samples, epochs).mask_keys is None
