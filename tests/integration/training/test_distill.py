"""`kdkit.distill`: distillation in one call, on plain torch networks and data."""

import copy
import inspect
import json
import math

import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import DataError, Net, RecipeError, Training
from kdkit.errors import CheckError
from kdkit.losses import DKD, GeneralisedJSD, PerLabelSoftTargets, SoftTargets
from kdkit.metrics import Accuracy, CrossEntropy
from kdkit.nets.net import output_shape
from kdkit.report import write_report
from tests.helpers.callbacks import Recorder
from tests.helpers.datasets import Rows
from tests.helpers.stages import Small, copied, same, samples, training


def dataset(task: str, count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 4, generator=generator)
    labels = {  # functions of the inputs that a linear layer could learn
        "multiclass": inputs[:, :3].argmax(1),
        "multilabel": (inputs[:, :3] > 0).float(),
        "regression": inputs[:, :3] * 2,
    }
    return TensorDataset(inputs, labels[task])


@pytest.mark.parametrize("draws", [None, 1, 2])
def test_the_draws_of_a_dataset_decide_whether_teacher_outputs_are_cached(draws):
    recorder = Recorder()
    data = Rows(dataset("multiclass", 32, 0))
    kdkit.distill(net(8), net(4), data, data, epochs=3, draws=draws, callbacks=[recorder], device="cpu")
    assert any("not cached" in notice for notice in recorder.notices) == (draws is None)


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


WRAPPED = {
    "tensors": lambda data: data,
    "a dataset": Rows,
    "a loader": lambda data: DataLoader(data, batch_size=16, shuffle=True),
}
SCORED = {"multiclass": ("accuracy", 0.5), "multilabel": ("macro_auprc", 0.7), "regression": ("r2", 0.2)}


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("task", SCORED)
def test_a_student_learns_and_its_teacher_does_not_change(task, wrap):
    torch.manual_seed(0)
    teacher, student = net(16), net(8)
    before = copied(teacher)
    train, validation = (WRAPPED[wrap](dataset(task, count, seed)) for count, seed in ((96, 0), (48, 1)))
    training = Training(epochs=8, batch_size=16, optimizer=kdkit.Optimizer(torch.optim.Adam, lr=0.03))
    result = kdkit.distill(teacher, student, train, validation, label_weight=0.9, training=training, device="cpu")
    name, minimum = SCORED[task]
    assert result.metrics["student"][name].value > minimum
    assert same(before, teacher.state_dict())
    assert teacher.training  # the mode of a new module, which the run restores
    assert result.student.module is student
    assert list(result.history) == ["student"]
    terms = result.history["student"][0]["terms"]
    assert len(terms) == 2
    assert all(value > 0 for value in terms.values())


def test_plain_distillation_takes_ten_lines():
    def user_code():
        import torch
        from torch.utils.data import TensorDataset

        from kdkit import distill

        inputs, labels = torch.randn(64, 4), torch.randint(0, 3, (64,))
        train, validation = TensorDataset(inputs[:48], labels[:48]), TensorDataset(inputs[48:], labels[48:])
        teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        result = distill(teacher, student, train, validation, device="cpu")
        return result.metrics["student"]["accuracy"].value

    # The README promises ten lines.
    lines = [line for line in inspect.getsource(user_code).splitlines()[1:] if line.strip()]
    assert len(lines) <= 10
    assert 0 <= user_code() <= 1


@pytest.mark.parametrize("named", [True, False], ids=["nets", "modules"])
def test_a_student_learns_from_several_teachers(named):
    modules = [net(16), net(12)]
    before = [copied(module) for module in modules]
    nets = [Net(f"teacher {index}", module, trained=True) for index, module in enumerate(modules)]
    teachers = nets if named else modules
    data = dataset("multiclass", 48, 0), dataset("multiclass", 24, 1)
    result = kdkit.distill(teachers, net(8), *data, training=Training(epochs=1), device="cpu")
    assert len(result.history["student"][0]["terms"]) == 3  # the labels, and one term for each teacher
    assert len(result.metrics) == 3
    assert all(same(weights, module.state_dict()) for weights, module in zip(before, modules, strict=True))


def test_metrics_are_computed_on_the_test_split_if_there_is_one():
    data = [dataset("multiclass", 24, seed) for seed in range(3)]
    with_test = kdkit.distill(net(8), net(4), *data, training=Training(epochs=1), device="cpu")
    without = kdkit.distill(net(8), net(4), *data[:2], training=Training(epochs=1), device="cpu")
    assert (with_test.reported_on, without.reported_on) == ("test", "validation")


def test_a_user_defined_loss_replaces_the_default():
    def absolute(student, target):
        return nn.functional.l1_loss(student, target)

    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    result = kdkit.distill(net(8), net(4), *data, kd_loss=absolute, training=Training(epochs=1), device="cpu")
    assert "teacher/absolute" in result.history["student"][0]["terms"]


