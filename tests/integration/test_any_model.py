"""Networks of all kinds are tapped and distilled, each in a whole run of a few tiny steps."""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import kdkit
from kdkit import (
    AttentionTap,
    Batch,
    Images,
    Match,
    Net,
    Recipe,
    RecipeError,
    Result,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    model_loss,
    timm_tap,
)
from kdkit.errors import CheckError
from kdkit.losses import Hint, Masked, SoftTargets
from kdkit.nets.open_taps import OpenTaps
from kdkit.recipe.objective import Objective, Term

CLASSES = 3
ROWS = 10
SIDE = 32

cross_entropy = nn.CrossEntropyLoss()
soft = SoftTargets()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def labels() -> Tensor:
    return torch.arange(ROWS) % CLASSES


def data_of(inputs: Tensor) -> TorchData:
    dataset = TensorDataset(inputs, labels())
    return TorchData(dataset, dataset)


@pytest.fixture
def images() -> TorchData:
    return data_of(torch.rand(ROWS, 3, SIDE, SIDE))  # values of 0 to 1, as Images expects


@pytest.fixture
def signals() -> TorchData:
    return data_of(torch.randn(ROWS, 2, 16))  # (sample, channel, time)


def distilled(student: Net[Any], objective: Objective | Term, data: TorchData, *, epochs: int = 1) -> Result:
    """Run one stage and assert that its terms are finite, that the student changed and that the teachers did not."""
    stage = Stage({student: objective}, Training(epochs=epochs, batch_size=4, keep="last"))
    nets = [teacher for teacher in stage.teachers if isinstance(teacher, Net)]
    teachers = [net for net in nets if isinstance(net.module, nn.Module)]  # a plain callable has no state
    before = {net: copy.deepcopy(net.network.state_dict()) for net in [student, *teachers]}
    modes = {net: net.network.training for net in teachers}
    result = kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu")
    terms = result.history[stage.name][-1]["terms"]
    assert terms
    assert all(math.isfinite(value) for value in terms.values())
    assert any(not torch.equal(value, before[student][key]) for key, value in student.network.state_dict().items())
    for net in teachers:
        assert net.network.training is modes[net]
        for key, value in net.network.state_dict().items():
            # Also the buffers: a teacher whose batch norm updated its statistics would be another teacher.
            torch.testing.assert_close(value, before[net][key], rtol=0, atol=0)
    # A tap is a hook, which a run removes at its end.
    for net in [student, *teachers]:
        for module in net.network.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
    return result


def outputs(net: Net[Any], data: TorchData) -> Tensor:
    with torch.no_grad():
        return net(data.train.batch(torch.arange(ROWS), 0))


class Conv1d(nn.Module):
    """A network on (batch, channels, time)."""

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.ReLU()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.activation(self.norm(self.conv(signal))).mean(-1))


class Conv2d(nn.Module):
    """A network on (batch, channels, height, width) as in torchvision: a norm, then an in-place ReLU."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=4, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(image))).mean((2, 3)))


# Outputs of a network


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


@pytest.mark.parametrize("compile_module", [False, True], ids=["eager", "compiled"])
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


def test_a_network_that_fails_in_eval_mode_alone_is_refused_before_the_first_step(signals):
    student = Net("student", OnlyInTraining(more_in_training=False))
    plan = kdkit.check(Recipe(data=signals, schedule=[Stage({student: Truth(cross_entropy)}, Training(epochs=1))]))
    assert any("gives a tuple of 2, but one tensor was expected" in problem for problem in plan.problems)
    assert student.module.training


# Inputs of a network


class Pair(nn.Module):
    """A network of two inputs, a signal and an age."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.signal = nn.Conv1d(2, width, 3)
        self.age = nn.Linear(1, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor, age: Tensor) -> Tensor:
        return self.head(self.signal(signal).mean(-1) + self.age(age))


