"""Exports of nets with other outputs, types and habits than those of classifiers in float32."""

import json
import math
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import ExportOptions, KdkitError, MetricResult, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.export import ExportSource, onnx_exporter
from kdkit.export.attempt import Attempt
from kdkit.export.gates import Reference, run_model
from kdkit.export.metadata import metadata_of
from kdkit.export.onnx_exporter import Int8OnnxExporter, OnnxExporter, cpu_session
from kdkit.export.onnx_int8 import calibration_arrays, choose_ranges
from kdkit.export.pt2 import Pt2Exporter
from kdkit.metrics import MSE, R2, BootstrapInterval, FixedThresholds, MacroF1, MeanIoU
from kdkit.utils.files import to_json

FAST = ExportOptions(timing_seconds=0, calibration=40, finish_epochs=0, points=20)


class Pairs(torch.utils.data.Dataset):
    """Samples ((numbers, mask), class): six steps of five numbers, of which some are padding."""

    classes = ("first", "second", "never")

    def __init__(self, rows):
        random = torch.Generator().manual_seed(rows)
        self.numbers = torch.randn(rows, 6, 5, generator=random)
        self.is_padding = torch.arange(6) >= torch.randint(1, 7, (rows, 1), generator=random)
        self.labels = (self.numbers[:, 0, 0] > 0).long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return (self.numbers[index], self.is_padding[index]), self.labels[index]


class Attending(nn.Module):
    """Attention with masks of -inf, a class that is masked, an input with the name of outputs, and `len(x)`."""

    def __init__(self):
        super().__init__()
        self.scores, self.values, self.head = nn.Linear(5, 1), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, outputs, is_padding):
        scores = self.scores(outputs).squeeze(2).masked_fill(is_padding, -math.inf)
        attended = torch.softmax(scores, 1).unsqueeze(1) @ self.values(outputs)  # (batch, 1, 8)
        never = torch.tensor([False, False, True])
        return self.head(attended.reshape(len(outputs), -1)).masked_fill(never, -math.inf)


def source_of(module, data, *, metrics=(), loss=None):
    """Return a net that was not trained as exporters take it."""
    torch.manual_seed(0)
    net = Net("student", module())
    schedule = [Stage({net: Truth(loss or nn.CrossEntropyLoss())}, Training(epochs=1))]
    return ExportSource(Recipe(data=data, metrics=metrics, schedule=schedule), net, FAST)


@pytest.fixture(scope="module")
def attending():
    """Return the net with masks, and what it is compared with."""
    source = source_of(Attending, TorchData(Pairs(40), Pairs(30), Pairs(50)))
    return source, Reference(source)


@pytest.mark.parametrize(
    "exporter",
    [Int8OnnxExporter, *(pytest.param(exporter, marks=pytest.mark.slow) for exporter in (OnnxExporter, Pt2Exporter))],
)
def test_masks_of_infinity_and_batches_of_any_size_pass_the_gates(attending, exporter, tmp_path):
    source, reference = attending
    weights = tmp_path / "weights.safetensors"
    weights.touch()  # for its name alone: they are in the net
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also those of torch and numpy about the numbers of a mask
        attempt = Attempt.best_of(exporter(), reference, weights)
    assert attempt.passed
    assert all(math.isfinite(difference) for difference in attempt.numeric.largest_differences.values())
    assert [entry["shape"][0] for entry in attempt.metadata["inputs"]] == ["batch", "batch"]
    assert attempt.metadata["output"]["name"] == "outputs_"
    model = attempt.exporter.open(attempt.content)
    numbers, is_padding = torch.randn(64, 6, 5), torch.arange(6).expand(64, 6) >= 4
    with torch.no_grad():
        expected = source.net.network.eval()(numbers, is_padding).numpy()
    outputs = model({"outputs": numbers.numpy(), "is_padding": is_padding.numpy()})
    assert np.isneginf(outputs[:, 2]).all()
    # A mask that is lost in the rounding would change the outputs by more.
    assert np.abs(outputs[:, :2] - expected[:, :2]).mean() < 0.03


