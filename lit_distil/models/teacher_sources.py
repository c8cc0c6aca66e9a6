"""A teacher's network: from a folder, the Hub or memory, with its weights or as a sketch without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PretrainedConfig, PreTrainedModel

from lit_distil.models.architectures import Head, lacks_head
from lit_distil.models.sources import LiveModel, Pretrained, new_encoder_tensors, sketching, without_argument
from lit_distil.models.students.vocabulary import with_vocabulary
from lit_distil.types import Vocabulary

Teacher = str | PreTrainedModel
"""A folder, a name on the Hub, or a model in memory."""


def load_teacher(
    teacher: Teacher,
    revision: str | None,
    vocabulary: Vocabulary | None,
    head: Head,
    *,
    shared: Sequence[int] | None = None,
) -> tuple[PreTrainedModel, bool]:
    """A teacher's network, and whether its masked-LM or pretraining head is trained (a new one predicts at random).

    If the data's vocabulary is a subset of the teacher's, `shared` has the teacher's id of each entry, and the network
    is cut to these. A model in memory is not copied, only its settings are. An encoder without all its weights is
    refused.
    """
    with _naming_the_teacher():
        if isinstance(teacher, PreTrainedModel):
            live = LiveModel(teacher)
            return live.shared(vocabulary, head), live.has(head)
        source = Pretrained(teacher, revision=revision)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* has no weights for ")  # reported below, with its consequences
            model = source.build(vocabulary, head=head)
        if missing := sorted(new_encoder_tensors(model, source.new_tensors)):
            raise ValueError(
                f"{teacher!r} has no weights for {len(missing)} tensors of its encoder ({', '.join(missing[:3])}, "
                "...), and random ones teach nothing; give a whole network"
            )
        return _over_shared(model, vocabulary, shared), not source.new_tensors


def _over_shared(
    model: PreTrainedModel, vocabulary: Vocabulary | None, shared: Sequence[int] | None
) -> PreTrainedModel:
    """Cut a teacher to the entries that the data's vocabulary shares with its own."""
    if vocabulary is None or shared is None:
        return model
    return with_vocabulary(model, vocabulary, [(index,) for index in shared])


@contextmanager
def _naming_the_teacher() -> Iterator[None]:
    """Let errors begin with the teacher's field instead of the argument of the source that reads it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model.teacher: {without_argument(error)}") from error


def teacher_config(teacher: Teacher, revision: str | None, head: Head) -> tuple[PretrainedConfig, bool]:
    """A teacher's configuration, and whether it says that the head is trained."""
    with _naming_the_teacher():
        if isinstance(teacher, PreTrainedModel):
            return teacher.config, LiveModel(teacher).has(head)
        config = Pretrained(teacher, revision=revision).network_config(None, head, {})
        return config, not lacks_head(config, head)


def sketch_teacher(
    teacher: Teacher,
    revision: str | None,
    vocabulary: Vocabulary | None,
    head: Head,
    *,
    shared: Sequence[int] | None = None,
) -> PreTrainedModel | None:
    """What `load_teacher` would return, without weights; see `NetworkSource.sketch`."""
    source = LiveModel(teacher) if isinstance(teacher, PreTrainedModel) else Pretrained(teacher, revision=revision)
    with _naming_the_teacher():
        sketch = source.sketch(vocabulary, head=head)
        if sketch is None or shared is None:
            return sketch
        with sketching():
            return _over_shared(sketch, vocabulary, shared)