class Rows(Dataset[Any]):
    """A dataset of samples of any structure."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


class SignalAndAge(NamedTuple):
    signal: Tensor
    age: Tensor


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda signal, age: (signal, age),
    "list": lambda signal, age: [signal, age],
    "named tuple": SignalAndAge,
    # In another order than the parameters of forward: a dict is passed by its keys.
    "dict": lambda signal, age: {"age": age, "signal": signal},
}


@pytest.mark.parametrize("loaded", [False, True], ids=["dataset", "loader"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_network_of_two_inputs_gets_both(structure, loaded):
    samples = [(STRUCTURES[structure](torch.randn(2, 8), torch.rand(1)), int(label)) for label in labels()]
    rows = Rows(samples)
    split: Any = DataLoader(rows, batch_size=5) if loaded else rows
    data = TorchData(split, split, classes=[str(label) for label in range(CLASSES)])
    teacher, student = Net("teacher", Pair(6), trained=True), Net("student", Pair(3))
    hint = Match(teacher, Hint(), student=Tap(student.module.signal), target=Tap(teacher.module.signal))
    ages = Match(teacher, Hint(), student=Tap(student.module.age), target=Tap(teacher.module.age), label="age")
    before = student.module.age.weight.clone()
    # The weight of 0 keeps the second hint from the weights: they change through the labels, if the age is an input.
    distilled(student, Truth(cross_entropy) + Match(teacher, soft) + hint + 0.0 * ages, data)
    assert not torch.equal(student.module.age.weight, before)


# Images and timm


class RecordsInput(nn.Module):
    """A wrapper that keeps the last batch of images that its network got."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen = torch.empty(0)

    def forward(self, image: Tensor) -> Tensor:
        self.seen = image.detach()
        return self.network(image)