class Tagger(nn.Module):
    """Texts of four tokens -> a class per token."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(6, 3)

    def forward(self, input_ids, attention_mask, decoder_input_ids=None):
        return self.tokens(input_ids * attention_mask).movedim(1, -1)


@pytest.mark.parametrize(("wrong", "has_decoder"), [(0, False), (1, False), (0, True)])
def test_outputs_of_padded_tokens_may_differ_and_others_may_not(wrong, has_decoder):
    def texts(rows):
        mask = torch.arange(4) >= torch.arange(rows)[:, None] % 3  # padding on the left
        labels = torch.arange(4).expand(rows, 4) % 3
        others = {"decoder_input_ids": labels[0]} if has_decoder else {}  # outputs are then at its tokens
        return [
            ({"input_ids": labels[row], "attention_mask": mask[row].long(), **others}, labels[row])
            for row in range(rows)
        ]

    source = source_of(Tagger, TorchData(texts(8), texts(8), classes=3), metrics=(MeanIoU(),))

    def model(arrays):
        outputs = source.net.network(*map(torch.from_numpy, (arrays["input_ids"], arrays["attention_mask"])))
        return (outputs.detach() + 1.0 * torch.from_numpy(arrays["attention_mask"] == wrong)[:, None]).numpy()

    assert Reference(source).numeric_gate(model, 0.1).passed == (wrong == 0 and not has_decoder)


class Written:
    """A metric of what the network writes, by a method of its own."""

    name = "written"

    def reduce_network(self, network, batch):
        return network.write(batch.inputs)

    def fit(self, validation):
        return self

    def compute(self, test):
        return MetricResult(value=float(test.reduced["written"].mean()))


class Writer(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def write(self, inputs):
        return self(inputs).argmax(1).float()


def test_a_metric_that_runs_the_network_is_left_out_of_the_gate_and_named(tmp_path):
    samples = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
    source = source_of(Writer, TorchData(samples, samples), metrics=(BootstrapInterval(Written()), MacroF1()))
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    card = Attempt.best_of(Pt2Exporter(), Reference(source), weights).card(source)
    assert [*card["metric_gate"]["scores"]] == ["macro_f1"]
    assert [*card["metadata"]["scores"]["metrics"]] == ["macro_f1"]
    expected = ["the gate leaves out written, because metrics with reduce_network run the network itself"]
    assert card["notices"] == expected
    alone = source_of(Writer, TorchData(samples, samples), metrics=(Written(),)).notices
    assert alone == (*expected, "no metric is compared; add one of the outputs to the recipe, such as Accuracy()")


class WithoutHeads(nn.Module):
    """Attention on tensors of three dimensions, which torch.onnx converts only in basic operations."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, steps):
        return self.head(nn.functional.scaled_dot_product_attention(steps, steps, steps, is_causal=True).mean(1))


@pytest.mark.slow
def test_attention_without_a_dimension_of_heads_is_converted():
    samples = TensorDataset(torch.randn(20, 6, 5), torch.arange(20) % 3)
    source = source_of(WithoutHeads, TorchData(samples, samples))
    steps = torch.randn(2, 4, 5)
    with torch.no_grad():
        expected = source.net.network.eval()(steps).numpy()
    model = OnnxExporter().open(onnx_exporter.onnx_model(source).SerializeToString())
    np.testing.assert_allclose(model({"steps": steps.numpy()}), expected, atol=1e-6)


