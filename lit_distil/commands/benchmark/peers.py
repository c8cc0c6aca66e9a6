"""Train on the same data with other code: transformers' Trainer, and the step of DistilBERT's authors.

This runs in its own process, which imports torch and transformers but nothing of this package, and reads what
`training.Prepare` wrote: the networks, the batches, and the settings. Batches are padded to their longest sequence.
"""

from __future__ import annotations

import inspect
import json
import resource
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

Settings = dict[str, Any]
IGNORED = -100


class PaddedBatches(Dataset):
    """The micro-batches of `Prepare` as `[sequences, longest]`, with the arguments that the model's forward accepts."""

    def __init__(self, batches: list[dict[str, Any]], pad_id: int, model: PreTrainedModel) -> None:
        self.batches, self.pad_id = batches, pad_id
        self.accepted = inspect.signature(model.forward).parameters

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.batches[index]
        lengths = torch.tensor(batch["lengths"])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]

        def pad(values: Tensor, filler: int) -> Tensor:
            return torch.full(mask.shape, filler, dtype=values.dtype).masked_scatter_(mask, values)

        inputs = {"input_ids": pad(batch["input_ids"], self.pad_id), "attention_mask": mask.long()}
        if "token_type_ids" in batch and "token_type_ids" in self.accepted:
            inputs["token_type_ids"] = pad(batch["token_type_ids"], 0)
        if "masked_positions" in batch:
            labels = torch.full_like(batch["input_ids"], IGNORED)
            labels[batch["masked_positions"]] = batch["masked_labels"]
            inputs["labels"] = pad(labels, IGNORED)
        elif "labels" in batch:
            is_of_tokens = batch["labels"].dim() == 1 and len(batch["labels"]) == len(batch["input_ids"])
            inputs["labels"] = pad(batch["labels"], IGNORED) if is_of_tokens else batch["labels"]
        if "next_sentence_labels" in batch:
            inputs["next_sentence_label"] = batch["next_sentence_labels"]
        return inputs


