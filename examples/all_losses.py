"""Every loss on the shelf, by name: the same student learns from the same teacher, by the labels and one term more.

What tells one loss from the next is what it compares; the table below says that, and how the term is weighted. Digits
are learned by two of timm's networks, simulated ECGs by a SEResNet that sees twelve leads and an LRH-Net that sees
three. A loss of your own plugin is found by its name too, and compares outputs.

    kdkit run examples/all_losses.py --loss crd
    kdkit run examples/all_losses.py --loss sem_ckd --data ecg
    kdkit run examples/all_losses.py --loss none    (the labels alone, to compare with)
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Subset, TensorDataset, random_split

import kdkit
from kdkit import (
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
Sides = tuple[str, str]  # where the student is tapped, and where the teacher; see At

OUTPUTS: Sides = ("outputs", "outputs")
VECTOR: Sides = ("vector", "vector")
LAST: Sides = ("last", "last")
BEFORE: Sides = ("before", "before")
MAPS: Sides = ("maps", "maps")

# What a loss compares, and its weight beside labels of weight 1: that of the scripts of RepDistiller (R), SimKD (S) or
# mdistiller (M) where these have it, else 1, with the loss's own options, which are those of its paper or its code.
LOSSES: dict[str, tuple[Sides, float]] = {
    "soft_targets": (OUTPUTS, 9.0),  # R, M: 0.9 and 0.1
    "soft_targets_deit": (OUTPUTS, 1.0),
    "soft_targets_modelopt": (OUTPUTS, 1.0),
    "hard_targets": (OUTPUTS, 1.0),  # DeiT: half and half
    "logit_mse": (OUTPUTS, 1.0),
    "logit_standardisation": (OUTPUTS, 90.0),  # its authors: 9 and 0.1
    "dkd": (OUTPUTS, 1.0),  # M
    "nkd": (OUTPUTS, 1.0),
    "dist": (OUTPUTS, 1.0),
    "reverse_kl": (OUTPUTS, 1.0),
    "generalised_jsd": (OUTPUTS, 1.0),
    "per_label_soft_targets": (OUTPUTS, 1.0),
    "per_label_hard_targets": (OUTPUTS, 1.0),
    "per_label_dkd": (OUTPUTS, 1.0),
    "per_label_dist": (OUTPUTS, 1.0),
    "second_head": (("last", "outputs"), 1.0),  # the head is a part of the loss
    "rkd": (VECTOR, 1.0),  # R
    "sp": (LAST, 3000.0),  # R
    "pkt": (VECTOR, 30000.0),  # R
    "cc": (VECTOR, 1.0),
    "cka": (VECTOR, 1.0),
    "crd": (VECTOR, 0.8),  # R
    "srrl": (VECTOR, 1.0),  # S; what the classifier is given
    "hint": (LAST, 100.0),  # R
    "cosine": (LAST, 1.0),
    "square_head": (LAST, 1.0),
    "attention_transfer": (LAST, 1000.0),  # R
    "cwd": (LAST, 1.0),
    "nst": (LAST, 50.0),  # R
    "pkd": (LAST, 1.0),
    "vid": (LAST, 1.0),  # R
    "mgd": (LAST, 1.0),
    "ofd": (BEFORE, 1.0),
    "review_kd": (MAPS, 1.0),
    "sem_ckd": (MAPS, 400.0),  # S, with soft targets of weight 1 beside it
    # These have no projector, and of these two nets only the outputs are of one shape
    "adjacent_cc": (OUTPUTS, 0.02),  # R
    "patient_kd": (OUTPUTS, 100.0),  # its paper searches 10 to 1000
    "hcl": (OUTPUTS, 1.0),
}

ALONE = ("pskd", "per_label_pskd", "soft_targets_mutual", "mean_teacher", "none")  # from no teacher; see below
NAMES = (*LOSSES, *ALONE, "simkd")
PER_LABEL = [name for name in NAMES if name.startswith("per_label_")]
PIXELS = Images(mean=(0.3,), std=(0.4,), size=(32, 32))
NARROW = {"channels": (8, 8, 8, 16), "stem_width": 4}


@dataclass(frozen=True, kw_only=True)
class At:
    """A net, and where it is tapped."""

    net: Net[Any]
    vector: Tap  # what its last layers are given, (batch, channels)
    before: Tap  # its last map, before the ReLU
    norm: nn.Module  # the batch norm of its last layer, from which OFD takes the margins
    maps: tuple[Tap, ...]  # (batch, channels, positions...), from shallow to deep

    def taps(self, where: str) -> Tap | tuple[Tap, ...] | None:
        """Return the tap or the taps of this name; outputs need none."""
        if where == "outputs":
            return None
        return self.maps[-1] if where == "last" else getattr(self, where)


def recipe(
    loss: str = "soft_targets",
    data: Task = "digits",
    weight: float | None = None,
    epochs: int = 12,
    samples: int = 500,
) -> Recipe:
    """Return the experiment.

    loss: a name on the shelf of losses; or simkd, mean_teacher, or none for the labels alone.
    data: what is learned.
    weight: of the loss, beside labels of weight 1; that of the table in this file where not given.
    epochs: of each stage.
    samples: how many there are to learn from; at most 1000 digits.
    """
    teacher = large(data)
    lesson = Stage(student_goals(loss, data, teacher, weight), training(epochs))
    first = [Stage({teacher.net: truth(data)}, training(epochs))] if teacher.net in lesson.teachers else []
    return Recipe(data=digits(samples) if data == "digits" else ecg(samples), schedule=[*first, lesson])


def student_goals(loss: str, data: Task, teacher: At, weight: float | None = None) -> dict[Net[Any], Any]:
    """Return who is trained in the last stage, and toward what."""
    compared, usual = LOSSES.get(loss, (OUTPUTS, 1.0))
    usual = 40.0 if (loss, data) == ("sem_ckd", "ecg") else usual  # as in LRH-Net, arXiv:2204.08000
    weight = usual if weight is None else weight
    if loss == "simkd":
        net = reusing(data, teacher)
        return {net: weight * net.module.match(teacher.net, teacher.maps[-1])}
    if loss in ALONE:
        return without_teacher(loss, data, weight)
    student = small(data)
    ours, theirs = student.taps(compared[0]), teacher.taps(compared[1])
    term = Match(teacher.net, made(loss, data, teacher), student=ours, target=theirs)
    soft = [Match(teacher.net, SoftTargets(temperature=4.0))] if loss == "sem_ckd" else []
    return {student.net: sum(soft, truth(data) + weight * term)}


def without_teacher(loss: str, data: Task, weight: float) -> dict[Net[Any], Any]:
    """Return the goals of a student that learns from the labels, from itself or from one of its kind."""
    net = small(data).net
    if loss == "none":
        return {net: truth(data)}
    if loss == "mean_teacher":
        soft = SoftTargets.mutual() if data == "digits" else PerLabelSoftTargets()
        return {net: truth(data) + weight * Match(Ema(net, decay=0.99), soft)}
    if loss == "soft_targets_mutual":
        peer = small(data, "peer").net
        pairs = ((peer, net), (net, peer))
        return {one: truth(data) + weight * Match(Peer(other), made(loss, data)) for one, other in pairs}
    return {net: weight * Match(Past(net), made(loss, data))}  # pskd: the labels are in it


def made(name: str, data: Task, teacher: At | None = None) -> Loss:
    """Return the loss of this name, with the options that it cannot do without here."""
    options: dict[str, dict[str, Any]] = {
        "crd": {"negatives": 512},  # its authors' 16384 are for 50,000 samples
        "ofd": {"norm": teacher.norm if teacher else None},
    }
    loss: Loss = kdkit.registry("losses")[name](**options.get(name, {}))
    if data == "ecg" and "hard_labels" in requirements_of(loss):
        instead = [each for each in PER_LABEL if each == f"per_label_{name}"] or PER_LABEL
        raise RecipeError(
            f"{name!r} needs one class per sample, and a record has several labels; take --loss {' or '.join(instead)}"
        )
    return loss


def truth(data: Task) -> Truth:
    """Return what is learned from the labels: one class of ten, or an answer for each of 24."""
    return Truth(nn.CrossEntropyLoss() if data == "digits" else nn.BCEWithLogitsLoss())


def training(epochs: int) -> Training:
    """Return how each stage is trained."""
    rate = LRSchedule(OneCycleLR, interval="update", max_lr=5e-3)
    return Training(epochs=epochs, batch_size=32, optimizer=Optimizer(AdamW, lr=5e-3), lr_schedule=rate)


def large(data: Task) -> At:
    """Return the teacher: 373,370 parameters for digits, 558,884 for ECGs."""
    if data == "digits":
        return resnet("teacher")
    net = SEResNet(width=16)
    return At(
        net=Net("teacher", net, view=Leads(12)),
        vector=Tap(net.classifier, "input"),
        before=Tap(net.group4.block2.activation, "input"),
        norm=net.group4.block2.norm2,
        maps=(Tap(net.group2), Tap(net.group3), Tap(net.group4)),
    )


def small(data: Task, name: str = "student") -> At:
    """Return the student: 11,950 parameters for digits, 83,364 for ECGs."""
    if data == "digits":
        return resnet(name, **NARROW)
    net = LRHNet(leads=3)
    return At(
        net=Net(name, net, view=Leads(3)),
        vector=Tap(net.hidden, "input"),
        before=Tap(net.block3.activation, "input"),
        norm=net.block3.norm2,
        maps=(Tap(net.block1), Tap(net.block2), Tap(net.block3)),
    )


def reusing(data: Task, teacher: At) -> Net[SimKD]:
    """Return the student's body under the teacher's head; the shapes are those that `kdkit check` shows."""
    whole = teacher.net.module
    if data == "digits":
        body, head = timm(**NARROW, num_classes=0, global_pool=""), nn.Sequential(whole.global_pool, whole.fc)
        return Net("student", SimKD(body, head, given=(16, 4, 4), wanted=(96, 4, 4)), view=PIXELS)
    simkd = SimKD(LRHNet(leads=3).body(), whole.head(), given=(64, 125), wanted=(128, 16))
    return Net("student", simkd, view=Leads(3))


def resnet(name: str, **narrower: Any) -> At:
    """Return one of timm's for digits, whose last maps keep 4 x 4 positions."""
    net = timm(num_classes=10, **narrower)
    return At(
        net=Net(name, net, view=PIXELS),
        vector=Tap(net.fc, "input"),
        before=Tap(net.layer4[-1].act2, "input"),
        norm=net.layer4[-1].bn2,
        maps=(Tap(net.layer1), Tap(net.layer2), Tap(net.layer4)),
    )


def timm(**options: Any) -> Any:
    """Return timm's small network, with these options of its own."""
    return kdkit.registry("models")["timm"]("test_resnet", in_chans=1, output_stride=8, **options)


def digits(samples: int) -> TorchData:
    """Return so many digits to learn from, 197 to choose the epoch on, and 600 to report on."""
    if not 1 <= samples <= 1000:
        raise RecipeError(f"there are 1 to 1000 digits to learn from; got --samples {samples}")
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    everything = TensorDataset(images, torch.tensor(labels))
    first, validation, test = random_split(everything, (1000, 197, 600), torch.Generator().manual_seed(0))
    return TorchData(Subset(first, range(samples)), validation, test, classes=list("0123456789"))


def ecg(samples: int) -> Synthetic:
    """Return so many simulated records to learn from, a quarter as many to choose the epoch on, half to report on."""
    return Synthetic(train=samples, validation=max(1, samples // 4), test=max(1, samples // 2), length=500)
