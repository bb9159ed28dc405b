"""Create kdkit's loss from the options of a golden case: losses on features of one layer or of several."""

import torch
from torch import nn

from kdkit import BuildContext
from kdkit.losses import (
    CRD,
    CWD,
    HCL,
    MGD,
    NST,
    OFD,
    PKD,
    SRRL,
    VID,
    AttentionTransfer,
    Hint,
    PatientKD,
    ReviewKD,
    SemCKD,
    SquareHead,
)
from kdkit.losses.cross_layer import attention_weighted_mean, squared_error_per_sample
from kdkit.losses.margins import channel_margins

from .golden import Runner


def prepare(loss, student, target, context=None, teacher=None):
    """Return the loss, built for both sides, an array or a tuple of arrays each, in their precision."""
    student, target = (side if isinstance(side, tuple) else (side,) for side in (student, target))
    samples = len(student[0])
    context = context or BuildContext(classes=(), task="regression", samples=samples, ids=True)
    loss.build(tuple(tap.shape for tap in student), tuple(tap.shape for tap in target), context, teacher)
    return loss.to(student[0].dtype)


def load(module, arrays, names):
    """Copy the arrays of a case to a module's weights and buffers. Biases that the case does not list become zero."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for ours, theirs in names.items():
            if theirs in arrays:
                state[ours].copy_(arrays[theirs].reshape(state[ours].shape))
            elif ours.endswith("bias"):
                state[ours].zero_()


def with_norm(ours, theirs):
    """Return the names of a batch norm's weights and statistics, kdkit's to the case's."""
    pairs = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return {f"{ours}.{mine}": f"{theirs}_{name}" for mine, name in pairs.items()}


def sides(arrays, *prefixes):
    """Return one tuple per prefix with the arrays whose names start with it, sorted by name."""
    return tuple(tuple(arrays[name] for name in sorted(arrays) if name.startswith(f"{prefix}_")) for prefix in prefixes)


def with_mode(loss, hyper):
    """Return the loss in the batch norm mode of the case."""
    return loss.train("train" in hyper.get("bn_mode", "train"))


def hint(hyper):
    names = {"projector.channels.weight": "weight", "projector.channels.bias": "bias"}
    if "kernel" in hyper:
        names = {"projector.conv.weight": "conv_weight", "projector.conv.bias": "conv_bias"}
        names |= with_norm("projector.norm", "bn")

    def run(arrays):
        loss = prepare(Hint(kind="conv" if "kernel" in hyper else "linear"), arrays["student"], arrays["teacher"])
        if not isinstance(loss.projector, nn.Identity):
            load(loss, arrays, names)
        return with_mode(loss, hyper)(arrays["student"], arrays["teacher"])

    return Runner(run)


def simkd(hyper):
    names = {f"projector.{part}.weight": f"w{index}" for index, part in enumerate(("first", "middle", "last"), 1)}
    for index, part in enumerate(("first", "middle", "last"), 1):
        names |= with_norm(f"projector.{part}_norm", f"bn{index}")

    def run(arrays):
        loss = prepare(Hint(projector="always", kind="bottleneck"), arrays["student"], arrays["teacher"])
        load(loss, arrays, names)
        return with_mode(loss, hyper)(arrays["student"], arrays["teacher"])

    return Runner(run)


def vid(hyper):
    def run(arrays):
        loss = prepare(VID(hidden=len(arrays["w1"]), eps=hyper["eps"]), arrays["student"], arrays["teacher"])
        names = {"mean.0.weight": "w1", "mean.2.weight": "w2", "mean.4.weight": "w3", "scale": "log_scale"}
        load(loss, arrays, names)
        return loss(arrays["student"], arrays["teacher"])

    return Runner(run)


def mgd(hyper):
    names = {
        f"generator.{index}.{kind}": f"gen{number}_{kind}" for number, index in ((1, 0), (2, 2)) for kind in WEIGHTS
    }

    def run(arrays):
        loss = MGD(alpha=hyper["alpha"], mask=hyper["mask_kind"])
        loss = prepare(loss, arrays["student"], arrays["teacher"])
        loss.draw_mask = lambda features: arrays["mask"]
        align = {f"projector.channels.{kind}": f"align_{kind}" for kind in WEIGHTS} if hyper["align"] else {}
        load(loss, arrays, names | align)
        return loss(arrays["student"], arrays["teacher"])

    return Runner(run)


WEIGHTS = ("weight", "bias")


def ofd(hyper):
    if "rare_branch_threshold" in hyper:
        return Runner(margins_only)

    def run(arrays):
        connects = "bn_mode" in hyper
        loss = OFD(margin=0.0, factor=hyper["extra_factor"], projector="always" if connects else "never")
        loss = prepare(loss, arrays["student"], arrays["teacher"])
        names = {"margins": "margin"}
        load(
            loss,
            arrays,
            names | ({"connector.0.weight": "weight"} | with_norm("connector.1", "bn") if connects else {}),
        )
        return loss(arrays["student"], arrays["teacher"])

    return Runner(run)


def margins_only(arrays):
    computed = channel_margins(arrays["bn_weight"], arrays["bn_bias"])
    return (computed * arrays["dummy"]).sum(), {"out_margins": computed}