def test_a_recurrent_net_on_samples_of_different_lengths_is_refused_with_the_advice():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, signals):
            return self.head(self.layer(signals)[0].mean(1))

    def pad(rows):
        signals, labels = zip(*rows, strict=True)
        return nn.utils.rnn.pad_sequence(signals, batch_first=True), torch.tensor(labels)

    rows = [(torch.randn(3 + row, 2), row % 3) for row in range(20)]
    source = source_of(Recurrent, TorchData(rows, rows[:12], rows[:5], classes=3, collate_fn=pad))
    exporter = Pt2Exporter()
    model = exporter.open(exporter.export(source).content)
    advice = r"the file takes signals of shape \(batch, 14, 2\) only, .* pad all samples to one size"
    with pytest.raises(KdkitError, match=rf"the export fails for signals \(3, 9, 2\): .*; {advice}"):
        run_model(source, model, [torch.randn(3, 9, 2)])
    with pytest.raises(KdkitError, match=r"the export fails for signals \(3, 14\): "):
        run_model(source, model, [torch.randn(3, 14)])
    with pytest.raises(KdkitError, match=rf"the export fails for signals \(5, 7, 2\): .*; {advice}"):
        Reference(source).metric_gate(model, 1.0)
    with pytest.raises(
        KdkitError, match=rf"calibrated on training samples, which have signals \(16, \d+, 2\); {advice}"
    ):
        calibration_arrays(source)


def test_a_net_that_takes_multiples_of_a_size_is_exported_for_all_of_them(tmp_path):
    class UNet(nn.Module):
        """Two levels, so the height and the width must be multiples of 4."""

        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(2, 3, 1)

        def forward(self, images):
            coarse = nn.functional.max_pool2d(nn.functional.max_pool2d(images, 2), 2)
            return self.head(torch.cat([images, nn.functional.interpolate(coarse, scale_factor=4)], 1))

    def scenes(size):
        return TensorDataset(torch.randn(4, 1, size, size), torch.randint(0, 3, (4, size, size)))

    source = source_of(UNet, TorchData(scenes(8), scenes(16), scenes(12)), metrics=(MeanIoU(),))
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    attempt = Attempt.best_of(Pt2Exporter(), Reference(source), weights)
    assert attempt.passed
    assert attempt.metadata["inputs"][0]["shape"] == ["batch", 1, "height", "width"]
    assert attempt.numeric.largest_differences["other sizes"] <= 1e-6


def test_a_net_whose_view_takes_a_part_of_the_inputs_is_converted():
    split = TensorDataset(torch.randn(20, 5), torch.arange(20) % 3)
    net = Net("student", nn.Linear(2, 3), view=lambda batch: ((batch.inputs[:, :2],), {}))
    recipe = Recipe(
        data=TorchData(split, split), schedule=[Stage({net: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))]
    )
    model = onnx.load_from_string(OnnxExporter().export(ExportSource(recipe, net, FAST)).content)
    assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [0, 2]


