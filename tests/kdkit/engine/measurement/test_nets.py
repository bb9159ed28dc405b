"""What a run measures of its networks at its end, for its report."""

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import kdkit
from kdkit import Batch, Data, Match, Net, Recipe, Split, Stage, TorchData, Training
from kdkit.engine.measurement.layer_similarity import compared_layers, similarities, spread_batches
from kdkit.engine.storage.measurements import MEASUREMENTS, read_measurements
from kdkit.errors import RunFolderError
from kdkit.losses import SoftTargets
from kdkit.utils.files import write
from kdkit.utils.sealed import json_parts
from tests.helpers.reports import distillation
from tests.helpers.tiny import Mlp, one_stage, plain_goal, samples, tiny_data


class NoSingle(Mlp):
    """A network that takes no batch of one sample."""

    def forward(self, inputs):
        if len(inputs) == 1:
            raise ValueError("one sample")
        return super().forward(inputs)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "run"
    return kdkit.run(distillation, baseline=True, out=folder, device="cpu")


def recipe_of(teacher):
    objective = plain_goal() + Match(teacher, SoftTargets())
    return Recipe(data=tiny_data(), schedule=[Stage({Net("student", Mlp()): objective}, Training(epochs=1))])


def test_the_cost_of_every_net_is_measured(run):
    measured = read_measurements(run.folder)
    assert measured.costs.keys() == {"teacher", "student", "student-alone"}
    for name, cost in measured.costs.items():
        state = run.nets[name].network.state_dict().values()
        assert cost.weights_bytes == sum(tensor.numel() * tensor.element_size() for tensor in state)
        assert cost.multiply_adds > 0
        assert 0 < cost.latency.p50 <= cost.latency.p95 < 1
        assert (cost.latency.device, cost.latency.threads, cost.latency.precision) == ("cpu", 1, "fp32")
        assert cost.note == ""


def test_layers_of_students_and_their_baselines_are_compared_with_those_of_teachers(run):
    measured = read_measurements(run.folder)
    assert [(pair.student, pair.teacher) for pair in measured.similarities] == [
        ("student", "teacher"),
        ("student-alone", "teacher"),
    ]
    assert measured.samples == 6  # of the test split
    pair = measured.similarities[0]
    assert pair.student_layers == pair.teacher_layers == ("hidden",)
    assert 0.2 < pair.values[0][0] < 1.2


def test_measuring_changes_no_result_and_can_be_left_out(run, tmp_path):
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    without = kdkit.run(distillation, baseline=True, out=tmp_path / "run", measure=False, device="cpu")
    assert not (tmp_path / "run" / MEASUREMENTS).exists()
    assert read_measurements(tmp_path / "run") is None
    assert without.metrics == run.metrics
    for name, net in run.nets.items():
        expected = without.nets[name].network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in net.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_measured_is_left_out_with_the_reason(tmp_path):
    service = Net("service", lambda inputs: torch.zeros(len(inputs), 3), version="1")
    kdkit.run(lambda: recipe_of(service), out=tmp_path / "service")
    measured = read_measurements(tmp_path / "service")
    assert measured.costs["service"].note == "it is not an nn.Module"
    assert measured.similarities == ()
    assert measured.note == ""

    kdkit.run(lambda: recipe_of(Net("teacher", NoSingle(), trained=True)), out=tmp_path / "single")
    measured = read_measurements(tmp_path / "single")
    cost = measured.costs["teacher"]
    assert (cost.latency, cost.note) == (None, "a pass for one sample fails: ValueError: one sample")
    assert cost.multiply_adds == measured.costs["student"].multiply_adds
    assert measured.similarities


def test_a_stream_that_can_be_read_once_only_is_evaluated_and_not_measured(tmp_path):
    class Once(IterableDataset):
        rows = iter([*samples()])

        def __iter__(self):
            return self.rows

    data = TorchData(samples(), samples(), DataLoader(Once(), batch_size=2), classes=3)
    recipe = one_stage(Net("student", Mlp()), plain_goal(), data)
    kdkit.run(recipe, out=tmp_path / "run")
    note = "the samples could not be read: DataError: there is no batch if the data is read again"
    assert read_measurements(tmp_path / "run").note == note


