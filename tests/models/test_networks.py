import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_distil.models import MaskedLMNetwork, TaskNetwork

from .helpers import ALL, FLAT, LENGTHS, PADDED, make_batch, make_model, padded_inputs

BATCH = make_batch()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def masked_loss(network: MaskedLMNetwork) -> torch.Tensor:
    return F.cross_entropy(network(BATCH, rows=BATCH.masked_positions).logits, BATCH.masked_labels)


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradients_equal_transformers_padded_run(name: str) -> None:
    reference = make_model(name)
    network = MaskedLMNetwork(copy.deepcopy(reference))
    assert network.is_unpadded == (name in FLAT)

    inputs, real = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    flat_labels = torch.full((BATCH.num_tokens,), -100)
    flat_labels[BATCH.masked_positions] = BATCH.masked_labels
    labels = torch.full(real.shape, -100).masked_scatter(real, flat_labels)
    expected = reference(**inputs, labels=labels)
    expected.loss.backward()

    loss = masked_loss(network)
    loss.backward()
    close(loss, expected.loss)
    ours, theirs = gradients(network.model), gradients(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", ALL)
def test_rows_and_hidden_states_are_those_of_the_full_run(name: str) -> None:
    reference = make_model(name)
    network = MaskedLMNetwork(copy.deepcopy(reference))
    inputs, real = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    with torch.no_grad():
        expected = reference(**inputs, output_hidden_states=True)
        everything = network(BATCH, rows="all", output_hidden_states=True)
        chosen = network(BATCH, rows=BATCH.masked_positions)
        nothing = network(BATCH)
        no_row = network(BATCH, rows=BATCH.masked_positions[:0])
    close(everything.logits, expected.logits[real])
    close(chosen.logits, everything.logits[BATCH.masked_positions])
    assert chosen.rows is BATCH.masked_positions
    assert everything.rows is None
    assert nothing.logits is None
    assert no_row.logits.shape == (0, 60)
    assert chosen.hidden_states is None
    assert len(everything.hidden_states) == reference.config.num_hidden_layers + 1
    for ours, theirs in zip(everything.hidden_states, expected.hidden_states):
        close(ours, theirs[real])
    for result in (everything, chosen, nothing):
        close(result.last_hidden_state, expected.hidden_states[-1][real])


@pytest.mark.parametrize("multiple", [8, 50, 400])
@pytest.mark.parametrize("name", [*FLAT])
def test_what_fills_a_batch_up_changes_nothing_that_counts(name: str, multiple: int) -> None:
    """The sizes inside are multiples; outputs and gradients are those without."""
    network, shapes = MaskedLMNetwork(make_model(name)), []
    network.model.base_model.register_forward_hook(lambda _, __, output: shapes.append(output[0].shape[1]))
    results = []
    for each in (1, multiple):
        batch = make_batch(segments=True)
        batch.pad_to_multiple_of = each
        request = {"output_hidden_states": True, "attention_layers": (1, 2)}
        output = network(batch, rows=batch.masked_positions, project=False, **request)
        logits = output.projection.logits()
        assert output.hidden_states is not None and output.attention is not None
        assert len(output.projection.features) % min(each, 8 if each < 300 else 12) == 0
        states = [getattr(one, part) for one in output.attention.layers.values() for part in ("query", "value")]
        gathered = [group.gather(states[0].transpose(0, 1)[None]) for group in output.attention.groups]
        found = [logits, output.last_hidden_state, *output.hidden_states, *states, *gathered]
        loss = F.cross_entropy(logits, batch.masked_labels) + output.last_hidden_state.square().mean()
        weights = [one for one in network.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        results.append(found + [one for one in gradients if one is not None])
    assert shapes == [sum(LENGTHS), -(-sum(LENGTHS) // multiple) * multiple]
    assert len(results[0]) == len(results[1])
    for filled, plain in zip(*reversed(results), strict=True):
        torch.testing.assert_close(filled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert", "deberta"])
def test_one_sequence_never_reaches_another(name: str) -> None:
    network = MaskedLMNetwork(make_model(name))
    changed = copy.deepcopy(BATCH)
    start, end = BATCH.cu_seq_lens[1:3].tolist()
    changed.input_ids[0, start:end] = (changed.input_ids[0, start:end] + 7) % 60
    with torch.no_grad():
        before, after = network(BATCH, rows="all").logits, network(changed, rows="all").logits
    others = torch.ones(BATCH.num_tokens, dtype=torch.bool)
    others[start:end] = False
    assert (before[~others] - after[~others]).abs().max() > 0.1
    torch.testing.assert_close(before[others], after[others], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "electra", "albert", "deberta"])
def test_segments_reach_the_model(name: str) -> None:
    batch = make_batch(segments=True)
    reference = make_model(name, type_vocab_size=2)
    inputs, real = padded_inputs(batch, 0)
    with torch.no_grad():
        ours = MaskedLMNetwork(copy.deepcopy(reference))(batch, rows="all").logits
        close(ours, reference(**inputs).logits[real])
        without = MaskedLMNetwork(copy.deepcopy(reference))(make_batch(), rows="all").logits
    assert (ours - without).abs().max() > 1e-3


def test_segments_are_left_out_where_the_table_has_one_row() -> None:
    network = MaskedLMNetwork(make_model("roberta"))
    with torch.no_grad():
        close(network(make_batch(segments=True), rows="all").logits, network(BATCH, rows="all").logits)


def test_next_sentence_head_reads_each_first_token() -> None:
    batch = make_batch(segments=True)
    reference = make_model("bert", AutoModelForPreTraining)
    inputs, real = padded_inputs(batch, 0)
    with torch.no_grad():
        expected = reference(**inputs)
        result = MaskedLMNetwork(copy.deepcopy(reference))(batch, rows=batch.masked_positions)
        nothing = MaskedLMNetwork(copy.deepcopy(reference))(batch)
    close(result.next_sentence_logits, expected.seq_relationship_logits)
    close(result.logits, expected.prediction_logits[real][batch.masked_positions])
    close(nothing.next_sentence_logits, expected.seq_relationship_logits)
    assert result.next_sentence_logits.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_sequence_classification_equals_transformers(name: str) -> None:
    reference = make_model(name, AutoModelForSequenceClassification, num_labels=3)
    network = TaskNetwork(copy.deepcopy(reference))
    inputs, _ = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    expected, result = reference(**inputs).logits, network(BATCH)
    close(result.logits, expected)
    assert result.logits.shape == (BATCH.num_sequences, 3)
    assert result.logits.std(dim=0).min() > 1e-3
    result.logits.square().sum().backward()
    expected.square().sum().backward()
    ours = gradients(network.model)
    for key, value in gradients(reference).items():
        torch.testing.assert_close(ours[key], value, atol=1e-4, rtol=1e-4)


def test_mean_pooling_is_over_each_sequence_alone() -> None:
    reference = make_model("modernbert", AutoModelForSequenceClassification, classifier_pooling="mean")
    inputs, _ = padded_inputs(BATCH, 0)
    with torch.no_grad():
        close(TaskNetwork(copy.deepcopy(reference))(BATCH).logits, reference(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "modernbert", "mpnet"])
def test_token_classification_equals_transformers(name: str) -> None:
    reference = make_model(name, AutoModelForTokenClassification, num_labels=4)
    inputs, real = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    with torch.no_grad():
        result = TaskNetwork(copy.deepcopy(reference))(BATCH, output_hidden_states=True)
        close(result.logits, reference(**inputs).logits[real])
    assert result.logits.shape == (BATCH.num_tokens, 4)


@pytest.mark.parametrize("name", ALL)
def test_question_answering_equals_transformers(name: str) -> None:
    reference = make_model(name, AutoModelForQuestionAnswering)
    inputs, real = padded_inputs(BATCH, reference.config.pad_token_id or 0)
    with torch.no_grad():
        result = TaskNetwork(copy.deepcopy(reference))(BATCH)
        expected = reference(**inputs)
    close(result.logits[:, 0], expected.start_logits[real])
    close(result.logits[:, 1], expected.end_logits[real])
    assert result.logits.shape == (BATCH.num_tokens, 2)
    assert result.logits.std(dim=0).min() > 1e-3


@pytest.mark.parametrize("name", [name for name in ALL if name != "deberta"])  # which has no such head
def test_every_choice_has_the_score_that_transformers_gives_it(name: str) -> None:
    poolings = {"modernbert": [{"classifier_pooling": "cls"}, {"classifier_pooling": "mean"}]}.get(name, [{}])
    for changes in poolings:
        reference = make_model(name, AutoModelForMultipleChoice, **changes)
        inputs, _ = padded_inputs(BATCH, reference.config.pad_token_id or 0)
        with torch.no_grad():
            result = TaskNetwork(copy.deepcopy(reference))(BATCH)
            padded = TaskNetwork(copy.deepcopy(reference), attention="eager")(BATCH)
            expected = reference(**{key: value[None] for key, value in inputs.items()}).logits  # [1, S], one question
        close(result.logits, expected.T)
        close(padded.logits, expected.T)
        assert result.logits.shape == (BATCH.num_sequences, 1)
        assert result.logits.std() > 1e-3


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_and_not_in_evaluation(field: str) -> None:
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, field: 0.5}
    network = MaskedLMNetwork(make_model("bert", **rates))
    with torch.no_grad():
        assert torch.equal(network(BATCH, rows="all").logits, network(BATCH, rows="all").logits)
        network.train()
        assert (network(BATCH, rows="all").logits - network(BATCH, rows="all").logits).abs().max() > 0.1


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert"])
def test_checkpointing_activations_changes_no_gradient(name: str, every: int) -> None:
    network = MaskedLMNetwork(make_model(name))
    checkpointed = copy.deepcopy(network)
    checkpointed.checkpoint_activations(every)
    blocks = [one for one in checkpointed.modules() if isinstance(one, GradientCheckpointingLayer)]
    assert [block.gradient_checkpointing for block in blocks] == [i % every == 0 for i in range(len(blocks))]
    for each in (network, checkpointed):
        each.train()
        torch.manual_seed(3)
        masked_loss(each).backward()
    ours = gradients(checkpointed)
    for key, value in gradients(network).items():
        torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=1e-5)


def test_blocks_are_not_found_in_every_architecture() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    network.model.bert.encoder.layer = nn.ModuleList()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"model\.compile: BertForMaskedLM has no block of transformers' class"):
        network.compile_blocks()
    with pytest.raises(ValueError, match=r"model\.activation_checkpointing: BertForMaskedLM has no block"):
        network.checkpoint_activations(1)


def test_copy_is_independent_and_leaves_no_hook() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    network(BATCH, rows="all")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(BATCH, rows="all").logits
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(network(BATCH, rows="all").logits, expected)
        assert not twin(BATCH, rows="all").logits.any()
    assert not any(module._forward_hooks for module in network.modules())
    assert set(network.state_dict()) == {f"model.{key}" for key in network.model.state_dict()}


def test_hook_is_gone_after_an_error() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    with pytest.raises(IndexError):
        network(BATCH, rows=torch.tensor([10_000]))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "mpnet"])
