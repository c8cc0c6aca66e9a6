"""An architecture that a user registered trains, distils, exports and loads like one that ships with transformers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel, RobertaConfig
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from lit_distil.models import (
    CrossArchitecture,
    EveryOther,
    FromConfig,
    MaskedLMNetwork,
    Narrower,
    Pretrained,
    TaskNetwork,
)
from lit_distil.models.architectures import head_of
from lit_distil.models.students import describe
from lit_distil.optim import layers_of_parameters
from tests.workspace import REPOSITORY, Workspace, environment, fit, logged

from . import own_architectures
from .helpers import VOCABULARY, make_batch, padded_inputs

BATCH = make_batch()
SIZES: dict[str, dict[str, Any]] = {"plain": {"width": 32, "depth": 4}, "flat": {"num_hidden_layers": 4}}
NAMES = tuple(SIZES)


def make_own(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FromConfig(name, config=SIZES[name]).build(VOCABULARY)


def use_own_attention(model: PreTrainedModel) -> None:
    """What the class does when transformers alone runs it."""
    model.set_attn_implementation("sdpa" if model.config.model_type == "flat" else "eager")


@pytest.mark.parametrize("name", NAMES)
def test_flat_batches_give_what_the_class_itself_gives_on_padded_ones(name: str) -> None:
    """`flat` runs on the flat batch, `plain` on its padded view; hidden states and chosen rows agree too."""
    model = make_own(name).eval()
    network = MaskedLMNetwork(model)
    assert network.is_unpadded == (name == "flat") and network.num_layers == 4 and network.max_length in (64, None)
    with torch.no_grad():
        found = network(BATCH, rows="all", output_hidden_states=True)
        deferred = network(BATCH, rows=BATCH.masked_positions, project=False)
        use_own_attention(model)
        inputs, real = padded_inputs(BATCH, 0)
        expected = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits[real], rtol=1e-4, atol=1e-5)
    assert found.hidden_states is not None and len(found.hidden_states) == 5
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs[real], rtol=1e-4, atol=1e-5)
    logits = deferred.logits if deferred.projection is None else deferred.projection.logits()
    torch.testing.assert_close(logits, found.logits[BATCH.masked_positions], rtol=1e-4, atol=1e-5)
    assert (deferred.projection is None) == (name == "plain")  # its logits come from no linear layer


def test_a_class_for_a_task_is_known_by_what_it_is_registered_for() -> None:
    model = FromConfig("plain", config=SIZES["plain"]).build(VOCABULARY, head="sequence_classification", num_labels=3)
    assert isinstance(model, own_architectures.PlainSorter) and head_of(model) == "sequence_classification"
    assert head_of(make_own("plain")) == "masked_lm"
    logits = TaskNetwork(model)(BATCH).logits
    assert logits is not None and logits.shape == (BATCH.num_sequences, 3)
    with pytest.raises(
        ValueError, match=r"AutoModelForTokenClassification\.register\(PlainConfig, YourModel\) adds one"
    ):
        FromConfig("plain").build(VOCABULARY, head="token_classification")


@pytest.mark.parametrize("name", NAMES)
def test_pretraining_distilling_exporting_and_loading_elsewhere(
    name: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Two steps each, with EveryOther; the exports load in a new process that imports the module."""
    network = {"class_path": "lit_distil.models.FromConfig", "init_args": {"model_type": name, "config": SIZES[name]}}
    trained = fit(workspace.pretraining(network=network), tmp_path / "teacher", max_steps=2)
    assert len(logged(trained, "train/loss")) == 2
    teacher = Pretrained(str(trained / "export")).build(None)
    assert type(teacher).__module__ == own_architectures.__name__

    config = workspace.distillation(teacher=str(trained / "export"))
    distilled = fit(config, tmp_path / "student", max_steps=2)
    assert len(logged(distilled, "train/loss/soft")) == 2 and logged(distilled, "train/loss/cosine")[0] > 0
    student = Pretrained(str(distilled / "export")).build(None)
    assert type(student) is type(teacher) and student.config.num_hidden_layers == 2

    script = """
import json, sys
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
import tests.models.own_architectures
folder = sys.argv[1]
model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("the teacher", return_tensors="pt")
print(json.dumps(model(inputs.input_ids, inputs.attention_mask).logits[0, :, :5].tolist()))
"""
    command = [sys.executable, "-c", script, str(distilled / "export")]
    done = subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(distilled / "export")("the teacher", return_tensors="pt")
    use_own_attention(student.eval())
    with torch.no_grad():
        expected = student(inputs.input_ids, inputs.attention_mask).logits[0, :, :5]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_students_take_the_layers_and_say_so(name: str) -> None:
    teacher = make_own(name)
    student, records = EveryOther().build(teacher)
    assert student.config.num_hidden_layers == 2
    for record in records:
        assert record.origin == "copied" and record.source is not None
        assert torch.equal(student.state_dict()[record.name], teacher.state_dict()[record.source])
    rows = [" ".join(line.split()[:4]) for line in describe(records).splitlines()[1:]]
    assert [row for row in rows if row.startswith("layer")] == ["layer 0 layer 0", "layer 1 layer 2"]
    assert rows[0].startswith("embeddings embeddings 2") and rows[-1].startswith("head head")
    with pytest.raises(ValueError, match=rf"model_type='{name}': which axes .* known are bert"):
        Narrower(16).build(teacher)
    with pytest.raises(ValueError, match=rf"teacher: nothing can be copied between '{name}'"):
        CrossArchitecture(FromConfig("roberta")).build(teacher)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_told_apart_for_slower_learning_and_freezing(name: str) -> None:
    layers = layers_of_parameters(make_own(name), 4)
    for key, layer in layers.items():
        if found := re.search(r"\.(\d+)\.", key):
            assert layer == int(found[1]) + 1
        else:
            assert layer == (0 if "token" in key or "position" in key else 5)
    assert set(layers.values()) == set(range(6))


