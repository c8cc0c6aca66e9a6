"""`lit-distil student`: make a student from its teacher, show where each tensor came from, and write it to a folder."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from transformers import PreTrainedModel

from lit_distil.callbacks import write_export
from lit_distil.console import progress_bar
from lit_distil.data import EvalLoader, TextDataModule, load_tokenizer, vocabulary_of
from lit_distil.files import check_output
from lit_distil.models import MaskedLMNetwork, StudentInitialisation
from lit_distil.models.sources import check_embedding
from lit_distil.models.students import describe, freeze_parts, mark_frozen, new_head, summarise, tensor_table
from lit_distil.models.teacher_sources import load_teacher, sketch_teacher, teacher_config
from lit_distil.modules.checks import check_padding_id, check_pair, compared_entries
from lit_distil.objectives.functional import cross_entropy_sum, soft_target_kl
from lit_distil.pieces import call_command
from lit_distil.types import Batch, Vocabulary


def student(
    teacher: str,
    student: StudentInitialisation,
    out: str,
    data: TextDataModule | None = None,
    teacher_revision: str | None = None,
    freeze_positions: bool = False,
    all_tensors: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make a student from its teacher, show where each tensor came from, and write it with the teacher's tokenizer.

    Args:
        teacher: Folder or Hub name of an encoder, with its tokenizer. Without a trained masked-LM head, the student
            has none either.
        student: How to make the student, such as EveryOther, Narrower or CrossArchitecture.
        out: Folder to write to; plain transformers loads it.
        data: Text to compare teacher and student on (source, format, masking, tokenizer); None compares nothing.
        teacher_revision: Commit, tag or branch of the teacher on the Hub.
        freeze_positions: Show the position embeddings as frozen, as in a run with model.freeze_positions; this is not
            stored in the folder.
        all_tensors: Also print a line for each tensor.
        seed: Seed for initialising new tensors.
        overwrite: Replace what an earlier command wrote to `out`, and nothing else.
    """
    check_output(Path(out), overwrite=overwrite)
    seed_everything(seed, verbose=False)
    tokenizer = load_tokenizer(teacher, revision=teacher_revision)
    vocabulary = vocabulary_of(tokenizer)
    _check(teacher, teacher_revision, student, vocabulary, data, freeze_positions=freeze_positions)
    source, has_head = load_teacher(teacher, teacher_revision, vocabulary, "masked_lm")
    made, records = student.build(source)
    check_embedding(made, vocabulary)
    networks = MaskedLMNetwork(source), MaskedLMNetwork(made)
    if not has_head:
        _refuse_comparison(teacher, data)
        records = new_head(records, made)
        freeze_parts(networks[1], head=True, positions=False)
        print(f"{teacher} has no trained masked-LM head, so the folder gets the encoder alone")
    freeze_parts(networks[1], head=False, positions=freeze_positions)
    records = mark_frozen(records, made)

    if all_tensors:
        print(tensor_table(records), end="\n\n")
    print(describe(records), end="\n\n")
    print(f"student   {_size(made)}\nteacher   {_size(source)}\n{summarise(records)}")
    if data is not None:
        scores = _compare(*networks, data)
        print(
            f"right after initialisation, over {scores.num_masked:,} masked tokens:\n"
            "          masked-LM loss   top-1\n"
            f"student   {scores.student_loss:14.4f}  {scores.student_accuracy:6.2%}\n"
            f"teacher   {scores.teacher_loss:14.4f}  {scores.teacher_accuracy:6.2%}\n"
            f"they agree on {scores.agreement:.2%}; KL(teacher || student) {scores.kl:.4f} nats"
        )
    write_export(made if has_head else made.base_model, tokenizer, Path(out))
    print(f"written: {out}")


run = functools.partial(call_command, student)