def test_inputs_with_a_tensor_for_all_samples_are_evaluated_and_not_measured(tmp_path):
    class Scaled(Split):
        ids = torch.arange(6)

        def batch(self, rows, draw):
            return Batch((rows[:, None].expand(-1, 4) / 6, torch.tensor(2.0)), rows % 3, self.ids[rows], draw)

    class Divided(Mlp):
        def forward(self, inputs, scale):
            return super().forward(inputs / scale)

    data = Data()
    data.classes, data.task, data.draws, data.fingerprint = ("a", "b", "c"), "multiclass", 1, "rows"
    data.train, data.validation, data.test = Scaled(), Scaled(), None
    kdkit.run(one_stage(Net("student", Divided()), plain_goal(), data), out=tmp_path / "run")
    assert read_measurements(tmp_path / "run").note.startswith("the samples could not be read: DataError")


def test_layers_of_slow_networks_are_not_compared(tmp_path, monkeypatch):
    for name in ("_SIMILARITY_SECONDS", "_SHARE"):
        monkeypatch.setattr(f"kdkit.engine.measurement.nets.{name}", 0)
    kdkit.run(distillation, out=tmp_path / "run")
    measured = read_measurements(tmp_path / "run")
    assert measured.similarities == ()
    assert measured.note == "layers were not compared: a batch of 6 samples would take 0 s"


def test_a_deep_network_is_compared_from_its_first_layer_to_its_last():
    net = Net("deep", nn.Sequential(*(nn.Linear(4, 4) for _ in range(60))))
    for layer in net.module:
        nn.init.orthogonal_(layer.weight)  # otherwise the last layers are constant
    data = spread_batches(tiny_data(rows=24).train, 8)
    layers = compared_layers([net], data, most=24)[net]
    assert len(layers) == 24
    assert (layers[0].path, layers[-1].path) == ("0", "58")  # the last one returns the outputs
    values = similarities(layers, layers)
    assert [row[index] for index, row in enumerate(values)] == pytest.approx([1] * 24)


def test_a_layer_that_is_constant_has_no_similarity():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.still = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)
            nn.init.zeros_(self.still.weight)

        def forward(self, inputs):
            return self.head(self.still(inputs))

    net = Net("constant", Constant())
    layers = compared_layers([net], spread_batches(tiny_data(rows=24).train, 8), most=24)[net]
    assert [math.isnan(value) for row in similarities(layers, layers) for value in row] == [True]


def test_layers_that_a_network_skips_for_some_batches_are_not_compared():
    class Skipping(nn.Sequential):
        def forward(self, inputs):
            layers = self if inputs.sum() < 0 else (self[0], self[2], self[4])
            for layer in layers:
                inputs = layer(inputs)
            return inputs

    net = Net("skipping", Skipping(*(nn.Linear(4, 4) for _ in range(4)), nn.Linear(4, 3)))
    data = [Batch(sign * torch.rand(8, 4), torch.zeros(8)) for sign in (-1, 1)]
    layers = compared_layers([net], data, most=24)[net]
    assert {layer.path: len(layer.kernels) for layer in layers} == {"0": 2, "2": 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("costs"),
        lambda content: content["costs"]["student"].update(multiply_adds="many"),
        lambda content: content["costs"]["student"]["latency"].update(p50=None),
        lambda content: content["similarities"][0]["values"].append([1.0]),
        lambda content: content["similarities"][0].update(student_layers=[1]),
        lambda content: content.update(similarities={"a": 1}),
    ],
)
def test_measurements_that_no_run_writes_are_refused(change, run, tmp_path):
    content = json.loads((run.folder / MEASUREMENTS).read_text())
    del content["checksum"]
    change(content)
    write(tmp_path / MEASUREMENTS, *json_parts(content))
    with pytest.raises(RunFolderError, match=r"measurements\.json cannot be read: .*; delete it"):
        read_measurements(tmp_path)
