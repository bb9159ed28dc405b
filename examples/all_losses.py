"""Every registered loss by its name: the same student with the same teacher, trained on the labels and one more term.

LOSSES lists what each loss compares and the weight of its term. Digits are learned by two networks of timm; simulated
ECGs by an SEResNet that sees twelve leads and an LRHNet that sees three. A loss that another plugin registers can be
named as well, and compares outputs.

    kdkit run examples/all_losses.py --loss crd
    kdkit run examples/all_losses.py --loss sem_ckd --data ecg
    kdkit run examples/all_losses.py --loss none    (the labels alone, to compare with)
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Subset, TensorDataset, random_split

import kdkit
from kdkit import (
    ClassifierTap,
    Ema,
    Images,
    Loss,
    LRSchedule,
    Match,
    Net,
    Optimizer,
    Past,
    Peer,
    Recipe,
    RecipeError,
    SimKD,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
)
from kdkit.losses import PerLabelSoftTargets, SoftTargets, requirements_of
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic

Task = Literal["digits", "ecg"]
Sides = tuple[str, str]  # names of the taps on the student and on the teacher; see TappedNet

OUTPUTS: Sides = ("outputs", "outputs")
VECTOR: Sides = ("vector", "vector")
LAST: Sides = ("last", "last")
BEFORE: Sides = ("before", "before")
MAPS: Sides = ("maps", "maps")
CLASSES: Sides = ("classes", "classes")
COPIES: Sides = ("copies", "copies")

# What a loss compares, and its weight next to labels of weight 1. Weights are those of the scripts of RepDistiller (R),
# SimKD (S), mdistiller (M), mmrazor (Z) or the authors, otherwise 1. Options are the loss's defaults, from its paper
# or code.
LOSSES: dict[str, tuple[Sides, float]] = {
    "soft_targets": (OUTPUTS, 9.0),  # R, M: 0.9 and 0.1
    "soft_targets_deit": (OUTPUTS, 1.0),
    "soft_targets_modelopt": (OUTPUTS, 1.0),
    "hard_targets": (OUTPUTS, 1.0),  # DeiT: half and half
    "logit_mse": (OUTPUTS, 1.0),
    "margin_mse": (OUTPUTS, 1.0),
    "logit_standardisation": (OUTPUTS, 90.0),  # its authors: 9 and 0.1
    "dkd": (OUTPUTS, 1.0),  # M
    "nkd": (OUTPUTS, 1.0),
    "dist": (OUTPUTS, 2.0),  # Z
    "reverse_kl": (OUTPUTS, 1.0),
    "generalised_jsd": (OUTPUTS, 1.0),
    "skew_kl": (OUTPUTS, 1.0),
    "skew_reverse_kl": (OUTPUTS, 1.0),
    "adaptive_kl": (OUTPUTS, 1.0),
    "alpha_beta_divergence": (OUTPUTS, 1.0),
    "total_variation": (OUTPUTS, 1.0),
    "ttm": (OUTPUTS, 45.0),  # its authors
    "wttm": (OUTPUTS, 4.0),  # its authors, next to CRD
    "wsld": (OUTPUTS, 2.5),  # its authors
    "mlld": (OUTPUTS, 9.0),  # its authors: 0.9 and 0.1
    "rld": (OUTPUTS, 1.0),  # its authors
    "taid": (OUTPUTS, 1.0),
    "ctkd": (OUTPUTS, 9.0),  # its authors: 0.9 and 0.1
    "uld": (OUTPUTS, 1.5),  # its authors
    "per_label_soft_targets": (OUTPUTS, 1.0),
    "per_label_hard_targets": (OUTPUTS, 1.0),
    "per_label_dkd": (OUTPUTS, 1.0),
    "per_label_dist": (OUTPUTS, 1.0),
    "ofa": (OUTPUTS, 1.0),
    "skd": (OUTPUTS, 1.0),
    "per_label_alpha_beta_divergence": (OUTPUTS, 1.0),
    "per_label_mlld": (OUTPUTS, 1.0),
    "per_label_rld": (OUTPUTS, 1.0),
    "second_head": (("last", "outputs"), 1.0),  # the loss contains the head
    "rkd": (VECTOR, 1.0),  # R
    "sp": (LAST, 3000.0),  # R
    "pkt": (VECTOR, 30000.0),  # R
    "cc": (VECTOR, 1.0),
    "cka": (VECTOR, 1.0),
    "crd": (VECTOR, 0.8),  # R
    "sskd": (COPIES, 10.0),  # its authors, on rotated copies and a head for them
    "info_nce": (VECTOR, 1.0),
    "srrl": (VECTOR, 1.0),  # S; the input of the classifier
    "hint": (LAST, 100.0),  # R
    "cosine": (LAST, 1.0),
    "square_head": (LAST, 1.0),
    "distil_hubert": (LAST, 1.0),
    "attention_transfer": (LAST, 1000.0),  # R
    "cwd": (LAST, 3.0),  # its authors, for outputs
    "pairwise_affinity": (LAST, 0.5),  # its authors
    "mini_lm": (LAST, 1.0),
    "nst": (LAST, 50.0),  # R
    "pkd": (LAST, 6.0),  # Z
    "ft": (LAST, 500.0),  # its authors, with factors in place of the teacher's features
    "fsp": (MAPS, 1.0),  # R, in a stage of its own
    "kdsvd": (MAPS, 1.0),
    "ickd": (LAST, 2.5),  # its authors
    "vid": (LAST, 1.0),  # R
    "pad": (VECTOR, 1.0),  # torchdistill
    "mgd": (LAST, 1.0),
    "ofd": (BEFORE, 1.0),
    "ab": (BEFORE, 1.0),  # its authors, in a stage of its own
    "review_kd": (MAPS, 1.0),
    "sem_ckd": (MAPS, 400.0),  # S, with soft targets of weight 1 in addition
    "srd": (VECTOR, 2.0),  # torchdistill
    "dist_plus": (LAST, 1.0),
    "wkdf": (LAST, 0.08),  # its authors
    "led": (VECTOR, 1.0),
    "queue_kl": (LAST, 1.0),
    "sdd": (CLASSES, 1.0),
    "catkd": (CLASSES, 400.0),  # its authors
    # These have no projector, and only the outputs of these two networks have the same shape.
    "adjacent_cc": (OUTPUTS, 0.02),  # R
    "patient_kd": (OUTPUTS, 10.0),  # its authors search 10 to 1000 for the mean over the ten outputs
    "hcl": (OUTPUTS, 1.0),
}

# These need no separately trained teacher, see `objectives_without_teacher`; "none" is the labels alone.
WITHOUT_TEACHER = ("pskd", "per_label_pskd", "soft_targets_mutual", "mean_teacher", "none")
NAMES = (*LOSSES, *WITHOUT_TEACHER, "simkd")
PER_LABEL = [name for name in NAMES if name.startswith("per_label_")]
PIXELS = Images(mean=(0.3,), std=(0.4,), size=(32, 32))
NARROW = {"channels": (8, 8, 8, 16), "stem_width": 4}  # options of timm's test_resnet for the student


@dataclass(frozen=True, kw_only=True)
class TappedNet:
    """A network, and the layers at which losses compare it."""

    net: Net[Any]
    vector: Tap  # the input of its last layer, (batch, channels)
    before: Tap  # its last map before the ReLU, (batch, channels, positions...)
    norm: nn.Module  # the batch norm before that ReLU, from which OFD computes the margins
    maps: tuple[Tap, ...]  # (batch, channels, positions...), from shallow to deep
    classes: Tap | None = None  # (batch, classes, positions...), for a classifier that follows the pooling of a map

    def taps(self, name: str) -> Tap | tuple[Tap, ...] | None:
        """Return the tap or the taps of this name; None for the outputs, which need no tap."""
        if name == "outputs":
            return None
        if name == "classes" and self.classes is None:
            raise RecipeError(
                "this loss compares maps of classes, and the classifiers for ECGs take more than a map; take --data "
                "digits or another loss"
            )
        if name == "copies":
            return Tap(self.maps[-1].module, element=parts, channels_last=False)
        return self.maps[-1] if name == "last" else getattr(self, name)


def parts(maps: Tensor) -> Tensor:
    """Return the means of whole maps, and of three parts of them as their transformed copies, (batch, channels, 4)."""
    positions = maps.flatten(2)
    thirds = [third.mean(2) for third in positions.tensor_split(3, 2)]
    return torch.stack([positions.mean(2), *thirds], 2)


def recipe(
    loss: str = "soft_targets",
    data: Task = "digits",
    weight: float | None = None,
    epochs: int = 12,
    samples: int = 500,
) -> Recipe:
    """Return the experiment.

    loss: name of a registered loss; or simkd, mean_teacher, or none for the labels alone.
    data: what to learn.
    weight: weight of the loss, next to labels of weight 1; by default that of LOSSES in this file.
    epochs: number of epochs of each stage.
    samples: number of training samples; at most 1000 digits.
    """
    teacher = teacher_net(data)
    student_stage = Stage(student_objectives(loss, data, teacher, weight), training(epochs))
    stages = [student_stage]
    if teacher.net in student_stage.teachers:
        stages.insert(0, Stage({teacher.net: label_term(data)}, training(epochs)))
    return Recipe(data=digits(samples) if data == "digits" else ecgs(samples), schedule=stages)


def student_objectives(loss: str, data: Task, teacher: TappedNet, weight: float | None = None) -> dict[Net[Any], Any]:
    """Return the networks that the last stage trains, with their objectives."""
    sides, default = LOSSES.get(loss, (OUTPUTS, 1.0))
    if (loss, data) == ("sem_ckd", "ecg"):
        default = 40.0  # as in LRH-Net, arXiv:2204.08000
    weight = default if weight is None else weight
    if loss == "simkd":
        net = simkd_student(data, teacher)
        return {net: weight * net.module.match(teacher.net, teacher.maps[-1])}
    if loss in WITHOUT_TEACHER:
        return objectives_without_teacher(loss, data, weight)
    student = student_net(data)
    built = build_loss(loss, data, teacher)
    term = Match(teacher.net, built, student=student.taps(sides[0]), target=teacher.taps(sides[1]))
    soft_targets = [Match(teacher.net, SoftTargets(temperature=4.0))] if loss == "sem_ckd" else []
    return {student.net: sum(soft_targets, label_term(data) + weight * term)}


def objectives_without_teacher(loss: str, data: Task, weight: float) -> dict[Net[Any], Any]:
    """Return the objectives of students that learn from the labels, from themselves or from each other."""
    net = student_net(data).net
    if loss == "none":
        return {net: label_term(data)}
    if loss == "mean_teacher":
        soft_targets = SoftTargets.mutual() if data == "digits" else PerLabelSoftTargets()
        return {net: label_term(data) + weight * Match(Ema(net, decay=0.99), soft_targets)}
    if loss == "soft_targets_mutual":
        peer = student_net(data, "peer").net
        pairs = ((peer, net), (net, peer))
        return {net: label_term(data) + weight * Match(Peer(teacher), build_loss(loss, data)) for net, teacher in pairs}
    return {net: weight * Match(Past(net), build_loss(loss, data))}  # pskd, which includes the labels


def build_loss(name: str, data: Task, teacher: TappedNet | None = None) -> Loss:
    """Return the loss of this name, with the options that it requires here."""
    options: dict[str, dict[str, Any]] = {
        "crd": {"negatives": 512},  # its authors' 16384 are for 50,000 samples
        "ofd": {"norm": teacher.norm if teacher else None},
    }
    loss: Loss = kdkit.registry("losses")[name](**options.get(name, {}))
    if data == "ecg" and "hard_labels" in requirements_of(loss):
        alternatives = [per_label for per_label in PER_LABEL if per_label == f"per_label_{name}"] or PER_LABEL
        raise RecipeError(
            f"{name!r} needs one class per sample, and a record has several labels; "
            f"take --loss {' or '.join(alternatives)}"
        )
    return loss


def label_term(data: Task) -> Truth:
    """Return the term of the labels: one of ten classes, or each of 24 labels."""
    return Truth(nn.CrossEntropyLoss() if data == "digits" else nn.BCEWithLogitsLoss())


def training(epochs: int) -> Training:
    """Return the optimizer and the schedule of all stages."""
    lr_schedule = LRSchedule(OneCycleLR, interval="update", max_lr=5e-3)
    return Training(epochs=epochs, batch_size=32, optimizer=Optimizer(AdamW, lr=5e-3), lr_schedule=lr_schedule)


def teacher_net(data: Task) -> TappedNet:
    """Return the teacher: 373,370 parameters for digits, 558,884 for ECGs."""
    if data == "digits":
        return tapped_resnet("teacher")
    net = SEResNet(width=16)
    return TappedNet(
        net=Net("teacher", net, view=Leads(12)),
        vector=Tap(net.classifier, "input"),
        before=Tap(net.group4.block2.activation, "input"),
        norm=net.group4.block2.norm2,
        maps=(Tap(net.group2), Tap(net.group3), Tap(net.group4)),
    )


def student_net(data: Task, name: str = "student") -> TappedNet:
    """Return a student: 11,950 parameters for digits, 83,364 for ECGs."""
    if data == "digits":
        return tapped_resnet(name, **NARROW)
    net = LRHNet(leads=3)
    return TappedNet(
        net=Net(name, net, view=Leads(3)),
        vector=Tap(net.hidden, "input"),
        before=Tap(net.block3.activation, "input"),
        norm=net.block3.norm2,
        maps=(Tap(net.block1), Tap(net.block2), Tap(net.block3)),
    )


def simkd_student(data: Task, teacher: TappedNet) -> Net[SimKD]:
    """Return the student's body with the teacher's head; `kdkit check` shows the shapes of both."""
    module = teacher.net.module
    if data == "digits":
        body = timm_resnet(**NARROW, num_classes=0, global_pool="")
        head = nn.Sequential(module.global_pool, module.fc)
        return Net("student", SimKD(body, head, student_shape=(16, 4, 4), teacher_shape=(96, 4, 4)), view=PIXELS)
    simkd = SimKD(LRHNet(leads=3).body(), module.head(), student_shape=(64, 125), teacher_shape=(128, 16))
    return Net("student", simkd, view=Leads(3))


def tapped_resnet(name: str, **options: Any) -> TappedNet:
    """Return timm's small ResNet for digits, whose last maps have 4 x 4 positions."""
    net = timm_resnet(num_classes=10, **options)
    return TappedNet(
        net=Net(name, net, view=PIXELS),
        vector=Tap(net.fc, "input"),
        before=Tap(net.layer4[-1].act2, "input"),
        norm=net.layer4[-1].bn2,
        maps=(Tap(net.layer1), Tap(net.layer2), Tap(net.layer4)),
        classes=ClassifierTap(net.layer4, classifier=net.fc),
    )


def timm_resnet(**options: Any) -> Any:
    """Return timm's small ResNet; options: as in timm."""
    return kdkit.registry("models")["timm"]("test_resnet", in_chans=1, output_stride=8, **options)


def digits(samples: int) -> TorchData:
    """Return this many digits for training, 197 for validation, and 600 for testing."""
    if not 1 <= samples <= 1000:
        raise RecipeError(f"there are 1 to 1000 digits to train on; got --samples {samples}")
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16  # (samples, 1, 8, 8), from 0 to 1
    dataset = TensorDataset(images, torch.tensor(labels))
    train, validation, test = random_split(dataset, (1000, 197, 600), torch.Generator().manual_seed(0))
    return TorchData(Subset(train, range(samples)), validation, test, classes=list("0123456789"))


def ecgs(samples: int) -> Synthetic:
    """Return this many simulated records for training, a quarter as many for validation, and half for testing."""
    return Synthetic(train=samples, validation=max(1, samples // 4), test=max(1, samples // 2), length=500)
