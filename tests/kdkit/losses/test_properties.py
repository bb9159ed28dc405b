"""Properties of all losses for random shapes and numbers: finite or a helpful error, invariances, and bounds."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import BuildContext, RecipeError, registry
from kdkit.losses import BuildableLoss, catalog, extra_kwargs_of, loss_name

with_examples = settings(max_examples=24, derandomize=True, deadline=None, database=None)
with_few_examples = settings(with_examples, max_examples=8)

LOSSES = [*map(loss_name, (*catalog.ON_OUTPUTS, *catalog.PER_LABEL)), *catalog.PRESETS]
LOSSES += [loss_name(make) for make in (*catalog.ON_RELATIONS, *catalog.ON_FEATURES)]
PER_LABEL = [*map(loss_name, catalog.PER_LABEL)]
ON_OUTPUTS = [name for name in LOSSES[: LOSSES.index("rkd")] if name != "second_head"]
TAPS = {"fsp": 2, "kdsvd": 2}  # of losses that compare several layers of a network: the same layer so many times
OPTIONS = {"crd": {"negatives": 16, "width": 4}, "sem_ckd": {"width": 4}}  # smaller, to save time
HELPFUL_MESSAGES = r"Hint\(\)|SecondHead\(\)|PerToken\(|a projector maps|cannot be rearranged|tap a layer before"
HELPFUL_MESSAGES += "|needs two; got one|compares taps in pairs|compares successive taps|tap both as maps"

SIZES, CHANNELS, POSITIONS = st.integers(1, 6), st.integers(1, 9), st.lists(st.integers(1, 7), max_size=3)
# Scales whose squares or quotients overflow or underflow a float32.
SCALES = (0.0, 1e-38, 1e-30, 1e-20, 1e-12, 1e-6, 1.0, 1e4)
FILLS = st.sampled_from([*SCALES, "a scale per number", "a scale per sample", "constant"])


@st.composite
def shapes(draw):
    """Draw the shapes of a student and a target without the batch: equal, or different in one respect or in all."""
    student = [draw(CHANNELS), *draw(POSITIONS)]
    second = [draw(CHANNELS), *draw(POSITIONS)]
    resized = [draw(st.integers(1, 7)) for _ in student[1:]]
    target = draw(
        st.sampled_from([student, [second[0], *student[1:]], [student[0], *resized], [student[0], *second[1:]], second])
    )
    return tuple(student), tuple(target)


@st.composite
def sides(draw, shape=None):
    """Draw a student and a target, (batch, ...), and a generator for further random numbers."""
    batch, seed = draw(SIZES), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    student, target = (shape, shape) if shape else draw(shapes())
    ours, theirs = (fill_tensor((batch, *dimensions), draw(FILLS), generator) for dimensions in (student, target))
    if student == target and draw(st.integers(0, 4)) == 0:
        theirs = ours.clone()
    return ours, theirs, generator


def fill_tensor(shape, fill, generator):
    numbers = torch.randn(shape, generator=generator)
    if isinstance(fill, float):
        return numbers * fill
    if fill == "constant":
        return numbers.flatten()[0].expand(shape).clone()
    scales_shape = shape if fill == "a scale per number" else (shape[0], *[1] * (len(shape) - 1))
    return numbers * torch.tensor(SCALES)[torch.randint(len(SCALES), scales_shape, generator=generator)]


def build_loss(name, student, target):
    """Return a new registered loss, built for a batch of four and these taps."""
    loss = registry("losses")[name](**OPTIONS.get(name, {}))
    classes, channels = student[0].shape[1], target[0].shape[1]
    if isinstance(loss, BuildableLoss):
        task = "multilabel" if name in PER_LABEL else "multiclass"
        context = BuildContext(classes=tuple(map(str, range(classes))), task=task, samples=12, ids=True)
        teacher = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels)).eval()
        loss.build(
            *(tuple(torch.Size((4, *tap.shape[1:])) for tap in side) for side in (student, target)), context, teacher
        )
    return loss


def value(name, student, target, labels=None, seed=0):
    """Return the value of a new registered loss, with one layer on each side."""
    generator = torch.default_generator.manual_seed(seed)
    taps = tuple((side,) * TAPS.get(name, 1) for side in (student, target))
    loss = build_loss(name, *taps)
    classes, task = student.shape[1], "multilabel" if name in (*PER_LABEL, "led") else "multiclass"
    if labels is None:
        # the labels of LED are the outputs of the teacher's classifier, as many as the teacher has channels
        shape, options = ((len(student), target.shape[1]), 2) if task == "multilabel" else (student.shape[:1], classes)
        labels = torch.randint(options, shape, generator=generator)
    labels = labels.float() if task == "multilabel" else labels
    kwargs = {"labels": labels, "ids": torch.arange(len(student)), "progress": torch.tensor(0.5)}
    sides = taps if name in TAPS else (student, target)
    return loss(*sides, **{key: kwargs[key] for key in extra_kwargs_of(loss)})


def assert_close(actual, expected, rtol=1e-3, atol=1e-4):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def assert_finite_or_helpful(compute, *students):
    for student in students:
        student.requires_grad_()
    try:
        result = compute()
    except RecipeError as error:
        if not re.search(HELPFUL_MESSAGES, str(error)):
            raise AssertionError(f"the message does not suggest a remedy: {error}") from error
        return
    assert result.ndim == 0
    assert result.isfinite()
    result.backward()
    assert all(student.grad.isfinite().all() for student in students)


@pytest.mark.parametrize("name", LOSSES)
@with_examples
@given(inputs=sides())
def test_features_of_any_shapes_and_scales_give_a_finite_value_or_a_helpful_error(name, inputs):
    student, target, generator = inputs
    assert_finite_or_helpful(lambda: value(name, student, target, seed=generator.initial_seed()), student)


@pytest.mark.parametrize("name", ON_OUTPUTS)
@with_examples
@given(inputs=CHANNELS.flatmap(lambda classes: sides(shape=(classes,))))
def test_outputs_of_any_size_give_a_finite_value(name, inputs):
    student, target, generator = inputs
    assert_finite_or_helpful(lambda: value(name, student, target, seed=generator.initial_seed()), student)


@pytest.mark.parametrize("name", ["sp", "hcl", "patient_kd", "review_kd", "sem_ckd", "mini_lm", "fsp", "kdsvd"])
@with_examples
@given(layers=st.lists(shapes(), min_size=1, max_size=4), batch=SIZES, fills=st.tuples(FILLS, FILLS), odd=st.booleans())
def test_layers_of_any_shapes_and_numbers_give_a_finite_value_or_a_helpful_error(name, layers, batch, fills, odd):
    generator = torch.default_generator.manual_seed(len(layers))
    ours, theirs = (
        tuple(fill_tensor((batch, *dimensions), fill, generator) for dimensions in side)
        for side, fill in zip(zip(*layers, strict=True), fills, strict=True)
    )
    theirs += theirs[:1] if odd else ()
    assert_finite_or_helpful(lambda: build_loss(name, ours, theirs)(ours, theirs), *ours)


def outputs(batch, classes, seed):
    """Return moderate logits of both sides, class indices and multi-label labels."""
    generator = torch.Generator().manual_seed(seed)
    student, target = (3 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    single = torch.randint(classes, (batch,), generator=generator)
    return student, target, single, torch.randint(2, (batch, classes), generator=generator)


BATCHES, CLASSES, SEEDS = st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31)
drawn_outputs = st.builds(outputs, BATCHES, CLASSES, SEEDS)

OF_PROBABILITIES = ["soft_targets", "reverse_kl", "generalised_jsd", "dkd", "nkd", "dist", "hard_targets"]
OF_PROBABILITIES += ["logit_standardisation", "margin_mse", "pskd", "ofa", *catalog.PRESETS]
ON_TOKENS = ["skew_kl", "skew_reverse_kl", "adaptive_kl", "alpha_beta_divergence", "total_variation", "uld"]
OF_PROBABILITIES += [*ON_TOKENS, "ttm", "wttm", "wsld", "mlld", "rld", "ctkd"]
ON_TOKENS += ["reverse_kl", "generalised_jsd"]


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@with_few_examples
@given(inputs=drawn_outputs, shift=st.floats(-20, 20))
def test_a_constant_added_to_all_logits_changes_nothing(name, inputs, shift):
    student, target, labels, _ = inputs
    shifts = shift * torch.arange(len(student))[:, None]
    assert_close(value(name, student + shifts, target - shifts, labels), value(name, student, target, labels))


@pytest.mark.parametrize("name", ON_OUTPUTS)
@with_few_examples
@given(inputs=drawn_outputs, seed=SEEDS)
def test_the_order_of_classes_changes_nothing(name, inputs, seed):
    student, target, single, several = inputs
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    labels = several if name in PER_LABEL else single
    moved = several[:, order] if name in PER_LABEL else order.argsort()[single]
    assert_close(value(name, student[:, order], target[:, order], moved), value(name, student, target, labels))


# SKD divides by the covariance of as many relations as there are samples; in MLLD the relations of a larger batch weigh
# more, as in its paper.
@pytest.mark.parametrize("name", [name for name in ON_OUTPUTS if name not in ("skd", "mlld")])
@with_few_examples
@given(inputs=drawn_outputs)
def test_repeating_a_batch_does_not_change_the_value(name, inputs):
    student, target, single, several = inputs
    labels = several if name in PER_LABEL else single
    doubled = [torch.cat([tensor, tensor]) for tensor in (student, target, labels)]
    assert_close(value(name, *doubled), value(name, student, target, labels))


@pytest.mark.parametrize("name", [name for name in OF_PROBABILITIES if name not in ON_TOKENS])
def test_tokens_are_refused_by_losses_on_classes(name):
    with pytest.raises(RecipeError, match=r"compares outputs \(batch, classes\); got \(2, 4, 3\); PerToken\(loss\)"):
        value(name, torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.int64))


def test_all_zero_teacher_features_leave_the_plain_squared_error():
    student = torch.randn(3, 2, 4)
    assert_close(value("square_head", student, torch.zeros(3, 2, 4)), student.square().sum())


BOUNDS = {"generalised_jsd": (0, math.log(2)), "dist": (0, 4), "per_label_dist": (0, 4)}
BOUNDS |= dict.fromkeys(
    ["ofa", "skd", "soft_targets", "soft_targets_mutual", "logit_standardisation", "dkd"], (0, math.inf)
)
BOUNDS |= dict.fromkeys(["reverse_kl", "per_label_dkd", "per_label_soft_targets"], (0, math.inf))
BOUNDS |= dict.fromkeys(["adaptive_kl", "ttm", "wttm", "wsld", "mlld", "rld", "taid", "ctkd"], (0, math.inf))
BOUNDS |= dict.fromkeys(["per_label_alpha_beta_divergence", "per_label_mlld", "per_label_rld"], (0, math.inf))
BOUNDS |= {"skew_kl": (0, math.log(10)), "skew_reverse_kl": (0, math.log(10)), "alpha_beta_divergence": (0, 4)}
BOUNDS |= {"total_variation": (0, 1), "uld": (0, 2)}


@pytest.mark.parametrize("name", BOUNDS)
@with_few_examples
@given(inputs=drawn_outputs)
def test_divergences_stay_within_their_bounds(name, inputs):
    student, target, single, several = inputs
    result = value(name, student, target, several if name in PER_LABEL else single).item()
    assert BOUNDS[name][0] - 1e-5 <= result <= BOUNDS[name][1] + 1e-5


def features(batch, channels, positions, seed):
    """Return moderate features of one shape for both sides."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, channels, *positions, generator=generator) for _ in range(2))


