"""Create kdkit's loss from the options of a golden case: losses on outputs, and on relations between samples."""

import torch
from torch import nn

from kdkit import Batch, BuildContext, Match, Net, Stage, Tap, Training, Truth
from kdkit.engine.stage.module import DistillationModule
from kdkit.losses import (
    CC,
    CKA,
    DIST,
    DKD,
    NKD,
    PKT,
    PSKD,
    RKD,
    SP,
    AdjacentCC,
    Cosine,
    GeneralisedJSD,
    HardTargets,
    LogitMSE,
    LogitStandardisation,
    PerLabelHardTargets,
    PerLabelPSKD,
    PerLabelSoftTargets,
    PerToken,
    ReverseKL,
    SoftTargets,
)
from kdkit.teachers import TeacherOutput

from .golden import Runner


def with_temperature(make, **options):
    """Return a function that creates a loss with the temperature of a case, with or without its square as a factor."""
    return lambda hyper: make(temperature=hyper["temperature"], t_squared=hyper["multiply_T2"], **options)


def logit_mse(hyper):
    return with_temperature(LogitMSE)(hyper) if hyper else LogitMSE()


def hard_label(hyper):
    if "threshold" in hyper:
        return PerLabelHardTargets(threshold=hyper["threshold"])
    if "alpha" not in hyper:
        return HardTargets()
    soft = "soft_term_divisor" in hyper
    return deit(SoftTargets.deit(temperature=hyper["temperature"]) if soft else HardTargets(), hyper["alpha"])


class TwoHeads(nn.Module):
    """A student with fixed logits at both heads; the second can be tapped."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second
        self.distilled = nn.Identity()

    def forward(self, _inputs):
        self.distilled(self.second)
        return self.first


def deit(loss, alpha):
    """Return a Runner of DeiT's objective for a student with two heads, written as in a recipe."""

    def run(arrays):
        teacher = Net("teacher", nn.Identity(), trained=True)
        student = Net("student", TwoHeads(arrays["student_class_head"], arrays["student_distill_head"]))
        second = Tap(student.module.distilled)
        objective = (1 - alpha) * Truth(nn.CrossEntropyLoss()) + alpha * Match(teacher, loss, student=second)
        labels, outputs = arrays["labels"], arrays["teacher"]
        context = BuildContext(
            classes=tuple(map(str, range(outputs.shape[1]))), task="multiclass", samples=len(labels), ids=True
        )
        module = DistillationModule(Stage({student: objective}, Training(epochs=1)), context)
        terms = module(Batch(torch.empty(len(labels), 0), labels), {"teacher": TeacherOutput(outputs, ())})
        weights = module.weights(0.0)
        return sum(weights[label] * term for label, term in terms.items())

    return Runner(run)


def dkd(hyper):
    return DKD(**hyper)


def nkd(hyper):
    return NKD(**hyper)


def dist(hyper):
    return DIST(
        inter=hyper["beta_inter"], intra=hyper["gamma_intra"], temperature=hyper["temperature"], eps=hyper["eps"]
    )


def standardised(hyper):
    return with_temperature(LogitStandardisation, eps=hyper["eps"])(hyper)


def gjsd(hyper):
    loss = with_temperature(GeneralisedJSD, beta=hyper["beta"])(hyper)

    def run(arrays):
        student, teacher = arrays["student"], arrays["teacher"]
        if "token_mask" not in arrays:
            return loss(student, teacher)
        labels = torch.where(arrays["token_mask"] > 0, 0, -100)
        return PerToken(loss)(student, teacher, labels=labels)

    return Runner(run)


def pskd(hyper):
    epochs = hyper["total_epochs"]
    progress = torch.tensor(hyper["epoch_zero_based"] / epochs, dtype=torch.float64)

    def run(arrays):
        labels = arrays["labels"]
        make = PerLabelPSKD if labels.is_floating_point() else PSKD
        loss = make(alpha=hyper["alpha_T"], epochs=epochs, past="probabilities")
        return loss(arrays["student"], arrays["past_probabilities"], labels=labels, progress=progress)

    return Runner(run)


def dml(hyper):
    loss = SoftTargets.mutual()
    if not hyper.get("peer_detached"):
        return loss

    def run(arrays):
        first, second = arrays["student_1"], arrays["student_2"]
        return loss(first, second.detach()) + loss(second, first.detach())

    return Runner(run)


def rkd(hyper):
    return RKD(distance=hyper["w_distance"], angle=hyper["w_angle"], normalise=hyper["l2_normalise_inputs"])


def cc(hyper):
    return CC(**hyper) if hyper else AdjacentCC()


LOSSES = {
    "kd": with_temperature(SoftTargets),
    "kl_no_t2": with_temperature(SoftTargets),
    "hard_label": hard_label,
    "bce_kd": with_temperature(PerLabelSoftTargets, entropy=True),
    "logit_mse": logit_mse,
    "dkd": dkd,
    "nkd": nkd,
    "dist": dist,
    "logit_standardization": standardised,
    "gjsd": gjsd,
    "reverse_kl": with_temperature(ReverseKL),
    "pskd": pskd,
    "dml": dml,
    "sp": lambda hyper: SP(),
    "rkd": rkd,
    "pkt": lambda hyper: PKT(eps=hyper["eps"]),
    "cc": cc,
    "cosine": lambda hyper: Cosine(axis=hyper["axis"]),
    "cka": lambda hyper: CKA(unbiased=hyper["estimator"].startswith("unbiased")),
}
