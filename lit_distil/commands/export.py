"""`lit-distil export`: a checkpoint as a folder that plain transformers loads, with ONNX and OpenVINO files too."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_distil.callbacks.export import save_network
from lit_distil.commands.networks import open_network, texts_in, writable_sentence_format
from lit_distil.commands.onnx import Agreement, compare_with_torch, quantise, write_onnx, write_openvino
from lit_distil.files import check_output, staged_folder, write_json
from lit_distil.models.exported import exported_bytes, import_extra, open_exported
from lit_distil.models.positions import position_range
from lit_distil.objectives.embedding import Pooling
from lit_distil.pieces import call_command


def export(
    checkpoint: str,
    out: str,
    tokenizer: str | None = None,
    pooling: str | None = None,
    onnx: bool = False,
    int8: bool = False,
    openvino: bool = False,
    tolerance: float = 1.0e-3,
    min_agreement: float | None = None,
    min_cosine: float = 0.98,
    check_on: str | None = None,
    text_column: str | None = None,
    allow_disagreement: bool = False,
    overwrite: bool = False,
) -> None:
    """Turn a checkpoint into a folder that plain transformers loads, with ONNX and OpenVINO files on request.

    Those files are compared with the torch network before the folder is created; onnx.json records the result.

    Args:
        checkpoint: Folder of a run, whose export is used; an exported folder; or a checkpoint, such as
            runs/demo/teacher/checkpoints/last.ckpt.
        out: Folder to write to.
        tokenizer: Folder or Hub name; None takes the exported folder's own, or the one in the run's config.yaml.
        pooling: For a sentence encoder, mean or cls, so that SentenceTransformer(folder) loads it and the ONNX file
            outputs embeddings; None takes the exported folder's setting.
        onnx: Write model.onnx too.
        int8: Write model.onnx and model_int8.onnx, with ONNX Runtime's dynamic quantisation.
        openvino: Write model.onnx, and openvino_model.xml with its .bin, for Intel's OpenVINO.
        tolerance: Largest difference between a logit of torch and of a float32 file, as a share of the largest logit;
            also how far below 1 the cosine between their embeddings may be.
        min_agreement: Smallest share of choices (at masks, of labels, of spans) in which int8 agrees with torch; None
            takes 0.9. Without a head, the choices are the nearest neighbours of the texts, and None takes 0.8.
        min_cosine: Without a head, the smallest mean cosine between int8's and torch's embeddings.
        check_on: Texts to compare on: a text file with one text a line, or a table (JSONL, CSV, Parquet, ...) with
            text_column; None takes paragraphs of the standard library's documentation.
        text_column: Column of the table that holds the texts.
        allow_disagreement: Write the int8 file even if it agrees less.
        overwrite: Replace what an earlier command wrote to `out`, and nothing else.
    """
    check_output(Path(out), overwrite=overwrite)
    texts = [] if check_on is None else [text for text, _ in texts_in(check_on, text_column, field="check_on")]
    network, chosen = open_network(checkpoint, tokenizer)
    embedding: Any = network.get_input_embeddings()
    num_rows = embedding.weight.shape[0]
    if len(chosen) > num_rows:
        raise ValueError(
            f"tokenizer: it has {len(chosen)} entries and the network's embedding {num_rows} rows; give the tokenizer "
            "that the network was trained with: --tokenizer FOLDER_OR_NAME"
        )
    sentences = writable_sentence_format(checkpoint, pooling)
    with staged_folder(Path(out)) as staging:
        save_network(network, chosen, staging, sentences)
        if onnx or int8 or openvino:
            if min_agreement is None:  # nearly equally similar texts swap ranks harmlessly
                min_agreement = 0.8 if network.base_model is network else 0.9
            if allow_disagreement:
                min_agreement, min_cosine = 0.0, -1.0
            limits = {"tolerance": tolerance, "min_agreement": min_agreement, "min_cosine": min_cosine}
            pooled = None if sentences is None else sentences.pooling
            kinds = [name for name, is_wanted in (("openvino", openvino), ("int8", int8)) if is_wanted]
            _write_onnx_files(network, chosen, staging, texts, kinds=kinds, pooling=pooled, **limits)
    print(f"{network.num_parameters():,} parameters in {out}")


run = functools.partial(call_command, export)


def _write_onnx_files(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    texts: Sequence[str],
    *,
    kinds: Collection[str],
    pooling: Pooling | None,
    tolerance: float,
    min_agreement: float,
    min_cosine: float,
) -> None:
    """Write model.onnx, the files made from it (`kinds`: openvino, int8), and onnx.json with the comparisons."""
    if "openvino" in kinds:
        import_extra("openvino", "openvino")  # fail before the work
    lengths = [position_range(network)[1], tokenizer.model_max_length]
    known = [int(limit) for limit in lengths if limit is not None and limit < 1_000_000]  # a huge value means no limit
    torch_mb = network.get_memory_footprint(return_buffers=False) / 1e6
    results: dict[str, Any] = {"torch_mb": torch_mb}
    print(f"torch: {torch_mb:.1f} MB")

    def compare(path: Path) -> Agreement:
        agreement = compare_with_torch(network, open_exported(path), tokenizer, texts=texts, pooling=pooling)
        results[path.name] = {"mb": exported_bytes(path) / 1e6, **asdict(agreement)}
        print(f"{path.name}: {exported_bytes(path) / 1e6:.1f} MB; {agreement}")
        return agreement

    def check(path: Path, field: str) -> None:
        agreement = compare(path)
        is_equal = agreement.largest_difference <= tolerance * max(agreement.largest_logit, 1.0)  # False for NaN
        if agreement.least_cosine is not None:
            is_equal = is_equal and agreement.least_cosine >= 1 - tolerance
        if not is_equal:
            raise ValueError(
                f"{field}: {path.name} is not the network: {agreement}; tolerance is {tolerance:g} of the largest value"
            )

    plain, small, vino = folder / "model.onnx", folder / "model_int8.onnx", folder / "openvino_model.xml"
    write_onnx(network, plain, max_length=min(known, default=0), pooling=pooling)
    check(plain, "onnx")
    if "openvino" in kinds:
        write_openvino(plain, vino)
        check(vino, "openvino")
    if "int8" in kinds:
        quantise(plain, small)
        agreement = compare(small)
        is_close = agreement.top_agreement >= min_agreement
        limits = f"min_agreement is {min_agreement:g}"
        if agreement.mean_cosine is not None:
            is_close = is_close and agreement.mean_cosine >= min_cosine
            limits += f" and min_cosine {min_cosine:g}"
        if not is_close:
            raise ValueError(
                f"int8: model_int8.onnx disagrees too often with the network: {agreement}; {limits}. Lower the limit, "
                "or write the file anyway: --allow_disagreement true"
            )
    write_json(folder / "onnx.json", results)
