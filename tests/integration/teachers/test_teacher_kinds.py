"""Teachers in other forms than a plain module: compiled, quantized, exported, in ONNX, and on another device."""

import copy
import re
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import kdkit
from kdkit import Batch, Distiller, Match, Net, OnnxModel, Recipe, RecipeError, Stage, Tap
from kdkit.engine.training.capture import _runs_in_graph
from kdkit.errors import CheckError
from kdkit.losses import SRRL, Hint, SoftTargets
from tests.helpers.callbacks import Recorder
from tests.helpers.stages import data, one_stage, same, training, truth

# Each of the optional packages warns when it is imported or used; none of the warnings is about kdkit.
pytestmark = pytest.mark.filterwarnings("ignore")


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def plain(folder):
    return network()


def compiled(folder):
    return torch.compile(network(), backend="aot_eager")


def dynamically_quantized(folder):
    return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


def weights_in_int8(folder):
    from torchao import quantization

    module = network()
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
    return module


def all_in_int8(folder):
    from torchao import quantization

    module = network()
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    return module


def program() -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(network().eval(), (torch.randn(4, 6),), dynamic_shapes={"input": {0: batch}})


def exported(folder):
    folder.mkdir(exist_ok=True)
    torch.export.save(program(), folder / "teacher.pt2")
    return torch.export.load(folder / "teacher.pt2").module()


def unflattened(folder):
    return torch.export.unflatten(program())


def export_onnx(module: nn.Module, path: Path, **options) -> None:
    batch = torch.export.Dim("batch", min=1, max=1024)
    shapes = {"input": {0: batch}}
    example = (torch.randn(4, 6),)
    torch.onnx.export(module.eval(), example, path, dynamo=True, verbose=False, dynamic_shapes=shapes, **options)