def test_metrics_replace_the_default_ones_and_may_choose_the_epoch():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    options = {"training": Training(epochs=1, monitor="cross_entropy"), "device": "cpu"}
    result = kdkit.distill(net(8), net(4), *data, metrics=(Accuracy(), CrossEntropy()), **options)
    assert list(result.metrics["student"]) == ["accuracy", "cross_entropy"]
    assert result.history["student"][0]["cross_entropy"] > 0


def test_wrong_arguments_are_refused():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    with pytest.raises(RecipeError, match="label_weight"):
        kdkit.distill(net(8), net(4), *data, label_weight=3.0, device="cpu")
    with pytest.raises(RecipeError, match="training has its own epochs"):
        kdkit.distill(net(8), net(4), *data, epochs=3, training=Training(epochs=2), device="cpu")
    with pytest.raises(RecipeError, match="kd_loss has its own temperature"):
        kdkit.distill(net(8), net(4), *data, temperature=3.0, kd_loss=SoftTargets(), device="cpu")
    with pytest.raises(RecipeError, match="momentum"):
        kdkit.distill(net(8), net(4), *data, momentum=3, device="cpu")
    regression = dataset("regression", 24, 0), dataset("regression", 24, 1)
    with pytest.raises(RecipeError, match="a temperature softens probabilities"):
        kdkit.distill(net(8), net(4), *regression, temperature=3.0, device="cpu")
    with pytest.raises(DataError, match="empty"):
        kdkit.distill(net(8), net(4), DataLoader([]), data[1], device="cpu")
    with pytest.raises(DataError, match="the train data is a generator; expected a Dataset with a length"):
        kdkit.distill(net(8), net(4), (pair for pair in data[0]), data[1], device="cpu")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_few_options_that_everybody_wants_are_those_of_a_recipe(task):
    data = dataset(task, 24, 0), dataset(task, 24, 1)
    loss = {"multiclass": SoftTargets, "multilabel": PerLabelSoftTargets}[task]
    teacher, student = net(8), net(4)

    def terms(**options):
        return kdkit.distill(teacher, copy.deepcopy(student), *data, device="cpu", **options).history["student"]

    short = terms(epochs=2, temperature=3.0, task=task)
    whole = terms(training=Training(epochs=2), kd_loss=loss(temperature=3.0))
    assert [epoch["terms"] for epoch in short] == [epoch["terms"] for epoch in whole]


def test_a_list_of_samples_is_data():
    train, validation = list(dataset("multiclass", 24, 0)), list(dataset("multiclass", 24, 1))
    result = kdkit.distill(net(8), net(4), train, validation, training=Training(epochs=1), device="cpu")
    assert result.metrics["student"]


def test_an_untrained_teacher_is_trained_first():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    result = kdkit.distill(Net("large", net(8)), net(4), *data, training=Training(epochs=1), device="cpu")
    assert list(result.history) == ["large", "student"]


def test_a_net_that_cannot_take_the_data_fails_the_check():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    with pytest.raises(CheckError, match=r"net 'student' fails for its inputs \(\(4, 4\)\): RuntimeError"):
        kdkit.distill(net(8), nn.Linear(9, 3), *data, device="cpu")


def test_the_task_and_the_unknown_label_are_those_of_the_data():
    inputs, labels = dataset("multilabel", 24, 0).tensors
    labels[::5, 1] = -1
    data = TensorDataset(inputs, labels)
    result = kdkit.distill(net(8), net(4), data, data, unknown=-1, training=Training(epochs=1), device="cpu")
    assert 0 < result.metrics["student"]["macro_auprc"].value < 1
    shares = TensorDataset(inputs, labels.clamp(min=0) * 0.9)
    result = kdkit.distill(net(8), net(4), shares, shares, task="multilabel", training=Training(epochs=1), device="cpu")
    assert "macro_auprc" in result.metrics["student"]


def test_numbers_without_a_label_are_learned_from_the_teacher_and_left_out_of_the_report(tmp_path):
    inputs, labels = dataset("regression", 24, 0).tensors
    labels[::2] = math.nan
    data, options = TensorDataset(inputs, labels), {"unknown": math.nan, "device": "cpu", "out": tmp_path / "run"}
    result = kdkit.distill(net(8), net(4), data, data, training=Training(epochs=1), **options)
    known = inputs[1::2], labels[1::2]
    with torch.no_grad():
        expected = r2_score(known[1], result.student.module(known[0]))
    assert result.metrics["student"]["r2"].value == pytest.approx(expected, rel=1e-5)
    write_report([tmp_path / "run"], tmp_path / "report.html")


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8, torch.int16])
@pytest.mark.parametrize("classes", [None, ["a", "b", "c"]])
def test_inputs_of_the_dtype_of_arrays_or_images_are_named(dtype, classes):
    inputs, labels = dataset("multiclass", 8, 0).tensors
    data = TensorDataset(inputs.to(dtype), labels)
    message = (
        rf"the inputs are {str(dtype)[6:]}, but the network is float32: convert them, .* with \.to\(torch\.float32\)"
    )
    with pytest.raises(kdkit.KdkitError, match=message):
        kdkit.distill(net(8), net(4), data, data, classes=classes)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint8])
