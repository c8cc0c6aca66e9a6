"""Batches made by hand are shown as they are: marks, labels, hostile text, colours that can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lit_distil.commands.inspect.batches import (
    Painter,
    Reader,
    TokenTexts,
    batches_page,
    printable,
    sequence_text,
    summary,
    totals_of,
)
from lit_distil.commands.pages import Section, render
from lit_distil.data import vocabulary_of
from lit_distil.objectives import ChoiceLabel, ClassLabel, LabelKind, MultiLabel, SpanLabel, ValueLabel
from lit_distil.types import Batch
from tests.commands.pages import Page
from tests.workspace import Workspace

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Ada", "wrote", "##n", "<script>alert(1)</script>", "\x1b[2J"]
HOSTILE = WORDS.index("<script>alert(1)</script>")


def reader_of(
    labels: dict[int, str] | None = None, places: dict[int, str] | None = None, label_kind: LabelKind | None = None
) -> Reader:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), WORDS[:5], strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    vocabulary = vocabulary_of(tokenizer)
    tokens = TokenTexts(tokenizer, set(vocabulary.special_ids.values()))
    return Reader(tokens, vocabulary, labels or {}, places or {}, label_kind)


def batch_of(*sequences: list[int], **fields: Any) -> Batch:
    lengths = tuple(map(len, sequences))
    return Batch(
        input_ids=torch.tensor([[token for sequence in sequences for token in sequence]]),
        position_ids=torch.tensor([[place for length in lengths for place in range(length)]]),
        cu_seq_lens=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        lengths=lengths,
        **{"sample_ids": torch.arange(len(lengths)), **fields},
    )


def test_hostile_text_is_text_on_the_page_and_in_the_terminal(tmp_path: Path) -> None:
    """A corpus may hold markup and escape sequences; neither may act, in tokens, labels, file names or titles."""
    hostile = "</title><img src=x onerror=alert(1)>\x1b]0;x\x07\u202e"
    batch = batch_of(
        [2, HOSTILE, 9, 3], [2, 4, 1, 3], labels=torch.tensor([0, 0]),
        masked_positions=torch.tensor([5]), masked_labels=torch.tensor([HOSTILE]),
    )  # fmt: skip
    reader = reader_of({0: hostile}, {0: hostile, 1: hostile}, ClassLabel())
    view, totals = reader.view(1, batch, None), totals_of([batch], reader, top=5)
    file = tmp_path / "page.html"
    file.write_text(batches_page(hostile, [view], totals, summary(totals)), encoding="utf-8")
    page = Page(file)
    assert not page.tags.keys() & {"script", "img", "link", "iframe", "object"}
    assert page.tags["title"] == page.tags["h1"] == page.tags["main"] == 1
    assert page.struck.count(WORDS[HOSTILE]) == 1 and "<img src=x" in "".join(page.words)
    source = file.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", source) and "\x1b" not in source
    shown = "\n".join(sequence_text(sequence, Painter(False)) for sequence in view.sequences)
    assert shown.replace("\n", "").isprintable() and "\\x1b[2J" in shown and "\\u202e" in shown


def test_marks_of_every_kind() -> None:
    batch = batch_of(
        [2, 5, 4, 9, 5, 1, 3],
        masked_positions=torch.tensor([2, 3, 4]),
        masked_labels=torch.tensor([7, 6, 5]),
    )
    (view,) = reader_of().sequences(batch)
    assert sequence_text(view, Painter(False)).splitlines()[1] == (
        "  │ [CLS] Ada⟦n → [MASK]⟧ ⟦wrote → \\x1b[2J⟧ ⟦Ada ↺⟧ [UNK] [SEP]"
    )
    kinds = ["special", "text", "mask", "random", "kept", "unknown", "special"]
    assert [piece.kind for piece in view.pieces] == kinds
    assert [piece.position for piece in view.pieces] == list(range(7))


def test_documents_within_a_sequence_stand_on_lines_of_their_own() -> None:
    (view,) = reader_of().sequences(batch_of([2, 5, 3, 6, 6, 3]))
    assert sequence_text(view, Painter(False)).splitlines()[1:] == ["  │ [CLS] Ada [SEP]", "  │ wrote wrote [SEP]"]
    (pair,) = reader_of().sequences(batch_of([2, 5, 3, 3, 6, 3]))  # RoBERTa's pair has two separators
    assert [len(part.pieces) for part in pair.parts] == [4, 2]


def test_every_kind_of_label_is_in_words() -> None:
    """Tags, several labels, values, answers and choices."""

    def text(kind: LabelKind, batch: Batch, names: dict[int, str] | None = None) -> str:
        views = reader_of(names, label_kind=kind).sequences(batch)
        return "\n".join(sequence_text(view, Painter(False)) for view in views)

    tagged = batch_of([2, 5, 7, 6, 3], labels=torch.tensor([[-100, 1, -100, 0, -100]]))
    tags = text(ClassLabel(per_token=True), tagged, {0: "O", 1: "B-PER"})
    assert tags.splitlines()[1] == "  │ [CLS] Ada⟨B-PER⟩n wrote⟨O⟩ [SEP]"
    labelled = batch_of([2, 3], [2, 3], labels=torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
    several = text(MultiLabel(), labelled, {0: "a", 1: "b", 2: "c"})
    assert "label: a, c\n" in several and "label: (none of the labels)\n" in several
    assert "label: 3.5\n" in text(ValueLabel(), batch_of([2, 3], labels=torch.tensor([3.5])))
    spans = torch.tensor([[2, 3], [5, 5], [-100, -100]])
    answers = text(SpanLabel(), batch_of([2, 6, 5, 7, 3], [2, 3], [2, 3], answer_spans=spans))
    assert [line.split(" · ")[2] for line in answers.splitlines() if line.startswith("sample")] == [
        "answer: Adan",
        "answer: none in this window",
        "answer: not known",
    ]
    groups = {"group_sizes": (2, 2), "sample_ids": torch.tensor([7, 8]), "labels": torch.tensor([1, 0])}
    choices = text(ChoiceLabel(), batch_of([2, 3], [2, 5, 3], [2, 3], [2, 3], **groups))
    assert [line for line in choices.splitlines() if line.startswith("sample")] == [
        "sample 7 · 2 tokens · label: choice 1 of 2",
        "sample 7 · 3 tokens · label: choice 2 of 2, the right one",
        "sample 8 · 2 tokens · label: choice 1 of 2, the right one",
        "sample 8 · 2 tokens · label: choice 2 of 2",
    ]


def test_byte_level_tokens_are_words_again(workspace: Workspace) -> None:
    """Marks of spaces become spaces, and a part of a character is shown as the vocabulary writes it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(workspace.byte_bpe)
    texts = TokenTexts(tokenizer, set(tokenizer.all_special_ids))
    sentence = "The model returns each token."
    read = [texts(token) for token in tokenizer(sentence, add_special_tokens=False).input_ids]
    assert "".join(f"{' ' if spaced else ''}{text}" for text, spaced in read).replace("␣", " ") == sentence
    assert len(read) > 5 and "." in dict(read)
    parts = [texts(token) for token in tokenizer("é", add_special_tokens=False).input_ids]
    assert parts == [("Ã", False), ("©", False)]
    assert printable("a\tb c\n") == "a→b c↵"


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_pages_have_contrast_in_light_and_dark(scheme: int) -> None:
    """WCAG's 4.5 to 1 for text on every background that it has."""
    reader = reader_of()
    batch = batch_of([2, 5, 3])
    totals = totals_of([batch], reader, top=0)
    page = batches_page("T", [reader.view(1, batch, None)], totals, summary(totals))
    page += render("sections.html.jinja", title="T", sections=[Section(lines=["small print"], small=True)])
    found = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    assert len(found) == 6 and page.count("prefers-color-scheme: dark") == 3
    colours = dict(re.findall(r"--(\w+): #(\w+)", "".join(found[scheme::2])))

    def light(name: str) -> float:
        code = colours[name] if len(colours[name]) == 6 else "".join(2 * letter for letter in colours[name])
        parts = [int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    grounds = [("text", name) for name in ("back", "hover", "mask", "random", "kept", "answer")]
    for text, ground in [*grounds, *((name, "back") for name in ("faint", "unknown", "tag"))]:
        darker, lighter = sorted((light(text), light(ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)