def _check(
    teacher: str,
    revision: str | None,
    student: StudentInitialisation,
    vocabulary: Vocabulary,
    data: TextDataModule | None,
    *,
    freeze_positions: bool,
) -> None:
    """The checks that a distillation makes up front, which load no weights and read no documents."""
    _, has_head = teacher_config(teacher, revision, "masked_lm")
    if not has_head:
        _refuse_comparison(teacher, data)
    if data is not None:
        data.check_before_work("validate")
        data.check_same_vocabulary(teacher, revision)
    sketch = sketch_teacher(teacher, revision, vocabulary, "masked_lm")
    made = None if sketch is None else student.sketch(sketch)
    if sketch is None or made is None:
        return
    networks = MaskedLMNetwork(made), MaskedLMNetwork(sketch)
    freeze_parts(networks[0], head=False, positions=freeze_positions)
    check_embedding(made, vocabulary)
    for role, network in zip(("student", "teacher"), networks, strict=True):
        check_padding_id(role, network, vocabulary)
    compared_entries(networks[0].num_logits, {"teacher": networks[1].num_logits}, vocabulary)
    if data is not None:
        check_pair(*networks, data)


def _refuse_comparison(teacher: str, data: TextDataModule | None) -> None:
    if data is not None:
        raise ValueError(
            f"data: {teacher!r} has no trained masked-LM head to compare on text; leave data out, or train a head "
            f"first (`lit-distil pretrain TEXT --network {teacher} --out runs/adapted`)"
        )


def _compare(teacher: MaskedLMNetwork, student: MaskedLMNetwork, data: TextDataModule) -> PairScores:
    """Compare both networks on the validation split, or on another if there is none."""
    if data.format is None or data.masking is None:
        raise ValueError("data: comparing on text needs documents: give data.format and data.masking")
    data.prepare_data()
    data.setup("validate")
    split = next((name for name in ("validation", "test", "train") if name in data.datasets), None)
    if split is None:
        raise ValueError("data.source: it has no documents to compare on; name its files")
    check_pair(student, teacher, data)
    num_entries = compared_entries(student.num_logits, {"teacher": teacher.num_logits}, data.vocabulary)
    loader = EvalLoader(data.datasets[split], batch_size=data.eval_batch_size)
    batches = progress_bar(loader, desc=f"comparing on the {split} split", unit="batch")
    return compare(teacher, student, batches, num_entries=num_entries)


def _size(model: PreTrainedModel) -> str:
    """Number of parameters and their memory, tied ones counted once."""
    config, num_bytes = model.config, model.get_memory_footprint(return_buffers=False)
    return (
        f"{model.num_parameters():>13,} parameters  {num_bytes / 1e6:>9,.1f} MB  {config.model_type}, "
        f"{config.num_hidden_layers} layers, width {config.hidden_size}"
    )


@dataclass(frozen=True)
class PairScores:
    """Means over the masked tokens: cross-entropies in nats, and the shares predicted correctly.

    `agreement` is the share with the same prediction from both; `kl` is KL(teacher‖student) at temperature 1, in nats.
    """

    num_masked: int
    teacher_loss: float
    student_loss: float
    teacher_accuracy: float
    student_accuracy: float
    agreement: float
    kl: float


@torch.no_grad()
def compare(
    teacher: MaskedLMNetwork, student: MaskedLMNetwork, batches: Iterable[Batch], *, num_entries: int | None = None
) -> PairScores:
    """Compare both networks on the same masked batches, on one device; sets both to eval mode.

    Args:
        teacher: Must have as many logits as the student, unless `num_entries` is given.
        student: The student.
        batches: Batches without masked tokens are skipped.
        num_entries: Entries of the vocabulary to compare; None takes all logits.

    Raises:
        ValueError: No token is masked in any of the batches.
    """
    totals = torch.zeros(6, dtype=torch.float64)
    num_masked = 0
    teacher.eval()
    student.eval()
    for batch in batches:
        labels = batch.masked_labels
        if labels is None or not len(labels):
            continue
        rows = batch.masked_positions
        theirs, ours = (network(batch, rows=rows).over(num_entries).logits for network in (teacher, student))
        assert theirs is not None and ours is not None
        their_best, our_best = theirs.argmax(-1), ours.argmax(-1)
        values = (
            cross_entropy_sum(theirs, labels),
            cross_entropy_sum(ours, labels),
            (their_best == labels).sum(),
            (our_best == labels).sum(),
            (their_best == our_best).sum(),
            soft_target_kl(ours, theirs),
        )
        totals += torch.stack([value.double().cpu() for value in values])
        num_masked += len(labels)
    if num_masked == 0:
        raise ValueError("data.masking: no token is masked in these batches; give a strategy with a rate above 0")
    return PairScores(num_masked, *(totals / num_masked).tolist())