def test_tokens_that_are_no_indices_of_torch_are_named(dtype):
    tokens = torch.arange(48).reshape(8, 6) % 3
    data = TensorDataset(tokens.to(dtype), tokens.roll(-1, 1))
    nets = [Net(name, nn.Embedding(3, 3), channels_last=True, trained=True) for name in "ts"]
    message = rf"ids of {dtype} are no indices of torch: convert them with \.long\(\)"
    with pytest.raises(kdkit.KdkitError, match=message):
        kdkit.distill(*nets, data, data, task="multiclass", classes=3)


def test_outputs_are_counted_on_the_device_of_the_net():
    student = net(8).to("meta")  # a device without values, on which a CPU batch would raise an error
    batch = kdkit.Batch(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    assert output_shape(Net("student", student), batch) == (1, 3)
    assert all(module.training for module in student.modules())


def test_the_classes_of_a_dataset_name_the_outputs():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    for split in data:
        split.classes = ["cat", "dog", "emu"]
    result = kdkit.distill(net(8), net(4), *data, training=Training(epochs=1), device="cpu")
    assert set(result.metrics["student"]["accuracy"].by_class) <= {"cat", "dog", "emu"}


def test_networks_with_other_outputs_than_the_named_classes_are_refused():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    for split in data:
        split.classes = ["cat", "dog", "emu", "fox"]
    with pytest.raises(
        CheckError, match=r"has outputs of shape \(batch, 3\), but the data's 4 classes need \(batch, 4\)"
    ):
        kdkit.distill(net(8), net(4), *data, training=Training(epochs=1), device="cpu")


@pytest.mark.parametrize(("outputs", "has_notice"), [(3, False), (5, True)])
def test_outputs_without_any_sample_are_a_notice(outputs, has_notice, tmp_path):
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    nets = nn.Linear(4, outputs), nn.Linear(4, outputs)
    kdkit.distill(*nets, *data, training=Training(epochs=1), device="cpu", out=tmp_path / "run")
    notices = json.loads((tmp_path / "run" / "run.json").read_text())["notices"]
    expected = (
        "net 'student' has 5 outputs, but no label of the data is above 2; if there are only 3 classes, give the "
        "networks as many outputs"
    )
    assert (expected in notices) is has_notice


def test_a_string_instead_of_a_list_of_classes_is_refused():
    data = dataset("multiclass", 24, 0), dataset("multiclass", 24, 1)
    with pytest.raises(DataError, match="classes must be a list of names"):
        kdkit.distill(net(8), net(4), *data, classes="abc", device="cpu")


class Masked(nn.Module):
    """A network that never predicts the last of three classes."""

    def __init__(self):
        super().__init__()
        self.network = Small(8)

    def forward(self, inputs):
        outputs = self.network(inputs).clone()
        outputs[:, 2] = -torch.inf
        return outputs


@pytest.mark.parametrize("kd_loss", [None, GeneralisedJSD(), DKD()], ids=repr)
def test_a_teacher_that_masks_a_class_teaches_and_has_metrics(kd_loss, tmp_path):
    splits = [samples(32), samples(24, 1), samples(24, 2)]
    options = {"kd_loss": kd_loss, "training": training(epochs=2), "device": "cpu"}
    plain = kdkit.distill(Masked(), Small(4), *splits, **options, teacher_cache="off")
    cached = [kdkit.distill(Masked(), Small(4), *splits, **options, out=tmp_path / name) for name in ("one", "two")]
    for result in (plain, *cached):
        assert all(math.isfinite(value) for epoch in result.history["student"] for value in epoch["terms"].values())
        assert math.isfinite(result.metrics["teacher"]["accuracy"].value)


def test_a_student_that_an_earlier_run_trained_is_a_notice_unless_its_weights_were_changed():
    data, student = dataset("multiclass", 16, 0), net(4)
    initial = copied(student)

    def notices():
        recorder = Recorder()
        kdkit.distill(net(8), student, data, data, epochs=1, callbacks=[recorder], device="cpu")
        return sum("'student' was trained in an earlier run" in notice for notice in recorder.runs[0].notices)

    assert [notices(), notices()] == [0, 1]
    student.load_state_dict(initial)
    assert notices() == 0