drawn_features = st.builds(
    features, st.integers(3, 6), st.integers(2, 5), st.lists(st.integers(2, 4), min_size=1, max_size=3), SEEDS
)
RELATIONS = ["rkd", "sp", "pkt", "cc", "cka"]
BY_DIRECTION = ["attention_transfer", "nst", "cosine", "patient_kd", "pkd", "dist_plus", "info_nce", "ickd"]
BY_DIRECTION += ["kdsvd"]
BY_ENTRY = ["fsp", "hint", "square_head", "hcl", "cwd", "adjacent_cc", "wkdf", "mini_lm"]
ON_FEATURES = [*RELATIONS, *BY_DIRECTION, *BY_ENTRY]


@pytest.mark.parametrize("name", [*RELATIONS, *BY_DIRECTION, "catkd", "logit_standardisation"])
@with_few_examples
@given(inputs=drawn_features, factors=st.tuples(*[st.floats(0.1, 100)] * 2))
def test_the_scale_of_either_side_changes_nothing(name, inputs, factors):
    student, target = inputs
    if name == "logit_standardisation":
        student, target = student.flatten(1), target.flatten(1)
    assert_close(value(name, factors[0] * student, factors[1] * target), value(name, student, target))


@pytest.mark.parametrize("name", RELATIONS)
@with_few_examples
@given(inputs=drawn_features, power=st.integers(-9, 9))
def test_relations_are_the_same_for_very_small_and_very_large_features(name, inputs, power):
    student, target = inputs
    if name == "pkt" and power < -4:
        return  # it adds its eps to lengths, as in the authors' code
    assert_close(value(name, 10.0**power * student, target), value(name, student, target))


