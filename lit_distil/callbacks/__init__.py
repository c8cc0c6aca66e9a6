"""Callbacks and logs of a run."""

from lit_distil.callbacks.checkpoints import RunCheckpoint, WholeCheckpoints
from lit_distil.callbacks.export import ExportCallback, PredictionWriter, write_export
from lit_distil.callbacks.logs import RunCSVLogger, StepProgressBar
from lit_distil.callbacks.signals import StopOnSignal

__all__ = [
    "ExportCallback",
    "PredictionWriter",
    "RunCSVLogger",
    "RunCheckpoint",
    "StepProgressBar",
    "StopOnSignal",
    "WholeCheckpoints",
    "write_export",
]
