"""Callbacks and loggers of a run."""

from lit_distil.callbacks.checkpoints import RunCheckpoint as RunCheckpoint
from lit_distil.callbacks.checkpoints import WholeCheckpoints as WholeCheckpoints
from lit_distil.callbacks.evaluations import ConfusionWriter as ConfusionWriter
from lit_distil.callbacks.evaluations import JackknifeWriter as JackknifeWriter
from lit_distil.callbacks.export import ExportCallback as ExportCallback
from lit_distil.callbacks.export import PredictionWriter as PredictionWriter
from lit_distil.callbacks.export import write_export as write_export
from lit_distil.callbacks.logs import RunCSVLogger as RunCSVLogger
from lit_distil.callbacks.logs import StepProgressBar as StepProgressBar
from lit_distil.callbacks.signals import StopOnSignal as StopOnSignal