@pytest.mark.parametrize(
    "name",
    [*(name for name in ON_FEATURES if name != "adjacent_cc"), "vid", "ofd", "srrl", "srd", "catkd", "ab", "ft", "pad"],
)
@with_few_examples
@given(inputs=drawn_features, seed=SEEDS)
def test_the_order_of_samples_changes_nothing(name, inputs, seed):
    student, target = inputs
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    assert_close(value(name, student[order], target[order]), value(name, student, target))


@pytest.mark.parametrize("name", [*ON_FEATURES, "catkd"])
@with_few_examples
@given(inputs=drawn_features, seed=SEEDS)
def test_the_order_of_channels_changes_nothing(name, inputs, seed):
    student, target = inputs
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    theirs = torch.arange(len(order)) if name in (*RELATIONS, "attention_transfer", "nst", "mini_lm") else order
    assert_close(value(name, student[:, order], target[:, theirs]), value(name, student, target))


@pytest.mark.parametrize("name", [name for name in ON_FEATURES if name != "hcl"])
@with_few_examples
@given(inputs=drawn_features, seed=SEEDS)
def test_the_order_of_positions_changes_nothing(name, inputs, seed):
    student, target = (side.flatten(2) for side in inputs)
    order = torch.randperm(student.shape[2], generator=torch.Generator().manual_seed(seed))
    assert_close(value(name, student[:, :, order], target[:, :, order]), value(name, student, target))


