"""What Lightning saves and resumes, with the loader's samples: mid-epoch, with workers, on other numbers of ranks."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from lit_distil.data.batching import TrainLoader
from lit_distil.data.formats import DocSentences
from lit_distil.data.masking import MixedMasking, SpanMasking, TokenMasking, WholeWordMasking
from tests.data.batches import make_dataset, sequences_of, take
from tests.workspace import make_trainer

STEPS, STOP = 14, 9  # the stop lies in the second epoch, between its ends


class Recorder(LightningModule):
    """Trains nothing that matters and keeps what it saw in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[tuple]] = {}

    def training_step(self, batch, index):
        self.seen.setdefault(self.trainer.global_step, []).extend(sequences_of([batch]))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Lightning's own checkpoint after so many steps."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if trainer.global_step == STOP and not self.path.exists():
            trainer.save_checkpoint(self.path)


def run(folder, dataset, *, world_size=1, rank=0, accumulate=1, workers=0, checkpoint=None, save=None, **settings):
    callbacks = [SaveAt(save)] if save else []
    trainer = make_trainer(folder, STEPS, callbacks, accumulate_grad_batches=accumulate)
    loader = TrainLoader(
        dataset,
        rank=rank,
        world_size=world_size,
        accumulate=accumulate,
        seed=2,
        num_workers=workers,
        first_step=lambda: trainer.global_step,
        **settings,
    )
    recorder = Recorder()
    trainer.fit(recorder, train_dataloaders=loader, ckpt_path=checkpoint, weights_only=False)
    assert trainer.global_step == STEPS
    return recorder.seen


@pytest.mark.parametrize("settings", [{"batch_size": 8}, {"batch_size": 8, "batch_tokens": 130, "length_window": 3}])
def test_a_lightning_checkpoint_resumes_with_workers_and_another_number_of_ranks(settings, tmp_path):
    dataset = make_dataset(DocSentences(), masking=SpanMasking(patterns=2))
    saved = tmp_path / "mid-epoch.ckpt"
    unbroken = run(tmp_path, dataset, save=saved, **settings)
    assert sorted(unbroken) == list(range(STEPS)) and saved.exists()
    loader = TrainLoader(dataset, **settings)
    assert STOP % loader.plan.steps_per_epoch and loader.plan.steps_per_epoch < STOP
    for world_size, accumulate, workers in [(1, 1, 2), (1, 2, 0), (2, 1, 0), (4, 1, 0)]:
        ranks = [
            run(
                tmp_path,
                dataset,
                world_size=world_size,
                rank=rank,
                accumulate=accumulate,
                workers=workers,
                checkpoint=saved,
                **settings,
            )
            for rank in range(world_size)
        ]
        for step in range(STOP, STEPS):
            assert [sequence for seen in ranks for sequence in seen[step]] == unbroken[step], (world_size, step)
        assert all(min(seen) == STOP for seen in ranks)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_workers_and_resumes_see_one_sequence_of_samples_and_masks(world_size, num_workers):
    draw = np.random.default_rng([world_size, num_workers])
    parts = [TokenMasking(), WholeWordMasking(), SpanMasking()]
    dataset = make_dataset(masking=MixedMasking(parts, patterns=2 if world_size == 4 else None))
    settings = {"batch_size": 8, "batch_tokens": 170 if world_size == 2 else None}
    reference = [sequences_of(step) for step in take(TrainLoader(dataset, **settings), 25)]
    assert len({sequence for step in reference for sequence in step}) > len(dataset)  # masks differ by epoch
    for done in draw.choice(22, 1 if num_workers else 6, replace=False).tolist():
        ranks = []
        for rank in range(world_size):
            loader = TrainLoader(
                dataset,
                rank=rank,
                world_size=world_size,
                num_workers=num_workers,
                first_step=lambda done=done: done,
                **settings,
            )
            ranks.append([sequences_of(step) for step in take(loader, 3)])
        for place in range(3):
            assert [sequence for steps in ranks for sequence in steps[place]] == reference[done + place]
