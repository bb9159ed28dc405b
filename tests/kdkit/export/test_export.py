"""Exports of a trained net: the files run without kdkit, have their metadata, and are judged by their gates."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import BCEWithLogitsLoss

import kdkit
from kdkit import ExportOptions, KdkitError, RecipeError, Truth, export_net
from kdkit.cli.export import failures
from kdkit.errors import PluginError
from kdkit.export import Exported, Exporter, ExportSource
from kdkit.export.card import card_markdown, read_cards
from kdkit.export.export import open_net
from kdkit.export.gates import MetricGate, Reference
from kdkit.export.onnx_exporter import OnnxExporter
from kdkit.export.output_files import OutputFile, output_files
from kdkit.plugins.manager import installed
from kdkit.report.card import card_of
from kdkit.report.page import Report, render
from kdkit.report.runs import ReportedRun
from tests.helpers.exports import CLASSES, Waves, read_litert_metadata, recipe

FAST = ExportOptions(timing_seconds=0, points=5, calibration=64)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return the folder of a run of the net."""
    folder = tmp_path_factory.mktemp("run") / "waves"
    kdkit.run(recipe, out=folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def exports(run_folder):
    """Return the results of an export to ONNX, in float32 and in int8, by format."""
    results = export_net(recipe(), run_folder, to=("onnx", "onnx-int8", "pt2"), options=FAST)
    return {result.format: result for result in results}


@pytest.fixture(scope="module")
def exported(exports):
    """Return the result of the export in float32."""
    return exports["onnx"]


@pytest.fixture(scope="module")
def student(run_folder):
    """Return the trained network in eval mode."""
    return kdkit.Net("student", Waves(), weights=run_folder).network.eval()


def test_onnxruntime_alone_computes_the_outputs_of_the_net_for_any_batch_and_length(exported, student):
    assert exported.path.name == "student.onnx"
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["signal", "person"]
    assert [value.shape for value in session.get_inputs()] == [["batch", 2, "length"], ["batch", 2]]
    for batch, length in ((1, 64), (4, 64), (2, 33), (1, 500)):
        signal, person = torch.randn(batch, 2, length), torch.rand(batch, 2)
        (outputs,) = session.run(None, {"signal": signal.numpy(), "person": person.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(outputs, student(signal, person).numpy(), atol=1e-4)


def test_a_net_with_a_device_of_its_own_is_opened_on_the_cpu(run_folder):
    made = recipe()
    (net,) = made.stages[-1].objectives
    net.device = torch.device("meta")
    model, _ = open_net(made, run_folder)
    assert model({"signal": np.zeros((1, 2, 64), np.float32), "person": np.zeros((1, 2), np.float32)}).shape == (1, 3)


def test_the_file_is_alone_and_has_all_that_a_program_needs_to_use_it(exported, run_folder):
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["kdkit"])
    assert metadata["classes"] == CLASSES
    assert metadata["task"] == "multilabel"
    assert metadata["output"] == {"name": "outputs", "activation": "sigmoid"}
    assert metadata["inputs"][0] == {"name": "signal", "shape": ["batch", 2, "length"], "dtype": "float32"}
    assert len(metadata["thresholds"]["logits"]) == len(metadata["thresholds"]["probabilities"]) == 3
    assert metadata["thresholds"]["metric"] == "macro_f1"
    assert metadata["run"]["folder"] == run_folder.name
    assert metadata["versions"]["torch"] == torch.__version__
    assert str(run_folder.parent) not in json.dumps(metadata)  # no path of a user
    names = sorted(file.name for file in exported.path.parent.iterdir())
    assert names == [
        "student-int8.onnx",
        "student-int8.onnx.json",
        "student.md",
        "student.onnx",
        "student.onnx.json",
        "student.pt2",
        "student.pt2.json",
    ]


def test_signals_are_convolved_as_images_and_nothing_of_the_tracer_is_left(exported):
    import onnx

    graph = onnx.load(exported.path).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    assert {len(onnx.helper.get_node_attr_value(node, "pads")) for node in convolutions} == {4}
    assert not [node for node in graph.node if node.metadata_props or node.op_type in ("Pad", "Constant")]


def test_the_card_has_sizes_times_gates_and_scores(exported):
    card = json.loads(exported.path.with_name("student.onnx.json").read_text())
    assert card["passed"] is card["numeric_gate"]["passed"] is card["metric_gate"]["passed"] is True
    assert max(card["numeric_gate"]["largest_differences"].values()) < 1e-4
    assert card["numeric_gate"]["largest_differences"].keys() == {"real", "random", "other sizes"}
    assert card["bytes"] == exported.path.stat().st_size > card["bytes_without_metadata"] > 0
    assert card["network"]["parameters"] == sum(parameter.numel() for parameter in Waves().parameters())
    # 64 samples by 6 channels of float32 twice: the first convolution and its batch norm
    assert 64 * 6 * 4 <= card["peak_activation_bytes"] <= 4 * 64 * 6 * 4
    assert card["network"]["multiply_adds"] > 64 * 6 * 2 * 4
    assert card["latency"]["p50_ms"]["export"] > 0
    assert card["metric_gate"]["scores"].keys() == {"macro_auroc", "macro_f1"}
    text = exported.path.with_name("student.md").read_text()
    assert "student.onnx" in text
    assert "student-int8.onnx" in text
    assert "macro\\_auroc" in text
    assert "The preparation of inputs is not described" in text  # as of data that has no property `preparation`


def test_int8_weights_are_symmetric_by_channel_within_seven_bits_and_no_convolution_is_left_in_float(exports):
    import onnx

    model = onnx.load(exports["onnx-int8"].path)
    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = [node.op_type for node in graph.node]
    assert not {"Conv", "Gemm", "MatMul", "BatchNormalization"} & {*kinds}
    assert kinds[-1] == "QGemm"  # which returns floats, not one of 256 steps
    convolutions = [node for node in graph.node if node.op_type == "QLinearConv"]
    for node in convolutions:
        weight, scale, zero = (constants[name] for name in node.input[3:6])
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
        assert scale.shape == (len(weight),)
        assert not zero.any()
    assert len(convolutions) == 4  # three, and the batch norm that no convolution precedes
    (metadata,) = [entry.value for entry in model.metadata_props if entry.key == "kdkit"]
    details = json.loads(metadata)["details"]
    assert details["weights"]["bits"] == 7
    assert details["calibration"] == {"split": "train", "samples": 64, "seed": 0}


def test_int8_passes_the_gate_of_metrics_and_is_calibrated_on_training_samples_alone(exports):
    card = exports["onnx-int8"].card
    assert card["passed"]
    assert card["numeric_gate"]["tolerance"] is None
    assert 1e-4 < card["numeric_gate"]["largest_differences"]["real"] < 2
    ids = card["record"]["calibration_ids"]
    assert len({*ids} & {*recipe().data.train.ids.tolist()}) == 64
    assert card["bytes_without_metadata"] < exports["onnx"].card["bytes_without_metadata"]
    assert card["peak_activation_bytes"] < exports["onnx"].card["peak_activation_bytes"] / 3


def test_torch_runs_a_program_of_any_batch_and_length_with_metadata_inside(exports, student):
    result = exports["pt2"]
    files = {"kdkit.json": ""}
    program = torch.export.load(result.path, extra_files=files)
    assert program.example_inputs is None  # samples of the data
    assert json.loads(files["kdkit.json"])["classes"] == CLASSES
    assert result.card["passed"]
    assert 64 * 6 * 4 <= result.card["peak_activation_bytes"] <= 4 * 64 * 6 * 4
    for batch, length in ((1, 64), (4, 64), (2, 33)):
        inputs = torch.randn(batch, 2, length), torch.rand(batch, 2)
        torch.testing.assert_close(program.module()(*inputs), student(*inputs))


def test_the_model_card_and_the_report_of_a_run_show_its_exports_and_survive_damaged_cards(exports, run_folder):
    card = card_of(ReportedRun.read(run_folder, "waves"))
    assert "## Exports" in card
    assert "| student-int8\\.onnx" in card or "| student-int8.onnx" in card
    html = render(Report(runs=(ReportedRun.read(run_folder, "waves"),), verdicts=()))
    assert "<td>student-int8.onnx</td>" in html
    file = exports["pt2"].path.with_name("student.pt2.json")
    content = json.loads(file.read_text())
    try:
        for change in ({"latency": {"p50_ms": "<script>"}}, {"bytes": "many"}, {"metric_gate": []}, {"network": None}):
            file.write_text(json.dumps({**content, **change}))
            assert [card["file"] for card in read_cards(file.parent)] == ["student-int8.onnx", "student.onnx"]
        file.write_text(json.dumps({**content, "precision": "<script>|`"}))
        assert len(read_cards(file.parent)) == 3
        run = ReportedRun.read(run_folder, "waves")
        assert "<script>|" not in card_of(run) + render(Report(runs=(run,), verdicts=()))
    finally:
        file.write_text(json.dumps(content))


class Positions(Waves):
    """A net that takes no short signals, as if it had learned a position for each sample."""

    def forward(self, signal, person):
        if signal.shape[2] > 50:
            return super().forward(signal, person)
        raise ValueError("too short")


@pytest.mark.slow
def test_only_the_batch_is_dynamic_if_the_net_takes_no_other_length(run_folder, tmp_path):
    made = recipe()
    (net,) = made.stages[0].objectives
    net.module.__class__ = Positions
    # int8 first, whose outputs have no limit that a net which raises would exceed
    for result in export_net(made, run_folder, to=("onnx-int8", "pt2"), out=tmp_path, options=FAST):
        assert result.passed
        assert [item["shape"] for item in result.card["metadata"]["inputs"]] == [["batch", 2, 64], ["batch", 2]]


def test_a_missing_package_of_a_format_is_named_with_its_extra(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(PluginError, match=r"pip install 'kdkit\[executorch\]'"):
        export_net(recipe(), run_folder, to="executorch", out=tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["student.md", "student.onnx", "student.rejected.onnx", "student.onnx.json"])
def test_a_folder_in_the_place_of_a_file_is_found_before_anything_is_exported(run_folder, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(OnnxExporter, "export", None)
    with pytest.raises(KdkitError, match=rf"{name} cannot be written: it is a folder; .* --out PATH"):
        export_net(recipe(), run_folder, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_edge_runtimes_compute_the_outputs_for_one_sample(name, run_folder, tmp_path):
    pytest.importorskip({"executorch": "executorch.runtime", "litert": "litert_torch"}[name])
    (result,) = export_net(recipe(), run_folder, to=name, out=tmp_path, options=FAST)
    assert result.passed
    assert result.card["metadata"]["inputs"][0] == {"name": "signal", "shape": [1, 2, 64], "dtype": "float32"}
    content = result.path.read_bytes()
    if name == "executorch":
        from executorch.runtime import Runtime

        (text,) = Runtime.get().load_program(content).load_method("kdkit").execute([])
        assert json.loads(text)["classes"] == CLASSES
    else:
        assert read_litert_metadata(content)["classes"] == CLASSES


@pytest.fixture(scope="module")
def int8(run_folder):
    """Return the source of an export, and its quantized graph."""
    from kdkit.engine.evaluate import load_net
    from kdkit.export import onnx_int8

    made = recipe()
    source = ExportSource(made, load_net(made, run_folder, None), FAST)
    model = onnx_int8.quantizable(source)
    ranges = onnx_int8.choose_ranges(model, onnx_int8.calibration_arrays(source))
    return source, onnx_int8.quantized(model, ranges)


def test_the_module_that_is_trained_computes_the_outputs_of_the_int8_graph_and_returns_its_integers(int8):
    from kdkit.export.int8_module import Int8Module
    from kdkit.export.onnx_graph import OnnxGraph

    source, model = int8
    module = Int8Module(OnnxGraph(model))
    inputs = source.example
    arrays = {name: tensor.numpy() for name, tensor in zip(source.input_names, inputs, strict=True)}
    runner = OnnxExporter()
    outputs = runner.open(model.SerializeToString())(arrays)
    difference = np.abs(module(*inputs).detach().numpy() - outputs)
    assert np.median(difference) < 1e-4
    assert difference.max() < 0.1  # a step of a value that lies in the middle between two of them
    written = module.trained_graph().to_model({"com.microsoft": 1})
    assert np.array_equal(runner.open(written.SerializeToString())(arrays), outputs)


class SizeOfWeights:
    """A metric that runs the network of a recipe."""

    name = "size"

    def reduce_network(self, network, batch):
        return network.head.weight.abs().sum().expand(len(batch))

    def fit(self, validation):
        return self

    def compute(self, test):
        return kdkit.MetricResult(value=test.reduced["size"].mean())


def test_the_float_net_teaches_an_int8_graph_whose_weights_were_spoilt(int8, monkeypatch):
    from kdkit.export import finishing
    from kdkit.export.onnx_graph import OnnxGraph

    source, model = int8
    reference, runner = Reference(source), OnnxExporter()
    graph = OnnxGraph(model)
    for step in graph.nodes:  # two bits and a sign are left of each weight
        if step.op_type == "QLinearConv":
            weight = graph.constants[step.input[3]].astype(int)
            spoilt = (np.rint(weight / 32) * 32).clip(-64, 64).astype(np.int8)
            step.input[3] = graph.constant(spoilt, step.input[3])
    spoilt = graph.to_model({"com.microsoft": 1})

    def difference(model):
        return reference.numeric_gate(runner.open(model.SerializeToString()), None).largest_differences["real"]

    source.options = replace(FAST, finish_epochs=5)
    monkeypatch.setattr(source, "recipe", replace(source.recipe, metrics=(SizeOfWeights(), *source.recipe.metrics)))
    was_training = source.net.network.training
    monkeypatch.setattr(finishing, "_LEARNING_RATE", 1e-3)  # more than rounding is to be undone
    trained = finishing.finish(source, spoilt)
    assert difference(trained) < 0.5 * difference(spoilt)
    assert [step.op_type for step in trained.graph.node] == [step.op_type for step in spoilt.graph.node]
    assert source.net.network.training == was_training


def test_a_graph_with_an_option_that_cannot_be_trained_is_not_finished(int8):
    from kdkit.export.finishing import finish
    from kdkit.export.onnx_graph import OnnxGraph, node

    source, model = int8
    graph = OnnxGraph(model)
    convolved = next(step.output[0] for step in graph.nodes if step.op_type == "QLinearConv")
    model = type(model).FromString(model.SerializeToString())
    model.graph.node.append(node("MaxPool", [convolved], "pooled", kernel_shape=[1, 2], pads=[0, 0, 0, 1]))
    with pytest.raises(KdkitError, match="a pooling with uneven padding cannot be trained"):
        finish(source, model)


def test_the_pooling_of_timm_models_can_be_trained():
    from onnx import TensorProto, helper, numpy_helper

    from kdkit.export.int8_module import Int8Module
    from kdkit.export.onnx_graph import OnnxGraph, node

    nodes = [node("ReduceMean", ["x", "axes"], "mean", keepdims=1), node("Reshape", ["mean", "shape"], "y")]
    constants = [
        numpy_helper.from_array(np.array(values), name) for name, values in (("axes", [-1, -2]), ("shape", [-1, 3]))
    ]
    shapes = {"x": ["batch", 3, 4, 4], "y": ["batch", 3]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    model = helper.make_model(helper.make_graph(nodes, "pooling", ends[:1], ends[1:], constants))
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Int8Module(OnnxGraph(model))(images), images.mean((2, 3)))


def test_a_trained_graph_flattens_and_unsqueezes_as_onnxruntime_does():
    from onnx import TensorProto, helper, numpy_helper

    from kdkit.export.int8_module import Int8Module
    from kdkit.export.onnx_exporter import cpu_session
    from kdkit.export.onnx_graph import OnnxGraph, node

    nodes = [node("Unsqueeze", ["x", "axes"], "wide"), node("Flatten", ["wide"], "y", axis=3)]
    constants = [numpy_helper.from_array(np.array([-3, -1]), "axes")]  # (2, 3, 4) -> (2, 3, 1, 4, 1) -> (6, 4)
    shapes = {"x": [2, 3, 4], "y": [6, 4]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "shapes", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values = torch.randn(2, 3, 4)
    (expected,) = cpu_session(model.SerializeToString()).run(None, {"x": values.numpy()})
    np.testing.assert_array_equal(Int8Module(OnnxGraph(model))(values).numpy(), expected)


def test_a_loss_of_nan_ends_the_finishing_and_not_the_export(run_folder, tmp_path, monkeypatch):
    from kdkit.export import finishing

    class LaterNaN(torch.nn.MSELoss):
        def forward(self, student, teacher):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(student, teacher) * (math.nan if self.calls > 6 else 1)  # the check passes

    monkeypatch.setattr(finishing.nn, "MSELoss", LaterNaN)
    monkeypatch.setattr(MetricGate, "passed", False)
    (result,) = export_net(recipe(), run_folder, to="onnx-int8", out=tmp_path, options=FAST)
    (notice,) = result.card["notices"]
    assert "int8 was not finished: stage 'finishing':" in notice
    assert "is not a finite number" in notice
    assert notice.endswith("; only its layers with weights are tried in int8 instead")
    assert result.card["metadata"]["details"]["finishing"] is None
    assert "int8 was not finished" in (tmp_path / "student.md").read_text()


class Shifted(Exporter):
    """Writes the metadata alone, and "runs" the network with its outputs changed by a constant or made constant."""

    suffix = ".shifted"
    shift, scale = 1e-3, 1.0

    def require(self):
        pass

    def export(self, source):
        self.network = source.module
        return Exported(content=b"content", details={"mine": True})

    def with_metadata(self, content, metadata):
        return content + json.dumps(metadata).encode()

    def open(self, content):
        def model(inputs):
            with torch.no_grad():
                outputs = self.network(*(torch.from_numpy(array) for array in inputs.values()))
            return self.scale * outputs.numpy() + np.float32(self.shift)

        return model


@pytest.fixture
def shifted(monkeypatch):
    """Register an exporter that a test may change, as a plugin does."""

    installed().add(_Plugin("shifted", Shifted), "shifted")
    return monkeypatch


class _Plugin:
    def __init__(self, name, exporter):
        self.name, self.exporter = name, exporter

    @kdkit.hookimpl
    def register_exporters(self, register):
        register(self.name, self.exporter)


def test_an_exporter_of_another_class_is_refused_and_others_are_not_affected(tmp_path):
    installed().add(_Plugin("number", int), "numbers")
    with pytest.raises(PluginError, match="'numbers' registers an exporter 'number' that is a int; expected a sub"):
        export_net(recipe(), tmp_path, to="number")
    with pytest.raises(KdkitError, match="names a file, but an export to onnx must have the suffix"):
        output_files(tmp_path / "net.pt2", "net", {"onnx": OnnxExporter()})


def test_outputs_that_differ_miss_the_numeric_gate_and_the_file_is_set_aside(run_folder, tmp_path, shifted):
    (result,) = export_net(recipe(), run_folder, to="shifted", out=tmp_path, options=FAST)
    assert not result.passed
    names = ["student.md", "student.rejected.shifted", "student.rejected.shifted.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert result.path.read_bytes().startswith(b"content{")
    assert not result.card["numeric_gate"]["passed"]
    assert result.card["metric_gate"]["passed"]  # which a small shift hardly changes
    assert result.card["metadata"]["details"] == {"mine": True}
    loose = replace(FAST, tolerance=0.01)
    (result,) = export_net(recipe(), run_folder, to="shifted", out=tmp_path, options=loose)
    assert result.passed
    # the rejected file is gone, since it would be mistaken for a fault of this one
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student.md", "student.shifted", "student.shifted.json"]


@pytest.mark.parametrize("describes", [False, True])
def test_the_file_has_no_preparation_of_the_inputs_of_a_view_that_does_not_describe_it(
    run_folder, tmp_path, shifted, describes
):
    def view(batch):
        signal, person = batch.inputs
        return (signal.flip(1), person), {}

    if describes:
        view.describe = lambda preparation: {"steps": [*preparation["steps"], "swap"]}
    described = recipe()
    described.data.preparation = {"steps": ["scale"]}
    (stage,) = described.stages
    net = kdkit.Net("student", Waves(), view=view)
    described = replace(described, schedule=[replace(stage, objectives={net: Truth(BCEWithLogitsLoss())})])
    (result,) = export_net(described, run_folder, to="shifted", out=tmp_path, options=FAST)
    metadata = result.card["metadata"]
    assert metadata["preparation"] == ({"steps": ["scale", "swap"]} if describes else {})
    assert any("the view view does not describe how it" in notice for notice in metadata["notices"]) is not describes


def test_an_older_file_in_the_place_of_a_rejected_one_is_renamed_and_named(exported, tmp_path):
    file = OutputFile(tmp_path / "net.onnx")
    passed, rejected = exported.card, {**exported.card, "passed": False}
    notice = "net.older.onnx is from an earlier export, and was named net.onnx"
    assert file.write(b"first", rejected).card["notices"] == []
    file.write(b"older", passed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    for _ in range(2):  # the second one leaves it as it is
        result = file.write(b"later", rejected)
        assert (result.path.name, result.passed, result.card["notices"]) == ("net.rejected.onnx", False, [notice])
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".onnx") == [
            "net.older.onnx",
            "net.rejected.onnx",
        ]
        assert (tmp_path / "net.older.onnx").read_bytes() == b"older"
        cards = read_cards(tmp_path)
        assert [(card["file"], card["passed"]) for card in cards] == [
            ("net.older.onnx", True),
            ("net.rejected.onnx", False),
        ]
        assert f"net.rejected.onnx: {notice}" in card_markdown(cards)
    file.path.write_bytes(b"mine")  # without a card, which that of an older file would seem to be
    file.write(b"later", rejected)
    assert (tmp_path / "net.older.onnx").read_bytes() == b"mine"
    assert not (tmp_path / "net.older.onnx.json").exists()
    file.write(b"last", passed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    assert [card["file"] for card in read_cards(tmp_path)] == ["net.onnx"]
    file.path.write_bytes(b"newer")  # as by an export that was killed before it wrote its card
    assert read_cards(tmp_path) == []


def test_the_export_of_a_net_does_not_replace_that_of_a_net_whose_file_has_the_same_name(exported, tmp_path):
    card = {**exported.card, "network": {**exported.card["network"], "name": "my net"}}
    OutputFile(tmp_path / "my-net.onnx").write(b"first", card)
    exporters = {"onnx": OnnxExporter()}
    assert output_files(tmp_path, "my net", exporters)[1]["onnx"].path == tmp_path / "my-net.onnx"
    with pytest.raises(KdkitError, match=r"my-net\.onnx is an export of net 'my net'.*--out PATH"):
        output_files(tmp_path, "my-net", exporters)
    assert output_files(tmp_path / "my-net.onnx", "my-net", exporters)[1]["onnx"].path == tmp_path / "my-net.onnx"


class Formless(Shifted):
    """An exporter that has no form of any network."""

    suffix = ".formless"

    def export(self, source):
        raise KdkitError("there is no such form")


def test_no_file_is_written_if_the_last_of_several_formats_fails(run_folder, tmp_path, shifted):
    installed().add(_Plugin("formless", Formless), "formless")
    with pytest.raises(KdkitError, match="there is no such form"):
        export_net(recipe(), run_folder, to=("shifted", "formless"), out=tmp_path, options=FAST)
    assert not [*tmp_path.iterdir()]


def test_the_card_to_read_has_only_the_files_of_the_same_weights(run_folder, tmp_path, shifted):
    export_net(recipe(), run_folder, to="shifted", out=tmp_path / "first.shifted", options=FAST)
    card = tmp_path / "first.rejected.shifted.json"
    content = json.loads(card.read_text())
    content["metadata"]["run"]["weights_sha256"] = "0" * 64  # as of another run
    card.write_text(json.dumps(content))
    export_net(recipe(), run_folder, to="shifted", out=tmp_path / "second.shifted", options=FAST)
    text = (tmp_path / "student.md").read_text()
    assert "first.rejected.shifted" not in text
    assert "second.rejected.shifted" in text


def test_metrics_that_are_worse_miss_their_gate(run_folder, tmp_path, shifted):
    shifted.setattr(Shifted, "tolerance", None)
    shifted.setattr(Shifted, "scale", -1.0)
    (result,) = export_net(recipe(), run_folder, to="shifted", out=tmp_path, options=FAST)
    assert not result.passed
    assert result.card["numeric_gate"]["passed"]  # measured only
    scores = result.card["metric_gate"]["scores"]
    assert scores["macro_auroc"]["export"] == pytest.approx(1 - scores["macro_auroc"]["network"], abs=0.01)
    lines = failures(result.card)
    assert any(line.startswith("macro_auroc is") and "expected at most 5" in line for line in lines)


def test_outputs_that_are_no_numbers_miss_both_gates(run_folder, tmp_path, shifted):
    shifted.setattr(Shifted, "shift", math.nan)
    (result,) = export_net(recipe(), run_folder, to="shifted", out=tmp_path, options=FAST)
    assert not result.passed
    card = json.loads(result.path.with_name(f"{result.path.name}.json").read_text())
    assert not card["numeric_gate"]["passed"]
    assert not card["metric_gate"]["passed"]
    assert card["metric_gate"]["scores"]["macro_f1"]["export"] is None
    assert "undefined" in (tmp_path / "student.md").read_text()
    kinds = ("real inputs", "random inputs", "inputs of other sizes")
    lines = failures(result.card)
    assert lines[:3] == [f"outputs for {kind} differ by nan, expected at most 0.0001" for kind in kinds]
    assert len(lines) == 5  # and two metrics


def test_a_single_batch_of_outputs_that_are_no_numbers_misses_the_numeric_gate(int8):
    source, _ = int8
    calls = []

    def model(arrays):
        outputs = source.module(*map(torch.from_numpy, arrays.values())).detach().numpy()
        calls.append(len(outputs))
        return outputs * np.float32(math.nan) if len(calls) == 2 else outputs

    gate = Reference(source).numeric_gate(model, 1e-4)
    assert math.isnan(gate.largest_differences["real"])
    assert not gate.passed


def test_calibration_samples_are_read_once(int8):
    source, _ = int8
    assert source.calibration is source.calibration
    assert sum(map(len, source.calibration)) == 64


class Improving(Shifted):
    """An exporter whose first file is useless, the second is a little better, and the third is good."""

    tolerance = None

    def improvements(self, source):
        yield Exported(content=b"second")
        yield Exported(content=b"third")
        raise AssertionError("the third has passed")

    def open(self, content):
        self.scale = {b"content": -1.0, b"second{": 0.0}.get(content[:7], 1.0)
        return super().open(content)


def test_improvements_are_tried_until_one_passes_its_gate(run_folder, tmp_path):
    installed().add(_Plugin("improving", Improving), "improving")
    (result,) = export_net(recipe(), run_folder, to="improving", out=tmp_path, options=FAST)
    assert result.passed
    assert result.path.read_bytes().startswith(b"third")


def test_only_the_layers_with_weights_can_be_quantized(int8):
    from kdkit.export import onnx_int8

    source, _ = int8
    model = onnx_int8.quantizable(source)
    ranges = onnx_int8.choose_ranges(model, onnx_int8.calibration_arrays(source))
    layers = onnx_int8.quantized(model, ranges, only_layers=True)
    kinds = [node.op_type for node in layers.graph.node]
    assert kinds.count("QLinearConv") == 4
    assert {"Add", "Relu"} <= {*kinds}
    assert not {"QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool"} & {*kinds}


def test_the_weights_of_a_stage_that_is_not_finished_are_named_in_the_file_and_on_the_cards(
    run_folder, tmp_path, shifted
):
    shutil.copytree(run_folder, tmp_path / "waves", ignore=shutil.ignore_patterns("export"))
    (record,) = (tmp_path / "waves").glob("*/stage.json")
    record.unlink()
    (result,) = export_net(recipe(), tmp_path / "waves", to="shifted", options=FAST)
    (notice,) = result.card["metadata"]["notices"]
    assert "is not finished, so they are from its best epoch so far" in notice
    assert "is not finished" in result.path.with_name("student.md").read_text()
    record.write_bytes(next(run_folder.glob("*/stage.json")).read_bytes())  # as if it had been resumed
    assert "is not finished" in card_of(ReportedRun.read(tmp_path / "waves", "waves"))


def test_a_run_that_was_started_from_python_is_exported_there(kdkit_here, run_folder):
    refused = kdkit_here("export", run_folder)
    assert refused.code == 2
    assert "kdkit.export_net(recipe, " in refused.err


def test_faults_are_named_before_anything_is_written(run_folder, tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'onnx'"):
        export_net(recipe(), run_folder, to="onxx", out=tmp_path)
    with pytest.raises(RecipeError, match="no net 'teacher'"):
        export_net(recipe(), run_folder, net="teacher", out=tmp_path)
    with pytest.raises(RecipeError, match="points of an export must be a number"):
        ExportOptions(points=-1)
    with pytest.raises(KdkitError, match=r"an export to onnx must have the suffix \.onnx"):
        export_net(recipe(), run_folder, out=tmp_path / "student.pt2")
    with pytest.raises(KdkitError, match="an export to onnx, pt2 must be a folder for the files"):
        export_net(recipe(), run_folder, to=("onnx", "pt2"), out=tmp_path / "student.onnx")
    assert not [*tmp_path.iterdir()]


class Branching(Waves):
    """A net whose operations depend on the values of its inputs."""

    def forward(self, signal, person):
        return super().forward(signal, person) * (2 if signal.sum() > 0 else 1)


def test_a_net_that_cannot_be_traced_is_refused(run_folder, tmp_path):
    wrong = recipe()
    (net,) = wrong.stages[0].objectives
    net.module.__class__ = Branching
    with pytest.raises(KdkitError, match=r"torch\.export cannot trace net 'student'"):
        export_net(wrong, run_folder, out=tmp_path, options=FAST)
    assert not [*tmp_path.iterdir()]


def test_the_command_catches_a_sabotaged_quantization_and_obeys_the_rules_of_trust(
    kdkit_here, tmp_path, monkeypatch, shifted
):
    import tests.helpers.exports as helper
    from kdkit.export import onnx_int8

    def too_wide(model, batches):
        ranges = original(model, batches)
        # a scale that is wrong by a factor, so that the signal has one or two of the 256 steps
        wide = {name: (200 * low, 200 * high) for name, (low, high) in ranges.items() if name.startswith("signal")}
        assert wide
        return {**ranges, **wide}

    original = onnx_int8.choose_ranges
    monkeypatch.setattr(onnx_int8, "choose_ranges", too_wide)
    shutil.copy(helper.__file__, tmp_path / "mine.py")
    assert kdkit_here("run", "mine.py", "--out", "run", "--quiet").code == 0
    done = kdkit_here("export", "run", "--to", "onnx-int8", "--points", "5", "--finish-epochs", "0")
    assert done.code == 1, done.err
    assert "student-int8.rejected.onnx: MISSED A GATE" in done.out
    assert "macro_auroc is" in done.out
    assert not (tmp_path / "run" / "export" / "student-int8.onnx").exists()
    done = kdkit_here("export", "run", "--to", "shifted", "--tolerance", "1", "--out", "net.shifted")
    assert done.code == 0, done.err
    assert "net.shifted: passed its gates" in done.out
    with (tmp_path / "mine.py").open("a") as file:
        file.write("\n# changed\n")
    refused = kdkit_here("export", "run", "--to", "shifted", "--out", "other.shifted")
    assert refused.code == 2
    assert "--trust" in refused.err
    assert not (tmp_path / "other.shifted").exists()
