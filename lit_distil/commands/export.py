"""`lit-distil export`: a checkpoint as a folder that plain transformers loads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.callbacks import write_export
from lit_distil.data import load_tokenizer
from lit_distil.models.sources import AUTO_MODELS

_PREFIX = "network.model."


def export(checkpoint: str, out: str, tokenizer: str | None = None) -> None:
    """Turn a checkpoint into a folder with network and tokenizer that plain transformers loads.

    Args:
        checkpoint: File that a run wrote, such as runs/demo/teacher/checkpoints/last.ckpt.
        out: Folder to write to.
        tokenizer: Folder or Hub name; None takes the one that the run's config.yaml names.
    """
    network = load_network(checkpoint)
    chosen = load_tokenizer(tokenizer) if tokenizer else _tokenizer_of_run(Path(checkpoint))
    embedding: Any = network.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if len(chosen) > num_rows:
        raise ValueError(
            f"tokenizer: it has {len(chosen)} entries and the network's embedding {num_rows} rows; give the tokenizer "
            "that the network was trained with: --tokenizer FOLDER_OR_NAME"
        )
    write_export(network, chosen, Path(out))
    print(f"{network.num_parameters():,} parameters in {out}")


def load_network(checkpoint: str | Path) -> PreTrainedModel:
    """The trained network of a checkpoint, with its head, in eval mode on the CPU.

    Args:
        checkpoint: File that one of this project's modules was saved to. A distilled student's holds no teacher.

    Raises:
        ValueError: The file is missing, is no checkpoint, or was written by something else.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise ValueError(f"checkpoint: no file {str(path)!r}; a run keeps its own in <run>/checkpoints/last.ckpt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"checkpoint: {str(path)!r} could not be read as one ({reason})") from error
    saved = content.get("network") if isinstance(content, dict) else None
    if not isinstance(saved, dict) or saved.get("head") not in AUTO_MODELS:
        raise ValueError(
            f"checkpoint: {str(path)!r} was not written by a module of lit_distil, as it does not say which network it "
            "holds; give one that `lit-distil fit` wrote"
        )
    model = AUTO_MODELS[saved["head"]].from_config(AutoConfig.for_model(**json.loads(saved["config"])))
    weights = {key[len(_PREFIX) :]: value for key, value in content["state_dict"].items() if key.startswith(_PREFIX)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"checkpoint: the weights in {str(path)!r} do not fit its network: {reason}") from error
    return model.eval()


def run(arguments: list[str]) -> None:
    """Parse the arguments and export."""
    auto_cli(export, args=arguments, prog="lit-distil export", as_positional=False)


def _tokenizer_of_run(checkpoint: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the configuration beside `checkpoints/` names."""
    path = checkpoint.parent.parent / "config.yaml"
    if not path.is_file():
        raise ValueError(f"tokenizer: there is no {path} to take it from; give it: --tokenizer FOLDER_OR_NAME")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = config.get("data") if isinstance(config, dict) else None
    settings = data.get("init_args", data) if isinstance(data, dict) else {}
    if not settings.get("tokenizer"):
        raise ValueError(f"tokenizer: {path} names none under data; give it: --tokenizer FOLDER_OR_NAME")
    return load_tokenizer(settings["tokenizer"], revision=settings.get("tokenizer_revision"))
