"""`lit-distil export`: a checkpoint as a folder that plain transformers loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.callbacks import write_export
from lit_distil.commands.networks import max_positions, open_network
from lit_distil.commands.onnx import OnnxNetwork, compare_with_torch, onnx_bytes, quantise, write_onnx
from lit_distil.data.sources.text import read_lines
from lit_distil.files import staged_folder


def export(
    checkpoint: str,
    out: str,
    tokenizer: str | None = None,
    onnx: bool = False,
    int8: bool = False,
    tolerance: float = 1.0e-3,
    min_agreement: float = 0.9,
    check_on: str | None = None,
    allow_disagreement: bool = False,
) -> None:
    """Turn a checkpoint into a folder that plain transformers loads, with ONNX files if asked for.

    ONNX files are compared with the torch network before the folder appears; what was found is kept in onnx.json.

    Args:
        checkpoint: File that a run wrote, such as runs/demo/teacher/checkpoints/last.ckpt, or a folder that one
            exported.
        out: Folder to write to.
        tokenizer: Folder or Hub name; None takes the exported folder's own, or the one that the run's config.yaml
            names.
        onnx: Write model.onnx too.
        int8: Write model_int8.onnx too, with ONNX Runtime's dynamic quantisation.
        tolerance: Largest difference of a logit between torch and model.onnx, as a share of the largest logit.
        min_agreement: Smallest share of choices (at masks, of labels, of spans) that int8 must have in common with
            torch.
        check_on: Text file, one text a line, to compare on; None takes paragraphs of the standard library's
            documentation.
        allow_disagreement: Write the int8 file even if it agrees less than that.
    """
    network, chosen = open_network(checkpoint, tokenizer)
    embedding: Any = network.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if len(chosen) > num_rows:
        raise ValueError(
            f"tokenizer: it has {len(chosen)} entries and the network's embedding {num_rows} rows; give the tokenizer "
            "that the network was trained with: --tokenizer FOLDER_OR_NAME"
        )
    if not (onnx or int8):
        write_export(network, chosen, Path(out))
        print(f"{network.num_parameters():,} parameters in {out}")
        return
    texts = read_lines_of(check_on) if check_on is not None else []
    with staged_folder(Path(out)) as staging:
        network.save_pretrained(staging)
        chosen.save_pretrained(staging)
        least = 0.0 if allow_disagreement else min_agreement
        write_onnx_files(network, chosen, staging, int8=int8, tolerance=tolerance, min_agreement=least, texts=texts)
    print(f"{network.num_parameters():,} parameters in {out}")


def write_onnx_files(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    int8: bool,
    tolerance: float,
    min_agreement: float,
    texts: Sequence[str] = (),
) -> None:
    """Write model.onnx, model_int8.onnx if asked, and onnx.json with how they compare with torch; print the latter.

    Raises:
        ValueError: A file says something else than the network.
    """
    plain, small = folder / "model.onnx", folder / "model_int8.onnx"
    write_onnx(network, plain, max_length=_room(network, tokenizer))
    found = compare_with_torch(network, OnnxNetwork(plain), tokenizer, texts=texts)
    if found.largest_difference > tolerance * max(found.largest_logit, 1.0):
        raise ValueError(
            f"onnx: model.onnx is not the network: {found.describe()}; tolerance is {tolerance:g} of the largest logit"
        )
    before = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    kept = {"torch_mb": before / 1e6, "model.onnx": {"mb": onnx_bytes(plain) / 1e6, **asdict(found)}}
    print(f"model.onnx: {onnx_bytes(plain) / 1e6:.1f} MB (torch: {before / 1e6:.1f} MB); {found.describe()}")
    if int8:
        quantise(plain, small)
        found = compare_with_torch(network, OnnxNetwork(small), tokenizer, texts=texts)
        if found.top_agreement < min_agreement:
            raise ValueError(
                f"int8: model_int8.onnx disagrees too often with the network: {found.describe()}; min_agreement is "
                f"{min_agreement:g}. Lower it, or write the file all the same: --allow_disagreement true"
            )
        kept["model_int8.onnx"] = {"mb": onnx_bytes(small) / 1e6, **asdict(found)}
        print(f"model_int8.onnx: {onnx_bytes(small) / 1e6:.1f} MB; {found.describe()}")
    (folder / "onnx.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def read_lines_of(file: str) -> list[str]:
    """The texts of a file, one a line.

    Raises:
        ValueError: There is no such file, or nothing in it.
    """
    path = Path(file)
    lines = read_lines(path) if path.is_file() else iter(())
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"check_on: {file!r} holds no texts; give a text file with one text a line")
    return texts


def run(arguments: list[str]) -> None:
    """Parse the arguments and export."""
    auto_cli(export, args=arguments, prog="lit-distil export", as_positional=False)


def _room(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest sequence; 0 where there is no limit."""
    limits = [max_positions(network), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and limit < 1_000_000]
    return min(known, default=0)
