"""Networks that return a structure of tensors: which element is the output, a feature or a loss."""

import functools
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError
from kdkit.losses import Hint
from tests.helpers.distilled import CLASSES, ROWS, SIDE, cross_entropy, data_of, distilled, outputs, soft


@dataclass
class ModelOutput:
    """An output of the kind that models of the transformers library return."""

    logits: Tensor
    hidden: list[Tensor] = field(default_factory=list)


class NamedOutput(NamedTuple):
    """Features and logits under names."""

    features: Tensor
    logits: Tensor


class Wrapping(nn.Module):
    """A layer that returns features in a structure with a second tensor."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, features: Tensor) -> Any:
        return self.form(features, features.mean(-1))


class Returning(nn.Module):
    """A network that returns a structure of tensors, and has a layer that does so too."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.layer = Wrapping(form)
        self.head = nn.Linear(4, CLASSES)
        self.form = form

    def forward(self, signal: Tensor) -> Any:
        features = self.conv(signal)
        self.layer(features)  # for its tap alone
        return self.form(self.head(features.mean(-1)), features)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "tuple": (lambda first, second: (first, second), 0),
    "list": (lambda first, second: [second, first], 1),
    "dict": (lambda first, second: {"logits": first, "rest": second}, "logits"),
    "dataclass": (lambda first, second: ModelOutput(first, [second]), "logits"),
    "named tuple": (lambda first, second: NamedOutput(second, first), "logits"),
    "function": (lambda first, second: ((second, first),), lambda out: out[0][1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_returns_a_structure_teaches_and_learns_by_one_element(form, signals):
    make, element = FORMS[form]
    teacher = Net("teacher", Returning(make), element=element, trained=True)
    student = Net("student", Returning(make), element=element)
    hint = Match(
        teacher,
        Hint(),
        student=Tap(student.module.layer, element=element),
        target=Tap(teacher.module.layer, element=element),
    )
    result = distilled(student, Truth(cross_entropy) + Match(teacher, soft) + hint, signals)
    assert outputs(student, signals).shape == (ROWS, CLASSES)
    assert result.history["student"][-1]["terms"]["teacher/hint"] > 0


def test_a_network_that_returns_a_structure_is_refused_without_an_element(signals):
    student = Net("student", Returning(lambda first, second: {"left": first, "right": second}))
    with pytest.raises(CheckError, match="gives a dict with 'left', 'right', but one tensor was expected"):
        distilled(student, Truth(cross_entropy), signals)


@pytest.mark.parametrize(
    "compile_module", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("form", ["dict", "dataclass", "named tuple"])
def test_the_usual_element_of_a_structure_is_taken(form, compile_module, signals):
    make, element = FORMS[form]
    assert element == "logits"
    nets = [Net("teacher", Returning(make), trained=True), Net("student", Returning(make))]
    teacher, student = nets
    stage = Stage({student: Truth(cross_entropy) + Match(teacher, soft)}, Training(epochs=1, batch_size=5))
    with inductor.patch("cpp.vec_isa_ok", False):  # or it is tried whether the compiler knows each instruction set
        kdkit.run(Recipe(data=signals, schedule=[stage]), device="cpu", compile=compile_module)
    assert [net.taken_element for net in nets] == ["logits", "logits"]
    expected = student.module.head(student.module.conv(signals.train.batch(torch.arange(ROWS), 0).inputs).mean(-1))
    torch.testing.assert_close(outputs(student, signals), expected)


def test_a_segmentation_model_of_torchvision_learns_by_its_main_output(images):
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES)
    net = Net("net", model)
    assert outputs(net, images).shape == (ROWS, CLASSES, SIDE, SIDE)
    assert net.first_pass(images.train.batch(torch.arange(2), 0)).shape[1] == CLASSES
    assert net.taken_element == "out"


def test_the_auxiliary_heads_of_a_googlenet_learn_the_labels_although_they_run_in_training_only(images):
    module = torchvision.models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False)
    student = Net("student", module)
    before = {name: getattr(module, name).fc2.weight.clone() for name in ("aux1", "aux2")}
    deep = [Truth(cross_entropy, name, student=Tap(getattr(module, name))) for name in before]
    result = distilled(student, Truth(cross_entropy) + 0.3 * sum(deep), images)
    assert set(result.history["student"][-1]["terms"]) == {"truth", "aux1", "aux2"}
    assert student.taken_element == "logits"  # of the named tuple in training
    for name, weight in before.items():
        assert not torch.equal(getattr(module, name).fc2.weight, weight)


class Detector(nn.Module):
    """A network that returns a class and a box for each of six queries, as DETR does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Linear(16, width)
        self.queries = nn.Parameter(torch.randn(6, width))
        self.classes = nn.Linear(width, CLASSES)
        self.boxes = nn.Linear(width, 4)

    def forward(self, signal: Tensor) -> dict[str, Tensor]:
        queries = (self.features(signal).mean(1, keepdim=True) + self.queries).relu()  # (batch, queries, width)
        return {"boxes": self.boxes(queries).sigmoid(), "logits": self.classes(queries)}


class TrainedDetector(nn.Module):
    """A network that returns its losses in training, and else a list of detections, as torchvision's detectors do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(16, width), nn.Linear(width, CLASSES)

    def forward(self, signals: list[Tensor], labels: Tensor) -> Any:
        outputs = self.head(self.backbone(torch.stack(signals)).mean(1))
        if not self.training:
            return [{"labels": output.argmax()} for output in outputs]
        return {"classes": cross_entropy(outputs, labels), "boxes": outputs.square().mean()}


def test_a_detector_that_returns_losses_in_training_and_detections_else_is_distilled_in_a_loop():
    labels, nothing = torch.arange(4) % CLASSES, torch.zeros(4)
    inputs = [*torch.randn(4, 9, 16)], labels
    modules = [TrainedDetector(width) for width in (12, 8)]
    teacher, student = (
        Net(name, module, element=lambda output: torch.zeros(4, 1), trained=name == "teacher")
        for name, module in zip(("teacher", "student"), modules, strict=True)
    )
    own = [Truth(kdkit.model_loss, key, student=Tap(modules[1], element=key)) for key in ("classes", "boxes")]
    hint = Match(teacher, Hint(), student=Tap(modules[1].backbone), target=Tap(modules[0].backbone))
    with kdkit.Distiller(student, sum(own) + hint, example=(inputs, nothing), task="regression") as distiller:
        terms = distiller(inputs, nothing).terms
    expected = modules[1].train()(*inputs)
    assert {name: terms[name] for name in expected} == expected
    assert terms["teacher/hint"] > 0


def test_a_detector_has_terms_on_its_classes_and_on_its_boxes():
    teacher, student = (
        Net(
            name,
            Detector(width),
            element=lambda out: torch.cat([out["boxes"], out["logits"]], -1).flatten(1),
            **options,
        )
        for name, width, options in (("teacher", 12, {"trained": True}), ("student", 8, {}))
    )

    def unpacked(target: Tensor) -> Tensor:
        return target.unflatten(1, (6, 4 + CLASSES)).movedim(-1, 1)  # (batch, values, queries), as the taps

    def class_loss(logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, unpacked(target)[:, 4:].sigmoid())

    def box_loss(boxes: Tensor, target: Tensor) -> Tensor:
        return nn.functional.l1_loss(boxes, unpacked(target)[:, :4])

    logits, boxes = (
        {net: Tap(net.module, element=element) for net in (student, teacher)} for element in ("logits", "boxes")
    )
    objective = (
        Truth(class_loss, "classes", student=logits[student])
        + Truth(box_loss, "boxes", student=boxes[student])
        + Match(teacher, nn.MSELoss(), student=logits[student], target=logits[teacher], label="teacher's classes")
        + Match(teacher, nn.L1Loss(), student=boxes[student], target=boxes[teacher], label="teacher's boxes")
    )
    dataset = TensorDataset(torch.randn(ROWS, 2, 16), torch.rand(ROWS, 6 * (4 + CLASSES)))
    data = TorchData(dataset, dataset, task="regression")
    plan = kdkit.check(Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=1))]))
    assert plan.notices == ()
    assert plan.terms[0][1].student == "boxes of outputs channels last (4, 4, 6)"
    result = distilled(student, objective, data)
    assert len(result.history["student"][-1]["terms"]) == 4