class Clock:
    """Measures wall-clock and CPU time from the end of the warm-up to the end of the last step."""

    def __init__(self, settings: Settings) -> None:
        self.first, self.last = settings["warm_up_steps"], settings["warm_up_steps"] + settings["steps"]
        self.device = torch.device(settings["device"])
        self.times: list[tuple[float, float]] = []
        self.losses: list[Tensor] = []  # one for each micro-batch
        self.accumulate = settings["accumulate"]

    def step_done(self, num_steps: int) -> None:
        """Take the time if the timed steps begin or end after this many steps."""
        if num_steps in (self.first, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.times.append((perf_counter(), process_time()))

    def result(self) -> dict[str, Any]:
        """Seconds, CPU seconds, and the loss of each step, the mean over its micro-batches."""
        (start, cpu_start), (end, cpu_end) = self.times
        losses = torch.stack(self.losses).view(-1, self.accumulate).mean(1).tolist()
        return {"seconds": end - start, "cpu_seconds": cpu_end - cpu_start, "losses": losses}


class StepClock(TrainerCallback):
    """Tells a clock about Trainer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start before the first step."""
        self.clock.step_done(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step."""
        self.clock.step_done(state.global_step)


class PreparedTrainer(Trainer):
    """Trainer over prepared micro-batches, in their order; records their losses."""

    clock: Clock

    def get_train_dataloader(self) -> DataLoader:
        """The micro-batches."""
        return self.accelerator.prepare(DataLoader(cast(Any, self.train_dataset), batch_size=None))

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Record the loss."""
        result = super().compute_loss(*args, **kwargs)
        self.clock.losses.append((result[0] if isinstance(result, tuple) else result).detach())
        return result


def train_with_trainer(folder: Path, settings: Settings, clock: Clock) -> None:
    """Train with transformers' Trainer."""
    model = load(folder / "network", settings)
    options = settings["optimizer"]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=settings["warm_up_steps"] + settings["steps"],
        gradient_accumulation_steps=settings["accumulate"],
        optim="adamw_torch_fused",
        learning_rate=options["lr"],
        weight_decay=options["weight_decay"],
        adam_beta1=options["betas"][0],
        adam_beta2=options["betas"][1],
        adam_epsilon=options["eps"],
        max_grad_norm=settings["clip"],
        logging_steps=settings["log_every"],
        bf16=settings["dtype"] == "bfloat16",
        fp16=settings["dtype"] == "float16",
        use_cpu=settings["device"] == "cpu",
        seed=settings["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # otherwise each batch is split over all visible GPUs
    batches = PaddedBatches(read_batches(folder), settings["pad_id"], model)
    trainer = PreparedTrainer(model, arguments, train_dataset=batches, callbacks=[StepClock(clock)])
    trainer.clock = clock
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.create_optimizer()
    trainer.lr_scheduler = schedule(trainer.optimizer, settings)
    trainer.train()


def train_like_the_authors(folder: Path, settings: Settings, clock: Clock) -> None:
    """Distil as DistilBERT's authors do (Sanh et al. 2019, section 3): logits of both networks at every position."""
    device = torch.device(settings["device"])
    student, teacher = (cast(Any, load(folder / name, settings)).to(device) for name in ("network", "teacher"))
    student.train(settings["student_dropout"])
    teacher.eval().requires_grad_(False)
    options = dict(settings["optimizer"])
    decay = options.pop("weight_decay")
    groups = [
        {
            "params": [p for p in student.parameters() if p.requires_grad and (p.dim() > 1) is has_decay],
            "weight_decay": w,
        }
        for has_decay, w in ((True, decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, fused=True, **options)
    scheduler = schedule(optimizer, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=settings["dtype"] == "float16")
    accumulate, batches = settings["accumulate"], PaddedBatches(read_batches(folder), settings["pad_id"], student)
    clock.step_done(0)
    for number, batch in enumerate(DataLoader(batches, batch_size=None), start=1):
        with autocast(settings):
            loss = authors_loss({name: each.to(device) for name, each in batch.items()}, student, teacher, settings)
        scaler.scale(loss / accumulate).backward()
        clock.losses.append(loss.detach())
        if number % accumulate:
            continue
        scaler.unscale_(optimizer)
        if settings["clip"]:
            nn.utils.clip_grad_norm_(student.parameters(), settings["clip"])
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        clock.step_done(number // accumulate)


def authors_loss(
    batch: dict[str, Tensor], student: PreTrainedModel, teacher: PreTrainedModel, settings: Settings
) -> Tensor:
    """The weighted sum of a micro-batch's losses.

    KL of softened distributions at the real or the masked positions, masked-LM, and the cosine of the last hidden
    states at the real positions, which are first copied out of the padded states.
    """
    labels = batch.pop("labels")
    terms, temperature = settings["objectives"], settings["temperature"]
    wants_states = "cosine" in terms
    ours = student(**batch, output_hidden_states=wants_states)
    with torch.no_grad():
        accepted = inspect.signature(teacher.forward).parameters
        theirs = teacher(**{k: v for k, v in batch.items() if k in accepted}, output_hidden_states=wants_states)
    is_real, size = batch["attention_mask"].bool(), ours.logits.shape[-1]
    loss = ours.logits.new_zeros(())
    if "soft" in terms:
        chosen = is_real if settings["soft_positions"] == "all" else labels != IGNORED
        wide = chosen[..., None].expand_as(ours.logits)
        s, t = (torch.masked_select(one.logits, wide).view(-1, size) for one in (ours, theirs))
        soft = F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1), reduction="batchmean")
        loss = loss + terms["soft"] * temperature**2 * soft
    if "masked_lm" in terms:
        loss = loss + terms["masked_lm"] * F.cross_entropy(ours.logits.view(-1, size), labels.view(-1))
    if wants_states:
        wide = is_real[..., None].expand_as(ours.hidden_states[-1])
        width = wide.shape[-1]
        s, t = (torch.masked_select(one.hidden_states[-1], wide).view(-1, width) for one in (ours, theirs))
        loss = loss + terms["cosine"] * F.cosine_embedding_loss(s, t, torch.ones(len(s), device=s.device))
    return loss


def load(folder: Path, settings: Settings) -> PreTrainedModel:
    """A network as transformers loads it, with its default attention."""
    kind = getattr(transformers, settings["classes"][folder.name])
    model = kind.from_pretrained(folder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(folder.name != "network" or name not in settings["frozen"])
    return model


def read_batches(folder: Path) -> list[dict[str, Any]]:
    """The micro-batches of all steps."""
    return torch.load(folder / "batches.pt", weights_only=True)


def schedule(optimizer: Any, settings: Settings) -> LambdaLR:
    """The learning rate of our run at each step."""
    factors = settings["multipliers"]
    return LambdaLR(optimizer, lambda step: factors[min(step, len(factors) - 1)])


def autocast(settings: Settings) -> Any:
    """The precision of matrix products."""
    if settings["dtype"] == "float32":
        return nullcontext()
    return torch.autocast(settings["device"].partition(":")[0], getattr(torch, settings["dtype"]))


WAYS: dict[str, Callable[[Path, Settings, Clock], None]] = {
    "trainer": train_with_trainer,
    "authors": train_like_the_authors,
}


def measure(folder: Path, precision: str) -> dict[str, Any]:
    """Train and return the measurements, from the folder that `Prepare` wrote.

    `precision` is `own` for the default of a script that sets none (fp32), or `same` for that of our run.
    """
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    if precision == "own":
        settings["dtype"] = "float32"
    else:
        torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.manual_seed(settings["seed"])
    clock = Clock(settings)
    WAYS[settings["way"]](folder, settings, clock)
    return {**clock.result(), "peak_memory": peak_memory(settings["device"])}


def peak_memory(device: str) -> int:
    """Peak bytes: resident memory of this process, or memory that torch allocated on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