@cache
def onnx_files() -> dict[str, bytes]:
    """Return the files of the network by name; an export takes a second."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(network(), Path(folder, "teacher.onnx"))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def onnx_file(folder) -> Path:
    """Write the network and return the path."""
    folder.mkdir(exist_ok=True)
    for name, content in onnx_files().items():
        (folder / name).write_bytes(content)
    return folder / "teacher.onnx"


def in_onnx(folder):
    return OnnxModel(onnx_file(folder))


def half_precision(folder):
    class Half(nn.Module):
        """A network whose weights and features are bfloat16."""

        def __init__(self):
            super().__init__()
            self.body = network().to(torch.bfloat16)

        def forward(self, inputs):
            return self.body(inputs.to(torch.bfloat16)).float()

    return Half()


KINDS = [
    *(plain, compiled, dynamically_quantized, weights_in_int8, all_in_int8, exported, unflattened, in_onnx),
    half_precision,
]
CACHED = [kind for kind in KINDS if kind is not dynamically_quantized]


def recipe(teacher: Net, **changes) -> Recipe:
    torch.manual_seed(2)
    student = Net("student", nn.Linear(6, 3))
    stage = Stage({student: Match(teacher, SoftTargets())}, training(**changes))
    return Recipe(data=data(), schedule=[stage])


def entries(folder):
    return sorted(path.name for path in (folder / "teacher_cache").iterdir() if path.is_dir())


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_from_a_teacher_of_any_kind(kind, tmp_path):
    teacher = Net("teacher", kind(tmp_path), trained=True)
    result = kdkit.run(recipe(teacher), device="cpu", teacher_cache="off")
    losses = [epoch["terms"]["teacher/soft_targets"] for epoch in result.history["student"]]
    assert losses[1] < losses[0]
    expected = kdkit.run(recipe(Net("teacher", network(), trained=True)), device="cpu", teacher_cache="off")
    tolerance = 0.05 if kind not in (plain, compiled, exported, unflattened, in_onnx) else 1e-5
    assert losses == pytest.approx(
        [epoch["terms"]["teacher/soft_targets"] for epoch in expected.history["student"]], rel=tolerance
    )
    assert result.metrics["teacher"].keys() == expected.metrics["teacher"].keys()


@pytest.mark.parametrize("kind", CACHED)
def test_a_teacher_of_any_kind_has_the_same_cache_in_each_run(kind, tmp_path):
    for run in ("one", "two"):
        recorder = Recorder()
        teacher = Net("teacher", kind(tmp_path / run), trained=True)
        kdkit.run(recipe(teacher), device="cpu", out=tmp_path / "runs" / run, callbacks=[recorder])
        assert not [line for line in recorder.notices if "not cached" in line]
    assert len(entries(tmp_path / "runs")) == 1


def test_a_teacher_whose_scale_depends_on_the_batch_is_not_cached(tmp_path):
    recorder = Recorder()
    teacher = Net("teacher", dynamically_quantized(tmp_path), trained=True)
    kdkit.run(recipe(teacher), device="cpu", out=tmp_path / "run", callbacks=[recorder])
    assert any("depends on the other samples in the batch" in line for line in recorder.notices)


@pytest.mark.parametrize("kind", [weights_in_int8, exported])
def test_other_weights_have_another_cache(kind, tmp_path, monkeypatch):
    kdkit.run(recipe(Net("teacher", kind(tmp_path), trained=True)), device="cpu", out=tmp_path / "runs" / "one")
    original = network
    # A tenth of the weights: in eight bits, these round to other numbers with another scale.
    monkeypatch.setitem(globals(), "network", lambda width=16: original(width).requires_grad_(False).apply(shrink))
    kdkit.run(recipe(Net("teacher", kind(tmp_path), trained=True)), device="cpu", out=tmp_path / "runs" / "two")
    assert len(entries(tmp_path / "runs")) == 2


def shrink(module):
    if isinstance(module, nn.Linear):
        module.weight.mul_(0.1)


def test_attributes_of_torch_compile_do_not_change_the_key(tmp_path):
    module = network()
    kdkit.run(recipe(Net("teacher", module, trained=True)), device="cpu", out=tmp_path / "runs" / "one")
    module[0].weight._dynamo_static_input_type = "unguarded"
    kdkit.run(recipe(Net("teacher", module, trained=True)), device="cpu", out=tmp_path / "runs" / "two")
    assert len(entries(tmp_path / "runs")) == 1


@pytest.mark.parametrize("kind", [plain, compiled, dynamically_quantized, weights_in_int8, unflattened])
def test_a_layer_of_a_teacher_is_tapped(kind, tmp_path):
    module = kind(tmp_path)
    teacher, student = Net("teacher", module, trained=True), Net("student", network(4))
    layer = getattr(module, "_orig_mod", module).get_submodule("0")
    hint = Match(teacher, Hint(), student=Tap(student.module[0]), target=Tap(layer))
    result = kdkit.run(one_stage(student, truth() + hint), device="cpu")
    losses = [epoch["terms"]["teacher/hint"] for epoch in result.history["student"]]
    assert losses[1] < losses[0]


# Each stage compiles again: the suite has time for two.
@pytest.mark.parametrize(
    ("of_student", "count"),
    [(True, 2), pytest.param(True, 4, marks=pytest.mark.slow), pytest.param(False, 4, marks=pytest.mark.slow)],
)
def test_a_compiled_network_that_ran_without_a_tap_is_tapped_in_a_later_stage(of_student, count):
    teacher, student = Net("teacher", compiled(None), trained=True), Net("student", network(4))
    if of_student:
        student = Net("student", torch.compile(network(4), backend="aot_eager"))
    layers = [getattr(net.module, "_orig_mod", net.module)[0] for net in (student, teacher)]
    terms = {
        "outputs": Match(teacher, SoftTargets()),
        "features": Match(teacher, Hint(), student=Tap(layers[0]), target=Tap(layers[1])),
        "outputs again": Match(teacher, SoftTargets()),
        "features again": Match(teacher, Hint(), student=Tap(layers[0]), target=Tap(layers[1])),
    }
    stages = [Stage({student: truth() + term}, training(epochs=1), name=name) for name, term in terms.items()]
    result = kdkit.run(Recipe(data=data(), schedule=stages[:count]), device="cpu")
    for stage in stages[1:count:2]:
        assert result.history[stage.name][0]["terms"]["teacher/hint"] > 0


def test_a_tap_on_an_exported_program_is_refused(tmp_path):
    module = exported(tmp_path)
    teacher, student = Net("teacher", module, trained=True), Net("student", network(4))
    hint = Match(teacher, Hint(), student=Tap(student.module[0]), target=Tap(module.get_submodule("0")))
    plan = kdkit.check(one_stage(student, hint))
    assert any("never fired" in problem for problem in plan.problems)


def test_a_mode_that_is_fixed_stays_as_it_was(tmp_path):
    module = exported(tmp_path)
    modes = [part.training for part in module.modules()]
    wrapped = nn.Sequential(nn.BatchNorm1d(6), module)
    kdkit.run(recipe(Net("teacher", wrapped, trained=True)), device="cpu")
    assert [part.training for part in module.modules()] == modes
    assert wrapped[0].training
    assert int(wrapped[0].num_batches_tracked) == 0  # it ran in eval mode, although eval() of its sibling raises


@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: nn.Sequential(nn.Linear(6, 6), module)])
def test_an_exported_program_cannot_be_trained(wrap, tmp_path):
    student = Net("student", wrap(exported(tmp_path)))
    with pytest.raises(CheckError, match="train the module that was exported"):
        kdkit.run(one_stage(student, truth()), device="cpu")


def test_a_student_with_quantized_weights_is_refused(tmp_path):
    student = Net("student", nn.Sequential(nn.Linear(6, 6), weights_in_int8(tmp_path)))
    with pytest.raises(
        CheckError, match=r"has '1\.0\.weight', a (Int8|AffineQuantized)Tensor, and 1 more, which a run folder cannot"
    ) as raised:
        kdkit.run(one_stage(student, truth()), device="cpu")
    assert len(raised.value.problems) == 1  # and not one for each of its layers


def test_an_onnx_model_takes_its_version_from_its_files(tmp_path):
    path = onnx_file(tmp_path)
    first = OnnxModel(path)
    assert Net("teacher", first).version == first.version == OnnxModel(path).version
    assert Net("teacher", first, version="mine").version == "mine"
    (weights,) = tmp_path.glob("*.data")  # in a file of their own
    weights.write_bytes(weights.read_bytes()[::-1])
    assert OnnxModel(path).version != first.version


def test_an_onnx_model_takes_inputs_by_name_and_returns_outputs_by_name(tmp_path):
    class Two(nn.Module):
        def forward(self, input):
            return input[:, :3], input.sum(1)

    path, inputs = tmp_path / "teacher.onnx", torch.randn(5, 6)
    export_onnx(Two(), path, output_names=["logits", "total"])
    outputs = OnnxModel(path)(input=inputs)
    torch.testing.assert_close(outputs["logits"], inputs[:, :3])
    torch.testing.assert_close(outputs["total"], inputs.sum(1))
    teacher = Net("teacher", OnnxModel(path), element="logits")
    kdkit.check(recipe(teacher)).require()


def test_an_onnx_model_refuses_other_inputs_than_its_own(tmp_path):
    model, inputs = in_onnx(tmp_path), torch.randn(5, 6)
    with pytest.raises(RecipeError, match="takes 'input'; got 2 by position; select them"):
        model(inputs, inputs)
    with pytest.raises(RecipeError, match="takes 'input'; got 1 by position, 'mask'"):
        model(inputs, mask=inputs)
    for wrong in (inputs.double(), inputs.bfloat16(), torch.randn(5, 7)):
        got = re.escape(f"input {wrong.dtype} {list(wrong.shape)}: ")
        with pytest.raises(RecipeError, match=rf"takes input tensor\(float\) .*, but fails for {got}.*in the view"):
            model(wrong)
    with pytest.raises(RecipeError, match="takes 'input'; got none"):
        model()


def test_an_onnx_model_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path / "text.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(RecipeError, match=rf"onnxruntime cannot load .*{path.name}"):
            OnnxModel(path)
    path = onnx_file(tmp_path)
    with pytest.raises(RecipeError, match=r"onnxruntime cannot use NoneExecutionProvider .*; install the package"):
        OnnxModel(path, providers=["NoneExecutionProvider"])
    OnnxModel(path, providers=["NoneExecutionProvider", "CPUExecutionProvider"])


def test_an_onnx_model_of_a_fixed_batch_size_is_refused(tmp_path):
    import onnx

    path = onnx_file(tmp_path)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, path)
    with pytest.raises(RecipeError, match=r"exactly 4 samples for 'input'.*dynamic_shapes"):
        OnnxModel(path)


def test_an_onnx_model_without_onnxruntime_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RecipeError, match=r"pip install 'kdkit\[onnx\]'"):
        OnnxModel(tmp_path / "teacher.onnx")


class Recorded(nn.Module):
    """A network that records the devices that it is moved to, and those of its inputs."""

    def __init__(self):
        super().__init__()
        self.body = network()
        self.moves, self.inputs = [], []

    def forward(self, inputs):
        self.inputs.append(inputs.device)
        return self.body(inputs)

    def to(self, *args, **kwargs):
        self.moves.append(args[0])
        return super().to(*args, **kwargs)


def taught(device, device_of_run, *, epochs=2, **options):
    """Run a recipe whose teacher has its own device, unless it is None, and return the teacher and the student."""
    teacher = Net("teacher", network(), trained=True, device=device)
    torch.manual_seed(3)
    student = Net("student", network(4))
    hint = Match(teacher, Hint(), student=Tap(student.module[0]), target=Tap(teacher.module[0]))
    kdkit.run(
        one_stage(student, truth() + Match(teacher, SoftTargets()) + hint, epochs=epochs),
        device=device_of_run,
        **options,
    )
    return teacher, student


def test_a_teacher_with_its_own_device_trains_the_same_student():
    states = [taught(device, "cpu")[1].module.state_dict() for device in (None, "cpu")]
    assert same(*states)


def test_a_teacher_with_its_own_device_is_moved_to_no_other(monkeypatch):
    teacher = Net("teacher", Recorded(), trained=True, device="cpu")
    assert teacher.device == torch.device("cpu")
    teacher.move_to(torch.device("meta"))
    assert {str(device) for device in teacher.module.moves} == {"cpu"}
    without = Net("teacher", Recorded(), trained=True)
    without.move_to(torch.device("meta"))
    assert [str(device) for device in without.module.moves] == ["meta"]


def test_a_teacher_that_accelerate_has_spread_stays_where_it_is(tmp_path):
    import accelerate

    device_map = {"0": "cpu", "1": "cpu", "2": "disk"}
    module = accelerate.dispatch_model(network(), device_map, offload_dir=tmp_path, main_device="cpu")
    recorder = Recorder()
    teacher = Net("teacher", module, trained=True)
    result = kdkit.run(recipe(teacher), device="cpu", out=tmp_path / "run", callbacks=[recorder])
    expected = kdkit.run(recipe(Net("teacher", network(), trained=True)), device="cpu")
    assert module[2].weight.is_meta  # it is read from the disk at each step
    assert result.metrics["teacher"] == expected.metrics["teacher"]
    losses, expected_losses = ([epoch["terms"] for epoch in run.history["student"]] for run in (result, expected))
    assert losses == expected_losses
    assert any("whose bytes cannot be read" in line for line in recorder.notices)


def test_a_distiller_leaves_a_teacher_that_accelerate_has_spread_where_it_is(tmp_path):
    import accelerate

    device_map = {"0": "cpu", "1": "cpu", "2": "disk"}
    module = accelerate.dispatch_model(network(), device_map, offload_dir=tmp_path, main_device="cpu")
    student, teacher = Net("student", nn.Linear(6, 3)), Net("teacher", module, trained=True)
    inputs = torch.randn(4, 6)
    with kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, torch.zeros(4).long())) as distiller:
        distiller.to("cpu")
        loss = distiller(inputs, torch.zeros(4).long()).loss
    assert module[2].weight.is_meta
    torch.testing.assert_close(loss, SoftTargets()(student.module(inputs), network().eval()(inputs)))


def test_inputs_are_copied_to_the_device_of_a_teacher_and_its_outputs_back():
    devices = []

    def service(inputs, scale):
        devices.append((inputs["values"].device.type, scale.device.type))
        return torch.zeros(len(inputs["values"]), 3, device=inputs["values"].device)

    # "meta" stands for a GPU: its tensors have no numbers, and here only the devices count.
    teacher = Net("teacher", service, version="1", device="cpu")
    teacher.device = torch.device("meta")
    batch = Batch(({"values": torch.randn(4, 6)}, torch.ones(4)), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        teacher(batch)
    assert devices == [("meta", "meta")]


@pytest.mark.parametrize("half", [False, True])
def test_a_distiller_leaves_a_teacher_on_its_device(half):
    teacher = Net("teacher", Recorded(), trained=True, device="cpu")
    student = Net("student", nn.Linear(6, 3))
    example = (torch.randn(4, 6), torch.arange(4) % 3)
    with Distiller(student, truth() + Match(teacher, SoftTargets()), example) as distiller:
        if half:
            distiller.to(torch.float64)
            assert teacher.module.body[0].weight.dtype == torch.float64
        assert {str(device) for device in teacher.module.moves} == {"cpu"}


def test_a_net_with_its_own_device_cannot_be_trained():
    student = Net("student", network(), device="cpu")
    plan = kdkit.check(one_stage(student, truth()))
    assert plan.problems == (
        "stage 'student': net 'student' is trained on the device of the run; leave out its device='cpu'",
    )


def test_a_loss_that_shares_parameters_with_a_teacher_on_another_device_is_refused():
    class Sharing(nn.Module):
        """A loss that holds a layer of the teacher."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer.requires_grad_(False)

        def forward(self, student, target):
            return (student - target).square().mean()

    teacher, student = Net("teacher", network(), trained=True, device="cpu"), Net("student", nn.Linear(6, 3))
    stage = Stage({student: Match(teacher, Sharing(teacher.module[2]))}, training())
    plan = kdkit.check(Recipe(data=data(), schedule=[stage]))
    assert any("has its own device" in problem for problem in plan.problems)
    srrl = Match(teacher, SRRL(), student=Tap(student.module), target=Tap(teacher.module[1]))
    kdkit.check(one_stage(student, srrl)).require()  # it copies the layer


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(RecipeError, match="'gpu'"):
        Net("teacher", network(), device="gpu")
    with pytest.raises(RecipeError, match="'meta'"):
        Net("teacher", network(), device="meta")


def test_a_teacher_on_another_device_runs_outside_of_a_cuda_graph():
    cuda = torch.device("cuda:0")
    assert _runs_in_graph(Net("teacher", network()), cuda)
    assert not _runs_in_graph(Net("teacher", network(), device="cpu"), cuda)
    assert not _runs_in_graph(Net("teacher", lambda inputs: inputs, version="1"), cuda)
    spread = network()
    spread.hf_device_map = {"0": "cuda:0", "2": "cuda:1"}  # as accelerate notes it
    assert not _runs_in_graph(Net("teacher", spread), cuda)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("capture", ["off", "require"])
def test_a_teacher_on_the_cpu_teaches_a_student_on_a_gpu(capture):
    results = []
    for device in (None, "cpu"):
        teacher, student = taught(device, "cuda", epochs=6, capture=capture, teacher_cache="off")
        assert student.module[0].weight.is_cuda
        assert teacher.module[0].weight.is_cuda == (device is None)
        results.append(copy.deepcopy(student.module.state_dict()))
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-3, atol=1e-4)