@pytest.mark.parametrize("name", ["rkd", "cka"])
@with_few_examples
@given(inputs=drawn_features, seed=SEEDS)
def test_rotations_and_shifts_change_nothing(name, inputs, seed):
    student, target = (side.flatten(1) for side in inputs)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(student.shape[1], student.shape[1], generator=generator))
    shift = torch.randn(student.shape[1], generator=generator)
    assert_close(value(name, student @ rotation + shift, target), value(name, student, target), atol=1e-3)


SYMMETRIC = ["rkd", "sp", "cc", "cka", "adjacent_cc", "hint", "cosine", "hcl", "patient_kd", "pkd"]
SYMMETRIC += [
    "fsp",
    "ickd",
    "attention_transfer",
    "nst",
    "logit_mse",
    "dist",
    "generalised_jsd",
    "dist_plus",
    "wkdf",
    "catkd",
]
SYMMETRIC += ["alpha_beta_divergence", "per_label_alpha_beta_divergence", "total_variation", "uld", "margin_mse"]
SYMMETRIC += ["fsp", "ickd"]


@pytest.mark.parametrize("name", SYMMETRIC)
@with_few_examples
@given(inputs=drawn_features)
def test_distances_are_symmetric(name, inputs):
    student, target = (side.flatten(1) for side in inputs) if name in ON_OUTPUTS else inputs
    assert_close(value(name, student, target), value(name, target, student))