def test_the_channels_of_a_tap_are_inferred_alike_in_a_compiled_run(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # generates no code
    data = data_of(torch.randn(ROWS, 2, 16))
    terms = []
    for compile_module in (False, True):
        torch.manual_seed(0)
        teacher = Net("teacher", Detector(12), element=mean_class, trained=True)
        student = Net("student", Detector(8), element=mean_class)
        hint = Match(teacher, Hint(), student=Tap(student.module.features), target=Tap(teacher.module.features))
        boxes = {"student": Tap(student.module, element="boxes"), "target": Tap(teacher.module, element="boxes")}
        objective = Truth(cross_entropy) + hint + Match(teacher, nn.MSELoss(), **boxes)
        stage = Stage({student: objective}, Training(epochs=2, batch_size=5))
        result = kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu", compile=compile_module)
        assert hint.loss.projector.channels.weight.shape == (12, 8)
        terms.append(result.history["student"][-1]["terms"])
    assert terms[1] == pytest.approx(terms[0], rel=1e-4)


def mean_class(output: dict[str, Tensor]) -> Tensor:
    return output["logits"].mean(1)


class OnlyInTraining(nn.Module):
    """A network that returns two outputs in training mode and one in eval mode, as Inception does, or the reverse."""

    def __init__(self, *, more_in_training: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(2, CLASSES)
        self.aux = nn.Linear(2, CLASSES)
        self.more_in_training = more_in_training

    def forward(self, signal: Tensor) -> Any:
        pooled = signal.mean(-1)
        return (self.head(pooled), self.aux(pooled)) if self.training is self.more_in_training else self.head(pooled)


def test_an_element_is_not_taken_of_a_network_that_returns_a_single_tensor_in_eval_mode(signals):
    student = Net("student", OnlyInTraining(), element=0)
    distilled(student, Truth(cross_entropy), signals)
    torch.testing.assert_close(
        outputs(student, signals), student.module.head(signals.train.batch(torch.arange(ROWS), 0).inputs.mean(-1))
    )


def test_a_run_with_an_auxiliary_head_in_training_is_resumed_in_its_validation(signals, tmp_path):
    interrupts = [signal.SIGINT]

    class Interrupted(OnlyInTraining):
        def forward(self, inputs: Tensor) -> Any:
            if interrupts and not self.training and len(inputs) > 4:  # the check has four samples
                signal.raise_signal(interrupts.pop())
            return super().forward(inputs)

    def recipe() -> Recipe:
        student = Net("student", Interrupted(), element=0)
        objective = Truth(cross_entropy) + Truth(cross_entropy, label="aux", student=Tap(student.module, element=1))
        return Recipe(data=signals, schedule=[Stage({student: objective}, Training(epochs=2, batch_size=8))])

    with pytest.raises(KeyboardInterrupt):
        kdkit.run(recipe, out=tmp_path / "run", device="cpu")
    resumed = kdkit.run(recipe, out=tmp_path / "run", device="cpu", resume=True)
    assert len(resumed.history["student"]) == 2


def test_the_output_of_an_auxiliary_head_is_not_taken_from_the_only_output_of_a_teacher(signals):
    teacher, student = (Net(name, OnlyInTraining(), element=0) for name in ("teacher", "student"))
    teacher.trained = True
    auxiliary = Match(teacher, soft, student=Tap(student.module, element=1), target=Tap(teacher.module, element=1))
    (problem,) = kdkit.check(Recipe(data=signals, schedule=[Stage({student: auxiliary}, Training(epochs=1))])).problems
    assert "is one tensor (4, 3), without an element 1; in eval mode, in which teachers always run" in problem
    heads = Match(teacher, soft, student=Tap(student.module, element=1), target=Tap(teacher.module.aux))
    (unfired,) = kdkit.check(Recipe(data=signals, schedule=[Stage({student: heads}, Training(epochs=1))])).problems
    assert "never fired: this module does not run in a forward pass in eval mode" in unfired


def test_a_network_that_fails_in_eval_mode_alone_is_refused_before_the_first_step(signals):
    student = Net("student", OnlyInTraining(more_in_training=False))
    plan = kdkit.check(Recipe(data=signals, schedule=[Stage({student: Truth(cross_entropy)}, Training(epochs=1))]))
    assert any("gives a tuple of 2, but one tensor was expected" in problem for problem in plan.problems)
    assert student.module.training
