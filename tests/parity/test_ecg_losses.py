"""Compare further objectives of LRH-Net's authors (FitNet, cross-layer, PS-KD) and their decision rule."""

import json
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdkit import BuildContext, Predictions
from kdkit.losses import PerLabelPSKD, SemCKD, SoftTargets
from kdkit.metrics import FixedThresholds
from kdkit_ecg import ChallengeMetric
from kdkit_ecg.labels import scored_classes

PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-5)]
in_both = pytest.mark.parametrize(("precision", "rtol"), PRECISIONS, ids=["fp64", "fp32"])


@cache
def load_index(shared):
    return json.loads((shared / "golden/ecg/losses.json").read_text())


def load_arrays(shared, kind, case, precision):
    with np.load(shared / "golden/ecg/losses.npz", allow_pickle=False) as file:
        prefix = f"{kind}/{case}/"
        arrays = {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file.files if key.startswith(prefix)}
    return {key: array.to(precision) if array.is_floating_point() else array for key, array in arrays.items()}


def assert_agrees(value, expected, gradients, rtol):
    assert value.item() == pytest.approx(expected.item(), rel=rtol)
    for gradient, golden in gradients:
        assert (gradient - golden).abs().max() <= rtol * golden.abs().max()


@in_both
@pytest.mark.parametrize("case", ["typical", "single_record"])
def test_fitnet_as_coded_is_soft_targets_between_projected_features(shared, case, precision, rtol):
    arrays = load_arrays(shared, "fitnet", case, precision)
    logits, feature = (arrays[name].requires_grad_() for name in ("student_logits", "student_feature"))
    soft = SoftTargets(temperature=7.0, t_squared=False)
    hard = F.binary_cross_entropy_with_logits(logits, arrays["labels"].to(precision))
    loss = 0.3 * hard + 0.35 * soft(feature, arrays["projected_teacher_feature"])
    loss = loss + 0.35 * soft(logits, arrays["teacher_logits"])
    gradients = torch.autograd.grad(loss, [logits, feature])
    assert_agrees(
        loss, arrays["loss"], zip(gradients, (arrays["grad_logits"], arrays["grad_feature"]), strict=True), rtol
    )


@in_both
@pytest.mark.parametrize("case", ["small", "reference_like_lengths"])
def test_cross_layer_distillation_equals_the_authors(shared, case, precision, rtol):
    arrays = load_arrays(shared, "semckd", case, precision)
    student, target = (layers(arrays, f"{side}_feature") for side in ("student", "teacher"))
    cross = with_authors_weights(arrays, student, target, precision)
    logits = arrays["student_logits"].requires_grad_()
    for layer in student:
        layer.requires_grad_()
    term = cross(student, target)
    hard = F.binary_cross_entropy_with_logits(logits, arrays["labels"].to(precision))
    loss = hard + SoftTargets(temperature=4.0)(logits, arrays["teacher_logits"]) + 40 * term
    assert term.item() == pytest.approx(arrays["semckd_term"].item(), rel=rtol)
    torch.testing.assert_close(cross.attend(student, target), arrays["attention"], rtol=rtol * 10, atol=rtol)
    golden = [arrays["grad_logits"], *(arrays[f"grad_student_feature{index}"] for index in range(len(student)))]
    gradients = torch.autograd.grad(loss, [logits, *student])
    assert_agrees(
        loss, arrays["loss"], zip(gradients, golden, strict=True), rtol if precision is torch.float64 else 1e-4
    )


def layers(arrays, prefix):
    """Return the arrays with numbered names, in their order."""
    return tuple(arrays[f"{prefix}{index}"] for index in range(sum(name.startswith(prefix) for name in arrays)))