def test_a_timm_teacher_and_its_student_have_separate_normalisation_and_size(images):
    tiny = timm.create_model("test_efficientnet", num_classes=CLASSES)
    view = Images.from_timm(tiny)
    large = Images(mean=view.mean, std=view.std, size=(48, 40))
    teacher = Net("teacher", RecordsInput(tiny), view=large, trained=True)
    student = Net("student", RecordsInput(Conv2d()), view=Images(mean=(0.5,) * 3, std=(0.25,) * 3))
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)

    batch = images.train.batch(torch.arange(ROWS), 0)
    teacher(batch), student(batch)
    config = tiny.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert tuple(config["mean"]) == (0.485, 0.456, 0.406)  # those of ImageNet, which differ from the student's
    resized = nn.functional.interpolate(batch.inputs, (48, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.module.seen, (resized - mean) / std)
    torch.testing.assert_close(student.module.seen, (batch.inputs - 0.5) / 0.25)


def test_images_of_a_timm_model_are_resized_to_the_size_of_its_training(images):
    tiny = timm.create_model("test_resnet", num_classes=CLASSES)
    net = Net("teacher", RecordsInput(tiny), view=Images.from_timm(tiny, resize=True), trained=True)
    outputs(net, images)
    assert net.module.seen.shape[-2:] == tuple(tiny.pretrained_cfg["input_size"][1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.layers.PatchEmbed(2 * SIDE, 16),
        lambda: torchvision.models.VisionTransformer(2 * SIDE, 16, 1, 2, 16, 16, num_classes=CLASSES),
    ],
    ids=["timm", "torchvision"],
)
def test_a_transformer_that_takes_another_size_of_images_is_refused_with_the_view_that_resizes(make, images):
    stage = Stage({Net("student", make()): Truth(cross_entropy)}, Training(epochs=1))
    plan = kdkit.check(Recipe(data=images, schedule=[stage]))
    assert "resize the images for this network alone: Net(..., view=Images(size=" in plan.problems[0]


def vit(**options: Any) -> Any:
    return timm.create_model("test_vit", num_classes=CLASSES, img_size=SIDE, **options)


def as_map(tokens: Tensor) -> Tensor:
    """Drop the class token of (batch, 5, channels) and arrange the patches: (batch, 2, 2, channels)."""
    return tokens[:, 1:].unflatten(1, (2, 2))


def test_the_tokens_of_a_timm_vit_teach_the_maps_of_a_cnn(images):
    teacher = Net("teacher", vit(), view=Images(mean=(0.5,) * 3, std=(0.5,) * 3), trained=True)
    student = Net("student", Conv2d())
    hint = Hint()
    tokens = Tap(teacher.module.blocks[2], element=as_map, channels_last=True)
    distilled(
        student, Truth(cross_entropy) + Match(teacher, hint, student=Tap(student.module.conv), target=tokens), images
    )
    with torch.no_grad(), OpenTaps([Tap(student.module.conv), tokens]) as open_taps:
        batch = images.train.batch(torch.arange(2), 0)
        student(batch), teacher(batch)
        feature, target = open_taps.take()
        assert feature.shape == (2, 6, 8, 8)
        assert target.shape == (2, 64, 2, 2)
        assert hint.projector(feature).shape == target.shape


def test_tokens_with_channels_last_become_channels_second():
    module = vit().eval()
    plain, moved = Tap(module.blocks[0], channels_last=False), Tap(module.blocks[0])
    with torch.no_grad(), OpenTaps([plain, moved]) as open_taps:
        module(torch.rand(2, 3, SIDE, SIDE))
        tokens, features = open_taps.take()
    assert tokens.shape == (2, 5, 64)  # (batch, tokens, channels)
    torch.testing.assert_close(features, tokens.transpose(1, 2), rtol=0, atol=0)


def test_the_attention_of_a_timm_vit_is_matched_and_its_fused_kernel_is_restored(images):
    teacher, student = Net("teacher", vit(), trained=True), Net("student", vit(depth=2))
    layers = [teacher.module.blocks[5].attn, student.module.blocks[1].attn]
    fused = [layer.fused_attn for layer in layers]
    assert all(fused)  # the fused kernel computes no attention map, so that a tap has to turn it off
    seen = []

    def divergence(student_map: Tensor, teacher_map: Tensor) -> Tensor:
        seen.append((student_map.detach(), teacher_map))
        return nn.functional.kl_div(student_map.log(), teacher_map, reduction="batchmean")

    match = Match(teacher, divergence, student=AttentionTap(layers[1]), target=AttentionTap(layers[0]))
    distilled(student, Truth(cross_entropy) + match, images)
    assert [layer.fused_attn for layer in layers] == fused
    for attention in seen[-1]:
        assert attention.shape[2:] == (5, 5)  # a class token and 2x2 patches
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_an_attention_tap_does_not_change_the_output():
    module = vit().eval()
    image = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        plain = module(image)
        with OpenTaps([AttentionTap(module.blocks[0].attn)]):
            tapped = module(image)
    torch.testing.assert_close(tapped, plain, rtol=1e-4, atol=1e-5)  # another kernel, another rounding


STAGED: dict[str, Mapping[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": {"img_size": SIDE},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
}


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("index", [0, -1])
def test_a_tap_on_a_stage_of_a_timm_model_has_its_channels_second(name, index):
    module = timm.create_model(name, num_classes=CLASSES, **STAGED[name]).eval()
    with torch.no_grad(), OpenTaps([timm_tap(module, index)]) as open_taps:
        module(torch.rand(2, 3, SIDE, SIDE))
        (feature,) = open_taps.take()
    assert feature.shape[1] == list(module.feature_info)[index]["num_chs"]


MAPPED: dict[str, Mapping[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": SIDE},  # a class token
    "test_vit3": {"img_size": (SIDE, 2 * SIDE)},  # a register token, and a wide image
    "deit_tiny_distilled_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE},
    "samvit_base_patch16": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE},  # channels last, undeclared
}


@pytest.mark.parametrize("name", MAPPED)
def test_a_tap_on_a_stage_of_a_timm_model_is_the_map_of_its_features(name):
    module = timm.create_model(name, **MAPPED[name]).eval()
    pyramid = timm.create_model(name, features_only=True, out_indices=[1], **MAPPED[name]).eval()
    inner = getattr(pyramid, "model", pyramid)
    inner.load_state_dict({key: value for key, value in module.state_dict().items() if key in inner.state_dict()})
    image = torch.rand(2, 3, *module.patch_embed.img_size) if hasattr(module, "patch_embed") else torch.rand(2, 3, 8, 8)
    with torch.no_grad(), OpenTaps([timm_tap(module, 1)]) as open_taps:
        module(image)
        assert torch.equal(open_taps.take()[0], pyramid(image)[0])


def test_the_tokens_of_two_timm_vits_with_other_patches_are_compared_by_their_maps(images):
    teacher = Net("teacher", timm.create_model("test_vit", num_classes=CLASSES, img_size=SIDE), trained=True)
    student = Net("student", timm.create_model("test_vit3", num_classes=CLASSES, img_size=SIDE, patch_size=SIDE // 4))
    hint = Hint()
    match = Match(teacher, hint, student=timm_tap(student.module, 1), target=timm_tap(teacher.module, 1))
    distilled(student, Truth(cross_entropy) + match, images)
    assert hint.projector.positions == (2, 2)
    blocks = (Tap(net.module.blocks[1]) for net in (student, teacher))

    def notices(match: Match) -> tuple[str, ...]:
        return kdkit.check(Recipe(data=images, schedule=[Stage({student: 1.0 * match}, Training(epochs=1))])).notices

    match_blocks = Match(teacher, Hint(), **dict(zip(("student", "target"), blocks, strict=True)))
    assert any("compares 17 tokens to 5 as a sequence" in notice for notice in notices(match_blocks))
    assert not any("as a sequence" in notice for notice in notices(match))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_a_stage_of_a_timm_model_teaches_a_student_of_a_different_width(name, images):
    teacher = Net("teacher", timm.create_model(name, num_classes=CLASSES, **STAGED[name]), trained=True)
    small = timm.create_model("test_efficientnet", num_classes=CLASSES)
    student = Net("student", small, view=Images.from_timm(small))
    hint = Hint()
    match = Match(teacher, hint, student=timm_tap(student.module, 1), target=timm_tap(teacher.module, 1))
    distilled(student, Truth(cross_entropy) + match, images)
    teacher_width = list(teacher.module.feature_info)[1]["num_chs"]
    student_width = list(small.feature_info)[1]["num_chs"]
    assert teacher_width != student_width
    assert hint.projector.channels.weight.shape == (teacher_width, student_width)
    assert not any("projector" in key for key in student.module.state_dict())


def distilled_deit() -> Any:
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIDE}
    module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **options)
    module.set_distilled_training(True)
    return module


def test_the_distilled_deit_learns_the_labels_and_the_teacher_by_separate_heads(images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", distilled_deit(), element=0)
    by_token = Match(teacher, soft, student=Tap(student.module.head_dist))
    heads = {name: getattr(student.module, name).weight.clone() for name in ("head", "head_dist")}
    assert isinstance(student.module.train()(torch.rand(2, 3, SIDE, SIDE)), tuple)
    distilled(student, Truth(cross_entropy) + by_token, images)
    for name, before in heads.items():
        assert not torch.equal(getattr(student.module, name).weight, before)
    assert outputs(student, images).shape == (ROWS, CLASSES)


def test_the_distillation_head_of_the_deit_does_not_change_the_head_of_the_labels(images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", distilled_deit(), element=0)
    before = student.module.head.weight.clone()
    # 1.0 * Match: an objective without labels.
    distilled(student, 1.0 * Match(teacher, soft, student=Tap(student.module.head_dist)), images)
    torch.testing.assert_close(student.module.head.weight, before, rtol=0, atol=0)


def test_the_distilled_deit_is_refused_without_an_element(images):
    with pytest.raises(CheckError, match="tuple of 2, but one tensor was expected"):
        distilled(Net("student", distilled_deit()), Truth(cross_entropy), images)


def test_a_model_of_the_timm_registry_learns(images):
    make = kdkit.registry("models")["timm"]
    teacher = Net("teacher", make("test_resnet", num_classes=CLASSES), trained=True)
    student = Net("student", make("resnet18", num_classes=CLASSES, channels=(4, 4, 8, 8)), view=Images())
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)


def test_a_misspelt_timm_model_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match="resnet18"):
        kdkit.registry("models")["timm"]("resnet81")


# Teachers that are no modules


def test_a_plain_callable_teaches_by_its_output(signals):
    calls = []

    def api(signal: Tensor) -> Tensor:
        calls.append(len(signal))
        return signal.mean(-1) @ torch.tensor([[3.0, 0.0, -3.0], [0.0, 3.0, -3.0]])

    student = Net("student", Conv1d(2))
    distilled(student, Truth(cross_entropy) + Match(Net("api", api, version="2024-05"), soft), signals)
    assert sum(calls) >= ROWS


def test_a_plain_callable_needs_a_version():
    with pytest.raises(RecipeError, match="give it a version"):
        Net("api", lambda signal: signal)


def test_a_plain_callable_can_be_neither_tapped_nor_trained(signals):
    api = Net("api", lambda signal: signal.mean(-1), version="1")
    student = Net("student", Conv1d(2))
    tap = Tap(Conv1d(2).conv)  # of any module: a callable has none
    with pytest.raises(CheckError, match="'api' is a plain callable, which cannot be tapped"):
        distilled(student, 1.0 * Match(api, Hint(), student=Tap(student.module.conv), target=tap), signals)
    stage = Stage({api: Truth(cross_entropy)}, Training(epochs=1))
    with pytest.raises(CheckError, match="can teach, but not be trained"):
        kdkit.run(Recipe(data=signals, schedule=[stage]), device="cpu")
    with pytest.raises(RecipeError, match="it can teach, but not be trained or tapped"):
        _ = api.network


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_teacher_comes_with_its_weights_from_a_file(ending, signals, tmp_path):
    original = Conv1d(2)
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(original.state_dict(), path)
    else:
        torch.save(original.state_dict(), path)
    teacher = Net("teacher", Conv1d(2), weights=path)
    assert not torch.equal(Conv1d(2).conv.weight, original.conv.weight)  # initial weights differ, so that loading shows
    torch.testing.assert_close(teacher.module.state_dict(), original.state_dict(), rtol=0, atol=0)
    distilled(Net("student", Conv1d(2, width=2)), Truth(cross_entropy) + Match(teacher, soft), signals)


# Modules that run several times, sometimes, or frozen


def test_a_network_on_signals_is_tapped_in_one_dimension(signals):
    teacher, student = Net("teacher", Conv1d(2, width=6), trained=True), Net("student", Conv1d(2))
    taps = {"student": Tap(student.module.activation, "input"), "target": Tap(teacher.module.activation, "input")}
    distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


class Twice(nn.Module):
    """A network that runs one block twice, with an activation after each run."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv1d(2, 2, 3, padding=1)
        self.activation = nn.Tanh()
        self.head = nn.Linear(2, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        for _ in range(2):
            signal = self.activation(self.block(signal))
        return self.head(signal.mean(-1))


def test_a_tap_captures_the_last_run_of_a_module_that_runs_twice(signals):
    module = Twice()
    signal = torch.randn(2, 2, 16)
    with torch.no_grad(), OpenTaps([Tap(module.block), Tap(module.block, "input")]) as open_taps:
        module(signal)
        output, block_input = open_taps.take()
        first = module.activation(module.block(signal))
        torch.testing.assert_close(block_input, first)
        torch.testing.assert_close(output, module.block(first))
    teacher, student = Net("teacher", Twice(), trained=True), Net("student", Twice())
    match = Match(teacher, Hint(), student=Tap(student.module.block), target=Tap(teacher.module.block))
    distilled(student, Truth(cross_entropy) + match, signals)


class Skipping(nn.Module):
    """A network that skips a layer after a number of runs, as stochastic depth does at random."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.head = nn.Linear(2, CLASSES)
        self.runs = runs

    def forward(self, signal: Tensor) -> Tensor:
        self.runs -= 1
        return self.head((self.conv(signal) if self.runs >= 0 else signal).mean(-1))


def test_a_tap_that_stops_firing_during_a_run_is_named(signals):
    teacher, student = Net("teacher", Conv1d(2, width=2), trained=True), Net("student", Skipping(10))
    match = Match(teacher, Hint(), student=Tap(student.module.conv), target=Tap(teacher.module.conv))
    with pytest.raises(RecipeError, match="the tap on Conv1d 'conv' of net 'student' never fired"):
        distilled(student, Truth(cross_entropy) + match, signals, epochs=9)


def test_a_frozen_backbone_does_not_change_while_its_head_learns(images):
    module = timm.create_model("test_convnext", num_classes=CLASSES)
    module.requires_grad_(requires_grad=False)
    module.get_classifier().requires_grad_()
    before = copy.deepcopy(module.state_dict())
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", module)
    distilled(student, Truth(cross_entropy) + Match(teacher, soft), images)
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.fc.weight", "head.fc.bias"}


def test_a_hint_on_a_frozen_layer_is_refused(signals):
    teacher, student = Net("teacher", Conv1d(2), trained=True), Net("student", Conv1d(2))
    student.module.conv.requires_grad_(requires_grad=False)
    taps = {"student": Tap(student.module.conv), "target": Tap(teacher.module.conv)}
    with pytest.raises(CheckError, match="Hint has no effect: it has no gradient for net 'student'"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


def test_a_network_without_trainable_parameters_is_refused(signals):
    student = Net("student", Conv1d(2))
    student.module.requires_grad_(requires_grad=False)
    with pytest.raises(CheckError, match="none of its parameters requires a gradient"):
        distilled(student, Truth(cross_entropy), signals)


@pytest.mark.parametrize("layer", ["norm", "conv"])
def test_a_feature_before_an_in_place_relu_is_the_output_of_its_layer(layer, images):
    teacher, student = Net("teacher", Conv2d(), trained=True), Net("student", Conv2d())
    features = []

    def distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        features.append((student_feature, teacher_feature))
        return (student_feature - teacher_feature).square().mean()

    match = Match(
        teacher, distance, student=Tap(getattr(student.module, layer)), target=Tap(getattr(teacher.module, layer))
    )
    distilled(student, Truth(cross_entropy) + match, images)
    steps = features[-math.ceil(ROWS / 4) :]  # those of training, after those of the check
    assert all((feature < 0).any() for step in steps for feature in step)  # a ReLU would have left none below 0


# Transformers of torch


class PerToken(nn.Module):
    """The encoder of torch on (batch, channels, time), whose layers have a fused fast path in eval mode."""

    def __init__(self, *, masked: bool = False, nested: bool = True, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(width, CLASSES)
        self.masked = masked

    def forward(self, signal: Tensor) -> Tensor:
        tokens = self.embed(signal.transpose(1, 2))  # (batch, time, width)
        mask = None
        if self.masked:
            mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
            mask[0, -3:] = True
        return self.head(self.encoder(tokens, src_key_padding_mask=mask).mean(1))


@pytest.mark.parametrize("name", ["encoder.layers.0", "encoder.layers.1.linear1", "encoder.layers.0.norm1"])
def test_a_tap_turns_off_the_fast_path_of_a_transformer_encoder_that_skips_its_layer(name):
    module = PerToken().eval()
    signal = torch.randn(2, 2, 16)
    with torch.no_grad():
        plain = module(signal)
        with OpenTaps([Tap(module.get_submodule(name))]) as open_taps:
            tapped = module(signal)
            (fast,) = open_taps.take()
    with OpenTaps([Tap(module.get_submodule(name))]) as open_taps:
        module(signal)  # gradients switch the fast path off
        (slow,) = open_taps.take()
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tapped, plain, rtol=1e-4, atol=1e-5)


def test_a_transformer_encoder_teaches_and_learns(signals):
    teacher, student = Net("teacher", PerToken(width=12), trained=True), Net("student", PerToken())
    taps = {
        "student": Tap(student.module.encoder.layers[0].linear2, channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0].linear2, channels_last=True),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, soft) + Match(teacher, Hint(), **taps), signals)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_teacher_that_packs_padded_tokens_is_refused_with_the_option_to_change(signals):
    teacher, student = Net("teacher", PerToken(masked=True), trained=True), Net("student", PerToken(masked=True))
    taps = {
        "student": Tap(student.module.encoder.layers[0], channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0], channels_last=True),
    }
    with pytest.raises(CheckError, match="enable_nested_tensor=False"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_student_that_packs_padded_tokens_in_eval_mode_is_tapped_in_training(signals):
    teacher = Net("teacher", PerToken(masked=True, nested=False), trained=True)
    student = Net("student", PerToken(masked=True))
    taps = {
        "student": Tap(student.module.encoder.layers[0], channels_last=True),
        "target": Tap(teacher.module.encoder.layers[0], channels_last=True),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


class Attending(nn.Module):
    """The attention of torch, which returns its output and its map."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        tokens = self.embed(signal.transpose(1, 2))  # (batch, time, width)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def test_the_output_and_the_map_of_torch_attention_are_tapped_in_both_modes(signals):
    teacher, student = Net("teacher", Attending(), trained=True), Net("student", Attending())
    terms = Truth(cross_entropy) + Match(teacher, soft)
    for element, label in ((0, "output"), (1, "map")):
        taps = [Tap(net.module.attention, element=element) for net in (student, teacher)]
        terms += Match(teacher, Hint(), student=taps[0], target=taps[1], label=label)
    distilled(student, terms, signals)
    module = teacher.module.eval()
    with torch.no_grad(), OpenTaps([Tap(module.attention, element=1)]) as open_taps:
        teacher(Batch(torch.randn(2, 2, 16), torch.zeros(2)))
        (weights,) = open_taps.take()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16))  # the map, averaged over the heads: rows sum to 1


def test_the_projection_of_torch_attention_is_refused_since_it_never_runs_as_a_module(signals):
    teacher, student = Net("teacher", Attending(), trained=True), Net("student", Attending())
    taps = {"student": Tap(student.module.attention.out_proj), "target": Tap(teacher.module.attention.out_proj)}
    with pytest.raises(CheckError, match="of net 'teacher' never fired: that module does not run"):
        distilled(student, Truth(cross_entropy) + Match(teacher, Hint(), **taps), signals)


# Models of transformers


class Sentences(Dataset[Any]):
    """Texts of different lengths, padded to seven tokens, as a tokenizer returns them."""

    def __init__(self, *, labels: bool) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        tokens = torch.randint(1, 20, (7,), generator=torch.Generator().manual_seed(row))
        mask = torch.arange(7) < 4 + row % 4
        inputs = {"input_ids": tokens * mask, "attention_mask": mask.long()}
        return {**inputs, **({"labels": row % CLASSES} if self.labels else {})}, row % CLASSES


def texts(*, labels: bool = False) -> TorchData:
    split = Sentences(labels=labels)
    return TorchData(split, split, classes=[str(label) for label in range(CLASSES)])


def bert(name: str, width: int = 16, layers: int = 2, heads: int = 2, **options: Any) -> Net[Any]:
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        num_labels=CLASSES,
    )
    return Net(name, transformers.BertForSequenceClassification(config), **options)


def layer(net: Net[Any], index: int) -> Any:
    return net.module.bert.encoder.layer[index]


@pytest.mark.parametrize(
    "compile_module", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_a_model_of_transformers_learns_from_its_own_loss_and_a_teacher(compile_module):
    teacher, student = bert("teacher", width=24, layers=3, trained=True), bert("student")
    hint = Hint()
    objective = (
        Truth(model_loss, student=Tap(student.module, element="loss"))
        + Truth(cross_entropy, "outside")
        + Match(teacher, soft)
        + Match(teacher, hint, student=Tap(layer(student, 0)), target=Tap(layer(teacher, 1)))
    )
    stage = Stage({student: objective}, Training(epochs=1, batch_size=5))
    recipe = Recipe(data=texts(labels=True), schedule=[stage])
    assert kdkit.check(recipe).notices == ()
    result = kdkit.run(recipe, device="cpu", compile=compile_module)
    terms = result.history["student"][-1]["terms"]
    assert terms["truth"] == pytest.approx(terms["outside"], rel=1e-5)
    assert hint.projector.channels.weight.shape == (24, 16)  # of the channels, and not of the tokens


def test_models_of_transformers_are_distilled_as_they_are():
    teacher, student = bert("teacher", width=24).module, bert("student").module
    before = copy.deepcopy(student.state_dict())
    split = Sentences(labels=False)
    result = kdkit.distill(teacher, student, split, split, task="multiclass", classes=["a", "b", "c"], epochs=1)
    assert set(result.metrics) == {"teacher", "student"}
    assert any(not torch.equal(value.cpu(), before[key]) for key, value in student.state_dict().items())


def test_the_loss_of_a_model_that_gets_no_labels_is_refused_with_the_advice():
    student = bert("student")
    own = Truth(model_loss, student=Tap(student.module, element="loss"))
    message = "BertForSequenceClassification of net 'student' gives .* no element 'loss'; .* if the inputs have labels"
    with pytest.raises(CheckError, match=message):
        distilled(student, own, texts())


def test_the_attention_of_a_model_of_transformers_is_matched_and_its_fused_kernel_is_restored():
    teacher, student = bert("teacher", layers=3, trained=True), bert("student")
    maps = []

    def distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
        maps.append(teacher_map)
        return (student_map - teacher_map).square().mean()

    taps = {
        "student": AttentionTap(layer(student, 1).attention),
        "target": AttentionTap(layer(teacher, 2).attention.self),
    }
    distilled(student, Truth(cross_entropy) + Match(teacher, distance, **taps), texts())
    assert maps[-1].shape[1:] == (2, 7, 7)
    torch.testing.assert_close(maps[-1].sum(-1), torch.ones(maps[-1].shape[:-1]))
    assert {net.module.config._attn_implementation for net in (teacher, student)} == {"sdpa"}


def test_a_tap_on_fused_attention_is_refused_with_the_layer_and_the_advice():
    teacher, student = bert("teacher", trained=True), bert("student")
    taps = {"student": AttentionTap(layer(student, 1).attention), "target": Tap(layer(teacher, 1).attention, element=1)}
    message = "BertAttention 'bert.encoder.layer.1.attention' of net 'teacher' gives .* attn_implementation='eager'"
    with pytest.raises(CheckError, match=message):
        distilled(student, Truth(cross_entropy) + Match(teacher, nn.MSELoss(), **taps), texts())


@pytest.mark.parametrize(("heads", "loss"), [(2, Masked(nn.MSELoss())), (1, nn.MSELoss())])
def test_attention_maps_of_different_numbers_of_heads_are_refused_with_the_remedy(heads, loss):
    teacher, student = bert("teacher", heads=4, trained=True), bert("student", heads=heads)
    taps = {"student": AttentionTap(layer(student, 1).attention), "target": AttentionTap(layer(teacher, 1).attention)}
    message = rf"the maps have {heads} and 4 heads: compare their means over heads, with a loss such as lambda"
    with pytest.raises(CheckError, match=message):
        distilled(student, Truth(cross_entropy) + Match(teacher, loss, **taps), texts())
    means = Masked(lambda student, target: nn.functional.mse_loss(student.mean(1), target.mean(1)))
    distilled(student, Truth(cross_entropy) + Match(teacher, means, **taps), texts())


def test_an_average_of_a_model_of_transformers_teaches_by_its_layers():
    student = bert("student")
    taps = {"student": Tap(layer(student, 0)), "target": Tap(layer(student, 1))}
    maps = {key: AttentionTap(tap.module.attention) for key, tap in taps.items()}
    terms = Match(kdkit.Ema(student), Hint(), **taps) + Match(kdkit.Ema(student), nn.MSELoss(), **maps)
    distilled(student, Truth(cross_entropy) + terms, texts())
    assert student.module.config._attn_implementation == "sdpa"