def test_an_architecture_derived_from_a_known_one_is_narrowed_and_crossed_like_it() -> None:
    class MyRobertaConfig(RobertaConfig):
        model_type = "my_roberta"

    class MyRobertaForMaskedLM(AutoModelForMaskedLM._model_mapping[RobertaConfig]):  # type: ignore[name-defined]
        config_class = MyRobertaConfig

    AutoConfig.register("my_roberta", MyRobertaConfig, exist_ok=True)
    AutoModelForMaskedLM.register(MyRobertaConfig, MyRobertaForMaskedLM, exist_ok=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    teacher = FromConfig("my_roberta", config={**sizes, "max_position_embeddings": 66}).build(VOCABULARY)
    narrow, records = Narrower(8).build(teacher)
    assert isinstance(narrow, MyRobertaForMaskedLM) and {record.origin for record in records} == {"sliced", "copied"}
    crossed, _ = CrossArchitecture(FromConfig("distilbert")).build(teacher)
    with torch.no_grad():
        expected, found = (MaskedLMNetwork(one.eval())(BATCH, rows="all").logits for one in (teacher, crossed))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_name_says_how_to_register_one() -> None:
    with pytest.raises(
        ValueError, match=r"AutoConfig\.register\('my_bert', YourConfig\), in a module that is imported"
    ):
        FromConfig("my_bert")


class Broken(PreTrainedModel):
    """A masked-LM that is right but for what a test takes away."""

    config_class = own_architectures.FlatConfig
    base_model_prefix = "encoder"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = own_architectures.PlainModel(config)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return MaskedLMOutput(logits=self.encoder(input_ids, attention_mask).last_hidden_state)


def make_broken(**attributes: Any) -> PreTrainedModel:
    config = own_architectures.PlainConfig(vocab_size=60)
    return type("Broken", (Broken,), attributes)(config)


def no_states(self: Any, input_ids: Any, attention_mask: Any, output_hidden_states: bool = False) -> Any:
    return Broken.forward(self, input_ids, attention_mask)


def bare_tuple(self: Any, input_ids: Any, attention_mask: Any) -> Any:
    return (Broken.forward(self, input_ids, attention_mask).logits,)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"base_model_prefix": "body"}, "Broken has no encoder under base_model_prefix='body': set base_model_prefix"),
        ({"forward": lambda self, input_ids: None}, "takes no attention_mask, so padding could not be kept out"),
        ({"forward": bare_tuple}, "Broken must return a ModelOutput with its logits, not a tuple"),
        ({"forward": no_states}, "Broken does not hand output_hidden_states to its encoder"),
    ],
)
def test_a_class_that_cannot_work_is_refused_with_what_it_lacks(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedLMNetwork(make_broken(**attributes))(
            BATCH, rows="all", output_hidden_states=attributes.get("forward") is no_states
        )


def test_a_configuration_without_common_names_is_refused_with_the_way_out() -> None:
    class OddConfig(PretrainedConfig):
        model_type = "odd"
        num_blocks = 2

    class Odd(PreTrainedModel):
        config_class, base_model_prefix = OddConfig, "encoder"

        def __init__(self, config: OddConfig) -> None:
            super().__init__(config)
            self.encoder = nn.Linear(2, 2)

        def forward(self, input_ids: Any, attention_mask: Any) -> BaseModelOutput:
            raise AssertionError

    with pytest.raises(ValueError, match=r"OddConfig has no num_hidden_layers: add it, .* attribute_map"):
        MaskedLMNetwork(Odd(OddConfig()))


def test_an_attention_that_loses_its_arguments_is_told_what_to_hand_down() -> None:
    class Forgetful(own_architectures.FlatBlock):
        def forward(self, hidden: Any, mask: Any, **kwargs: Any) -> Any:
            return super().forward(hidden, mask)

    model = make_own("flat")
    for block in model.trunk.blocks:
        block.__class__ = Forgetful
    with pytest.raises(ValueError, match=r"If Forgetful is your own, hand \*\*kwargs down to its attention function"):
        MaskedLMNetwork(model)(BATCH, rows="all")
