"""Callbacks and logs of a run."""

from lit_distil.callbacks.checkpoints import RunCheckpoint
from lit_distil.callbacks.export import ExportCallback, replace_folder, write_export
from lit_distil.callbacks.logs import RunCSVLogger
from lit_distil.callbacks.predictions import PredictionWriter
from lit_distil.callbacks.progress import StepProgressBar

__all__ = [
    "ExportCallback",
    "PredictionWriter",
    "RunCSVLogger",
    "RunCheckpoint",
    "StepProgressBar",
    "replace_folder",
    "write_export",
]