def with_authors_weights(arrays, student, target, precision):
    """Return the loss with the authors' weights: the embedding of each layer, and the projector of each pair."""
    width = len(arrays["state/query_weight0.linear2.bias"])
    loss = SemCKD(batch_size=len(student[0]), width=width)
    context = BuildContext(classes=(), task="multilabel", samples=len(student[0]), ids=True)
    loss.build(tuple(layer.shape for layer in student), tuple(layer.shape for layer in target), context, None)
    state = {}
    for ours, theirs, count in (("queries", "query", len(student)), ("keys", "key", len(target))):
        for layer in range(count):
            for index, linear in ((0, "linear1"), (2, "linear2")):
                for kind in ("weight", "bias"):
                    state[f"{ours}.{layer}.{index}.{kind}"] = arrays[f"state/{theirs}_weight{layer}.{linear}.{kind}"]
    parts = {"first": 0, "first_norm": 1, "middle": 3, "middle_norm": 4, "last": 6}
    for pair, (i, j) in enumerate(product(range(len(student)), range(len(target)))):
        for part, number in parts.items():
            for kind in ("weight", "bias"):
                key = f"state/regressor{i}{j}.regressor.{number}.{kind}"
                if key in arrays:
                    state[f"projectors.{pair}.{part}.{kind}"] = arrays[key]
    loss = loss.to(precision).train()
    shapes = {key: value.shape for key, value in loss.state_dict().items()}
    for pair in range(len(loss.projectors)):
        # the authors' projector has no bias in its last layer
        state[f"projectors.{pair}.last.bias"] = torch.zeros(shapes[f"projectors.{pair}.last.bias"], dtype=precision)
    missing, unexpected = loss.load_state_dict(
        {key: value.reshape(shapes[key]) for key, value in state.items()}, strict=False
    )
    assert not unexpected
    assert all("running" in key or "num_batches" in key for key in missing)
    return loss


@in_both
@pytest.mark.parametrize("case", ["epoch0_of_5", "epoch1_of_5", "epoch4_of_5", "epoch0_of_90", "epoch45_of_90"])
def test_ps_kd_mixes_labels_with_the_last_epoch(shared, case, precision, rtol):
    (entry,) = (item for item in load_index(shared)["pskd"] if item["case"] == case)
    arrays = load_arrays(shared, "pskd", case, precision)
    labels, past = arrays["labels"].to(precision), arrays["previous_probabilities"]
    logits = arrays["student_logits"].requires_grad_()
    # The notebook multiplies the share again in each epoch, so it shrinks; in the first epoch its past is the labels.
    share = entry["alpha_notebook_compounding"] if entry["epoch"] else 0.0
    progress = torch.tensor(1.0, dtype=precision)
    loss = PerLabelPSKD(alpha=share, past="probabilities")(logits, past, labels=labels, progress=progress)
    torch.testing.assert_close((1 - share) * labels + share * past, arrays["soft_targets"], rtol=rtol, atol=rtol)
    (gradient,) = torch.autograd.grad(loss, [logits])
    assert_agrees(loss, arrays["loss"], [(gradient, arrays["grad_logits"])], rtol)


def test_the_weight_of_the_past_grows_linearly_with_epochs(shared):
    for entry in load_index(shared)["pskd"]:
        epoch, epochs = entry["epoch"], entry["max_epoch"]
        loss = PerLabelPSKD(alpha=0.8, epochs=epochs, past="probabilities")
        logits, past, labels = (torch.full((1, 1), number, dtype=torch.float64) for number in (0.0, 1.0, 0.0))
        logits.requires_grad_()
        value = loss(logits, past, labels=labels, progress=torch.tensor(epoch / epochs, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(value, [logits])  # sigmoid(0) minus the mixture of label 0 and past 1
        assert 0.5 - gradient.item() == pytest.approx(entry["alpha_linear_schedule_own"], rel=1e-6)


@pytest.mark.parametrize(
    "case",
    ["threshold_0.5", "per_class_thresholds", "nothing_over_threshold", "all_over_threshold", "only_normal_labels"],
)
def test_a_class_is_predicted_above_its_threshold_or_if_it_is_the_highest(shared, case):
    (entry,) = (item for item in load_index(shared)["decision_rule"]["cases"] if item["case"] == case)
    arrays = load_arrays(shared, "decision", case, torch.float64)
    order = [
        load_index(shared)["decision_rule"]["class_order_sorted"].index(code) for code in scored_classes(2020).codes
    ]
    labels, probabilities, thresholds = (
        arrays[name].numpy()[..., order] for name in ("labels", "probabilities", "thresholds")
    )
    outputs = torch.logit(torch.from_numpy(probabilities)).numpy()
    predictions = Predictions(labels=labels, outputs=outputs, classes=scored_classes(2020).names)
    fixed = FixedThresholds(tuple(torch.logit(torch.from_numpy(thresholds)).tolist()))
    value = ChallengeMetric(2020, add_highest=True, thresholds_by=fixed).fit(predictions).compute(predictions).value
    # If "normal" for all records is as good as the truth, the 2020 scorer gives NaN; that of 2021, like ours, gives 0.
    assert value == pytest.approx(entry["metric"] or 0.0, rel=1e-9)