def test_export_loads_in_plain_transformers(name: str, tmp_path: Path) -> None:
    network = MaskedLMNetwork(make_model(name))
    network.save_pretrained(tmp_path)
    assert "unpadded" not in (tmp_path / "config.json").read_text()
    inputs, real = padded_inputs(BATCH, network.config.pad_token_id or 0)
    for attention in ("eager", "sdpa") if name in FLAT else ("eager",):
        plain = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation=attention)
        with torch.no_grad():
            close(network(BATCH, rows="all").logits, plain(**inputs).logits[real])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_view_gives_the_same_result(attention: str) -> None:
    model = make_model("bert")
    padded = MaskedLMNetwork(copy.deepcopy(model), attention=attention)
    assert not padded.is_unpadded
    with torch.no_grad():
        close(padded(BATCH, rows="all").logits, MaskedLMNetwork(model)(BATCH, rows="all").logits)


def test_attention_chosen_by_somebody_is_kept() -> None:
    model = make_model("bert")
    model.set_attn_implementation("eager")
    assert not MaskedLMNetwork(model).is_unpadded


@pytest.mark.parametrize("name", ["bert", "roberta", *PADDED])
def test_sequence_longer_than_the_position_table_is_refused(name: str) -> None:
    network = MaskedLMNetwork(make_model(name))
    assert network.max_length == 64
    with torch.no_grad():
        assert network(make_batch((64, 3)), rows="all").logits.isfinite().all()
    with pytest.raises(ValueError, match=r"max_length: a sequence has 65 tokens .* room for 64"):
        network(make_batch((65, 3)))


def test_row_longer_than_the_position_table_is_fine() -> None:
    network = MaskedLMNetwork(make_model("bert"))
    with torch.no_grad():
        assert network(make_batch((60,) * 5), rows="all").logits.shape == (300, 60)


def test_wrong_models_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must be a tensor of positions, 'all' or None"):
        MaskedLMNetwork(make_model("bert"))(BATCH, rows="masked")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got BertForMaskedLM"):
        TaskNetwork(make_model("bert"))
    with pytest.raises(ValueError, match="is_decoder"):
        MaskedLMNetwork(make_model("bert", is_decoder=True))