class Eigenvalues(nn.Module):
    """An operation that ONNX does not have."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(inputs + torch.linalg.eigvalsh(inputs.unsqueeze(2) * inputs.unsqueeze(1)))


@pytest.mark.slow
def test_an_operation_that_onnx_does_not_have_is_named():
    samples = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
    source = source_of(Eigenvalues, TorchData(samples, samples))
    with pytest.raises(KdkitError, match=r"'student' cannot be converted to ONNX: .*linalg_eigh.*; export it to pt2"):
        OnnxExporter().export(source)


def test_a_card_says_that_quantization_is_simulated(tmp_path):
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    def prepared():
        student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        weights = IntxFakeQuantizeConfig(torch.int4, "per_channel")
        quantize_(student, QATConfig(weight_config=weights, step="prepare"))
        return student

    source = source_of(prepared, numbers(1.0, 0.0), metrics=(R2(),), loss=nn.MSELoss())
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    (notice,) = Attempt.best_of(Pt2Exporter(), Reference(source), weights).card(source)["notices"]
    assert "net 'student' simulates quantization (FakeQuantizedLinear)" in notice


def test_a_network_with_quantized_weights_is_exported_and_its_integers_counted(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def quantized():
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        quantize_(network, Int8WeightOnlyConfig())
        return network

    source = source_of(quantized, numbers(1.0, 0.0), metrics=(R2(),), loss=nn.MSELoss())
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    card = Attempt.best_of(Pt2Exporter(), Reference(source), weights).card(source)
    assert card["passed"]
    # weights of one byte; for each of nine outputs a bias and a scale of four bytes, and a zero point of one
    assert card["network"]["weights_bytes"] == 4 * 8 + 8 + 9 * 9
    (notice,) = card["notices"]
    assert "net 'student' has quantized weights (Int8Tensor): pt2 stores them as they are" in notice
    digest = card["metadata"]["run"]["weights_sha256"]
    source.net.network[2].weight.qdata[0, 0] += 1
    assert metadata_of(Reference(source), weights)["run"]["weights_sha256"] != digest
    with pytest.raises(
        KdkitError, match=r"net 'student' is quantized already \(Int8Tensor\): export it to pt2 or onnx"
    ):
        Int8OnnxExporter().export(source)


def numbers(scale, shift):
    """Return the data of a regression in another unit."""

    def split(rows):
        inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
        return TensorDataset(inputs, inputs.sum(1) * scale + shift)

    return TorchData(split(40), split(30), split(50))


class Sum(nn.Module):
    """The sum of inputs with an error, in another unit."""

    def __init__(self, scale, shift, weight):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.linear.weight, weight)
        self.scale, self.shift = scale, shift

    def forward(self, inputs):
        return self.linear(inputs).squeeze(1) * self.scale + self.shift


@pytest.mark.parametrize("weight", [0.9, 1.0])  # 1 has no error but that of rounding
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 0.0), (1e5, 1e6)])
def test_the_unit_of_a_regression_changes_neither_gate(scale, shift, weight):
    data = numbers(scale, shift)
    source = source_of(lambda: Sum(scale, shift, weight), data, metrics=(R2(), MSE()), loss=nn.MSELoss())
    reference = Reference(source)

    def rounded(inputs):
        """Return the outputs with the error of float32 of their largest number."""
        with torch.no_grad():
            outputs = source.module(torch.from_numpy(inputs["inputs"])).numpy()
        return outputs + np.abs(outputs).max() * np.float32(1e-6)

    assert reference.numeric_gate(rounded, 1e-4).passed
    assert reference.metric_gate(rounded, 0.5).passed
    spoilt = reference.metric_gate(lambda inputs: (rounded(inputs) - shift) * 0.95 + shift, 0.5)
    assert not spoilt.passed
    assert spoilt.scores["mse"].points_lost > 5


@pytest.mark.parametrize("exporter", [Pt2Exporter(), OnnxExporter()])
def test_numbers_of_a_float64_network_are_not_rounded_in_the_gate_of_metrics(exporter):
    energies = torch.randn(20, 1, dtype=torch.float64) * 0.001 - 40000
    split = TensorDataset(energies, energies)
    source = source_of(lambda: nn.Linear(1, 1).double(), TorchData(split, split), metrics=(MSE(),), loss=nn.MSELoss())
    nn.init.ones_(source.net.module.weight)
    nn.init.zeros_(source.net.module.bias)
    gate = Reference(source).metric_gate(exporter.open(exporter.export(source).content), 0.5)
    assert [(score.network, score.export) for score in gate.scores.values()] == [(0, 0)]


def test_a_type_that_a_format_does_not_have_is_named():
    images = TensorDataset(torch.randn(20, 2, 8, dtype=torch.float64), torch.arange(20) % 3)
    data = TorchData(images, images)
    double = source_of(lambda: nn.Sequential(nn.Conv1d(2, 3, 8), nn.Flatten()).double(), data)
    assert double.precision == "fp64"
    with pytest.raises(KdkitError, match=r"int8 needs a network in float32.*'student' are fp64.*module\.float"):
        Int8OnnxExporter().export(double)
    value = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, 1, 4]) for name in ("x", "y")]
    kernel = helper.make_tensor("w", TensorProto.DOUBLE, [1, 1, 1], [1.0])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "main", value[:1], value[1:], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    with pytest.raises(KdkitError, match=r"onnxruntime cannot run the network on a CPU: .*Conv.*export it to pt2"):
        cpu_session(model.SerializeToString())
    halves = TensorDataset(torch.randn(20, 4, dtype=torch.bfloat16), torch.arange(20) % 3)
    with pytest.raises(KdkitError, match="input 'input' of net 'student' is bfloat16"):
        source_of(lambda: nn.Linear(4, 3).bfloat16(), TorchData(halves, halves))


def test_weights_that_do_not_fit_into_one_file_are_refused_before_they_are_converted(attending, monkeypatch):
    source, _ = attending
    monkeypatch.setattr(onnx_exporter, "_MOST_BYTES", 100)
    monkeypatch.setattr(source, "shared", {})
    with pytest.raises(KdkitError, match="one file in ONNX format holds at most 2 GiB; export it to pt2"):
        OnnxExporter().export(source)


@pytest.mark.parametrize("multiple", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 100])
def test_other_sizes_differ_from_those_of_the_data_and_are_not_one(size, multiple):
    source = SimpleNamespace(options=ExportOptions(), shapes={"x": ("batch", 3, "length")})
    (other,) = ExportSource.random_inputs(source, like=[torch.randn(size, 3, size)], multiple=multiple)
    assert other.shape[1] == 3
    assert {1, size}.isdisjoint((other.shape[0], other.shape[2]))
    assert other.shape[2] % multiple == 0


class Table(nn.Module):
    """Embeds two categories, of 3 and of 30 values, next to a number; they may be integers, or columns of floats."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(3, 2), nn.Embedding(30, 2)])
        self.head = nn.Linear(5, 3)

    def forward(self, codes, number):
        embedded = [embedding(codes[:, column].long()) for column, embedding in enumerate(self.embeddings)]
        return self.head(torch.cat([*embedded, number], 1))