@pytest.mark.parametrize(
    ("name", "most"),
    [("cosine", 2.0), ("cka", 1.0), ("patient_kd", 4.0), ("nst", 2.0), ("dist_plus", 4.0), ("ickd", 4.0)],
)
@with_few_examples
@given(inputs=drawn_features)
def test_distances_of_directions_stay_within_their_bounds(name, most, inputs):
    assert -1e-5 <= value(name, *inputs).item() <= most + 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "hint",
        "cosine",
        "square_head",
        "distil_hubert",
        "vid",
        "mgd",
        "ofd",
        "review_kd",
        "sem_ckd",
        "srrl",
        "srd",
        "dist_plus",
        "ab",
        "ft",
        "pad",
    ],
)
@with_few_examples
@given(inputs=sides())
def test_losses_with_projectors_accept_any_map_of_as_many_dimensions(name, inputs):
    student, target, _ = inputs
    if student.ndim != target.ndim:
        target = target.flatten(2).mean(2) if target.ndim > 2 else target
    assert value(name, student, target).isfinite()


# Numbers on one side or both without a spread, a norm or a distance, and large ones.
CHANGES = {
    "equal samples": lambda side: side[:1].expand_as(side),
    "constant samples": lambda side: side.flatten(1)[:, :1].expand(len(side), side[0].numel()).reshape(side.shape),
    "one constant sample": lambda side: torch.cat([torch.full_like(side[:1], 0.7), side[1:]]),
    "one zero sample": lambda side: torch.cat([torch.zeros_like(side[:1]), side[1:]]),
    "equal numbers": lambda side: torch.full_like(side, 2.0),
    "zeros": torch.zeros_like,
    "nearly equal": lambda side: 1 + 1e-3 * side,
    "below the normal numbers of fp16": lambda side: 3e-7 * side,
    "rounded to zero in fp16": lambda side: 1e-8 * side,
    "tiny": lambda side: 1e-30 * side,
    "large": lambda side: (1e4 if side.ndim == 2 else 1e3) * side.sign(),  # logits, or features
    "one number of 6e4": lambda side: torch.cat([side.new_tensor([6e4]), side.flatten()[1:]]).reshape(side.shape),
    "constants of 1e4": lambda side: torch.full_like(side, 1e4),
    "constants of -1e4": lambda side: torch.full_like(side, -1e4),
    "constant channels of 1e4 and -1e4": lambda side: (
        1e4 * side.sign()[:, :, *[slice(1)] * (side.ndim - 2)].expand_as(side)
    ),
}
# Near the end of the range of fp16, at 65504, which the sums of a projector in fp16 exceed.
LARGEST = {
    "constants of 6e4": lambda side: torch.full_like(side, 6e4),
    "constants of -6e4": lambda side: torch.full_like(side, -6e4),
}
# Their gradients are powers of the features, which for large ones are beyond the range of fp16 in float32 too.
POWERS = ("fsp", "pad")
PRECISIONS = [torch.float16, torch.bfloat16, torch.float32]


def has_weights(loss):
    return isinstance(loss, nn.Module) and any(True for _ in loss.parameters())