def reviewkd(hyper):
    grids = tuple(hyper["grid_sizes"])
    if "mid_channels" not in hyper:
        return Runner(lambda arrays: HCL(grids=grids)(*levels(arrays, hyper.get("levels"))))

    def run(arrays):
        depths = ("shallow", "deep")
        student, target = (tuple(arrays[f"{side}_{depth}"] for depth in depths) for side in ("student", "teacher"))
        loss = prepare(ReviewKD(width=hyper["mid_channels"], grids=grids), student, target)
        for index, depth in enumerate(depths):
            prefix, theirs = f"fusions.{index}", depth
            names = {
                f"{prefix}.narrow.weight": f"{theirs}_conv1_weight",
                f"{prefix}.widen.weight": f"{theirs}_conv2_weight",
            }
            names |= with_norm(f"{prefix}.narrow_norm", f"{theirs}_bn1") | with_norm(
                f"{prefix}.widen_norm", f"{theirs}_bn2"
            )
            if depth != "deep":
                names |= {f"{prefix}.attention.{kind}": f"{theirs}_att_{kind}" for kind in WEIGHTS}
            load(loss, arrays, names)
        return with_mode(loss, hyper)(student, target)

    return Runner(run)


def levels(arrays, count):
    return sides(arrays, "student", "teacher") if count else (arrays["student"], arrays["teacher"])


def semckd(hyper):
    return Runner(
        lambda arrays: (
            with_embeddings(arrays, hyper) if "embedding_width" in hyper else with_stored_attention(arrays, hyper)
        )
    )


def with_stored_attention(arrays, hyper):
    errors = [
        [
            squared_error_per_sample(arrays[f"student_{i}_{j}"], arrays[f"target_{i}_{j}"])
            for j in range(hyper["teacher_layers"])
        ]
        for i in range(hyper["student_layers"])
    ]
    return attention_weighted_mean(torch.stack([torch.stack(row, 1) for row in errors], 1), arrays["attention"])


def with_embeddings(arrays, hyper):
    student, target = sides(arrays, "student", "teacher")
    loss = SemCKD(
        batch_size=len(student[0]),
        width=hyper["embedding_width"],
        temperature=hyper["attention_temperature"],
        projector="never",
    )
    prepare(loss, student, target)
    for ours, theirs, count in (("queries", "query", len(student)), ("keys", "key", len(target))):
        for layer in range(count):
            names = {
                f"{ours}.{layer}.{index}.{kind}": f"{theirs}_{layer}_{kind[0]}{number}"
                for number, index in ((1, 0), (2, 2))
                for kind in WEIGHTS
            }
            load(loss, arrays, names)
    return loss(student, target), {"out_attention": loss.attend(student, target)}


def pkd(hyper):
    return PKD(eps=hyper["eps"]) if "eps" in hyper else PatientKD()


def srrl(hyper):
    def run(arrays):
        classifier = nn.Linear(*reversed(arrays["cls_weight"].shape))
        load(classifier, arrays, {"weight": "cls_weight", "bias": "cls_bias"})
        classifier = classifier.to(arrays["cls_weight"].dtype)
        load(classifier, arrays, {"weight": "cls_weight", "bias": "cls_bias"})
        target = (arrays["teacher"], arrays["teacher_logits"])
        loss = SRRL(classifier, feature=hyper["w_feature"], regression=hyper["w_regression"])
        loss = prepare(loss, arrays["student"], target)
        load(loss, arrays, {"connector.0.weight": "weight"} | with_norm("connector.1", "bn"))
        return with_mode(loss, hyper)(arrays["student"], target)

    return Runner(run)


def crd(hyper):
    def run(arrays):
        embeds = "embed_s_weight" in arrays
        loss = CRD(
            width=len(arrays["embed_s_weight"]) if embeds else None,
            negatives=hyper["negatives_K"],
            temperature=hyper["temperature"],
            momentum=hyper["memory_momentum"],
            samples=hyper["n_data"],
        )
        loss = prepare(loss, arrays["student"], arrays["teacher"])
        with torch.no_grad():
            loss.memories.copy_(torch.stack([arrays["memory_student"], arrays["memory_teacher"]]))
            if "Z" in arrays:
                loss.log_normalisers.copy_(arrays["Z"].log())
        if embeds:
            pairs = ((0, "s"), (1, "t"))
            load(
                loss,
                arrays,
                {f"embeddings.{index}.{kind}": f"embed_{side}_{kind}" for index, side in pairs for kind in WEIGHTS},
            )
        value = loss.contrast(arrays["student"], arrays["teacher"], arrays["contrast_index"])
        (student, teacher), (z_student, z_teacher) = loss.memories, loss.log_normalisers.exp()
        return value, {
            "out_memory_student_after": student,
            "out_memory_teacher_after": teacher,
            "out_Z_student": z_student,
            "out_Z_teacher": z_teacher,
        }

    return Runner(run)


LOSSES = {
    "fitnet": hint,
    "simkd": simkd,
    "at": lambda hyper: AttentionTransfer(p=hyper["p"]),
    "cwd": lambda hyper: CWD(temperature=hyper["temperature"], t_squared=hyper["multiply_T2"]),
    "nst": lambda hyper: NST(),
    "pkd": pkd,
    "squarehead": lambda hyper: SquareHead(),
    "vid": vid,
    "mgd": mgd,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "semckd": semckd,
    "srrl": srrl,
    "crd": crd,
}