class OneTable(Table):
    """The same, with all columns in one tensor."""

    def forward(self, columns):
        return super().forward(columns[:, :2], columns[:, 2:])


class Counted(nn.Module):
    """Takes only samples whose second input is the sum of the first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, values, count):
        if not torch.compiler.is_exporting() and not torch.allclose(values.sum(1), count):
            raise ValueError("the count is not that of the values")
        return self.head(values) * count[:, None]


@pytest.mark.parametrize(("module", "kinds"), [(Table, 3), (OneTable, 3), (Counted, 2)])
def test_random_inputs_of_a_gate_are_those_that_a_network_takes(module, kinds):
    codes = torch.stack([torch.arange(40) % 3, torch.arange(40) % 30], 1)
    number, labels = torch.randn(40, 1), torch.arange(40) % 3
    values = torch.randn(40, 4)
    inputs = {Table: [codes, number], OneTable: [torch.cat([codes, number], 1)], Counted: [values, values.sum(1)]}
    rows = [(row if len(row) > 1 else row[0], label) for *row, label in zip(*inputs[module], labels, strict=True)]
    source = source_of(module, TorchData(rows, rows, classes=3))
    exporter = Pt2Exporter()
    gate = Reference(source).numeric_gate(exporter.open(exporter.export(source).content), 1e-4)
    assert len(gate.largest_differences) == kinds
    assert ("random" in gate.largest_differences) == (module is not Counted)
    assert gate.largest_differences["real"] < 1e-4


def test_values_without_a_number_do_not_change_a_range():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "main", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    usual = np.linspace(-1, 1, 100, dtype=np.float32)
    ranges = choose_ranges(model, [{"x": usual}])
    assert choose_ranges(model, [{"x": np.append(usual, np.float32("nan"))}]) == ranges
    assert choose_ranges(model, [{"x": np.append(usual, np.float32("-inf"))}])["x"] == (-math.inf, 1.0)


def test_thresholds_of_classes_that_are_always_or_never_predicted_are_values_for_json(tmp_path):
    inputs = torch.randn(20, 4)
    samples = TensorDataset(inputs, (inputs[:, :2] > 0).float())
    data = TorchData(samples, samples)
    metric = MacroF1(thresholds_by=FixedThresholds((-math.inf, math.inf)))
    source = source_of(lambda: nn.Linear(4, 2), data, metrics=(metric,), loss=nn.BCEWithLogitsLoss())
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    thresholds = json.loads(to_json(metadata_of(Reference(source), weights)))["thresholds"]
    always, never = thresholds["logits"]
    assert always < -1e38
    assert 0 <= thresholds["probabilities"][0] < 1e-30
    assert never is thresholds["probabilities"][1] is None