# The suite has time for the precision with the smallest range.
@pytest.mark.parametrize(
    "precision",
    [pytest.param(precision, marks=[pytest.mark.slow] * (precision != torch.float16)) for precision in PRECISIONS],
    ids=["fp16", "bf16", "fp32"],
)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "second_head"])
def test_degenerate_numbers_give_a_finite_gradient_in_the_precision_of_the_student(name, precision):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 5) if name in ON_OUTPUTS else (4, 5, 6)
    sides = [torch.randn(shape, generator=generator) for _ in range(2)]
    # The float32 weights of a projector take half precision under autocast only.
    uses_autocast = has_weights(build_loss(name, *(sides[index : index + 1] * TAPS.get(name, 1) for index in (0, 1))))
    changes = CHANGES if uses_autocast else CHANGES | LARGEST
    for (change, changed_side), changed in itertools.product(changes.items(), ([0], [1], [0, 1])):
        student, target = (
            (changed_side(side) if index in changed else side).clone().to(precision) for index, side in enumerate(sides)
        )
        student.requires_grad_()
        with torch.autocast("cpu", precision, enabled=uses_autocast and precision != torch.float32):
            result = value(name, student, target)
        result.backward()
        assert result.isfinite(), (change, changed)
        if name not in POWERS or max(side.abs().max() for side in (student, target)) < 1e3:
            assert student.grad.isfinite().all(), (change, changed)


def compares_float32_to_float64():
    """Whether torch has the gradient of such a comparison; 2.10 does not."""
    try:
        nn.functional.mse_loss(torch.ones(1, requires_grad=True), torch.ones(1).double()).backward()
    except RuntimeError:
        return False
    return True


OTHER_PRECISIONS = (torch.bfloat16, *([torch.float64] if compares_float32_to_float64() else []))
PRECISIONS_OF_SIDES = [(torch.float32, precision) for precision in OTHER_PRECISIONS]
PRECISIONS_OF_SIDES += [(student, target) for target, student in PRECISIONS_OF_SIDES]


# Other losses on outputs cast each side for itself.
@pytest.mark.parametrize("name", ["second_head", "rld", *LOSSES[LOSSES.index("rkd") :]])
def test_networks_of_any_precision_are_compared_without_autocast(name):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 5)] * 2 if name in ON_OUTPUTS else [(4, 5, 4), (4, 6, 4)]
    shapes = [(4, 5, 4)] * 2 if name in ("adjacent_cc", "hcl", "patient_kd", "sdd", "catkd") else shapes
    shapes = [(4, 5, 4), (4, 6)] if name == "second_head" else shapes
    # numbers that all precisions represent
    sides = [torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes]
    expected = value(name, *sides)
    for student_precision, target_precision in PRECISIONS_OF_SIDES:
        student, target = sides[0].to(student_precision, copy=True).requires_grad_(), sides[1].to(target_precision)
        result = value(name, student, target)
        # the layers of a network in bf16 are pooled in bf16
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=1e-3, check_dtype=False)
        result.backward()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "second_head"])
def test_a_student_that_is_not_a_number_is_not_hidden(name):
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, *((4, 5) if name in ON_OUTPUTS else (4, 5, 6)), generator=generator)
    student[1] = math.nan
    assert value(name, student, target).isnan()


def test_rkd_has_a_finite_gradient_for_samples_of_very_different_scales():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1e-12, 0.0, 1e4])[:, None]
    student = (torch.randn(3, 14, generator=generator) * scales).requires_grad_()
    value("rkd", student, torch.zeros(3, 14)).backward()
    assert student.grad.isfinite().all()


def test_dist_of_a_repeated_batch_with_tiny_probabilities_is_the_same():
    student, target, _, _ = outputs(2, 6, 1143)
    assert_close(
        value("dist", *(torch.cat([side, side]) for side in (student, target))), value("dist", student, target)
    )
