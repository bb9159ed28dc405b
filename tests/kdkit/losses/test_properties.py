"""What holds of losses for any shapes and numbers: finite, or told what would help; and the symmetries of each."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit import BuildContext, RecipeError, registry
from kdkit.losses import asked_by, catalog, loss_name

try_some = settings(max_examples=80, derandomize=True, deadline=None, database=None)
try_few = settings(try_some, max_examples=20)

LOSSES = [*map(loss_name, (*catalog.ON_OUTPUTS, *catalog.PER_LABEL)), *catalog.PRESETS]
LOSSES += [loss_name(make) for make in (*catalog.ON_RELATIONS, *catalog.ON_FEATURES)]
PER_LABEL = [*map(loss_name, catalog.PER_LABEL)]
ON_OUTPUTS = [each for each in LOSSES[: LOSSES.index("rkd")] if each != "second_head"]
OPTIONS = {"crd": {"negatives": 16, "width": 4}, "sem_ckd": {"width": 4}}  # fewer numbers
HELPS = r"Hint\(\)|SecondHead\(\)|PerToken\(|a projector maps|cannot be laid out|tap a layer before"
HELPS += "|needs two; got one|compares taps in pairs"

SIZES, CHANNELS, POSITIONS = st.integers(1, 6), st.integers(1, 9), st.lists(st.integers(1, 7), max_size=3)
# Of numbers between which a square or a quotient leaves what a float holds.
SCALES = (0.0, 1e-38, 1e-30, 1e-20, 1e-12, 1e-6, 1.0, 1e4)
FILLS = st.sampled_from([*SCALES, "each its own", "rows of their own", "constant"])


@st.composite
def shapes(draw):
    """Return the shapes of a student and a teacher without the batch, the same or other in one respect or in all."""
    student = [draw(CHANNELS), *draw(POSITIONS)]
    other = [draw(CHANNELS), *draw(POSITIONS)]
    resized = [draw(st.integers(1, 7)) for _ in student[1:]]
    target = draw(
        st.sampled_from([student, [other[0], *student[1:]], [student[0], *resized], [student[0], *other[1:]], other])
    )
    return tuple(student), tuple(target)


@st.composite
def sides(draw, shape=None):
    """Return a student's and a teacher's numbers, (batch, ...), and a generator for what goes with them."""
    batch, seed = draw(SIZES), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    student, target = (shape, shape) if shape else draw(shapes())
    ours, theirs = (filled((batch, *each), draw(FILLS), generator) for each in (student, target))
    if student == target and draw(st.integers(0, 4)) == 0:
        theirs = ours.clone()
    return ours, theirs, generator


def filled(shape, fill, generator):
    numbers = torch.randn(shape, generator=generator)
    if isinstance(fill, float):
        return numbers * fill
    if fill == "constant":
        return numbers.flatten()[0].expand(shape).clone()
    own = shape if fill == "each its own" else (shape[0], *[1] * (len(shape) - 1))
    return numbers * torch.tensor(SCALES)[torch.randint(len(SCALES), own, generator=generator)]


def built(name, student, target):
    """Return a new loss of the shelf, built for a batch of four of tuples of taps."""
    loss = registry("losses")[name](**OPTIONS.get(name, {}))
    classes, channels = student[0].shape[1], target[0].shape[1]
    if hasattr(loss, "build"):
        task = "multilabel" if name in PER_LABEL else "multiclass"
        facts = BuildContext(classes=tuple(map(str, range(classes))), task=task, samples=12, ids=True)
        teacher = nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels)).eval()
        loss.build(
            *(tuple(torch.Size((4, *each.shape[1:])) for each in side) for side in (student, target)), facts, teacher
        )
    return loss


def value(name, student, target, labels=None, seed=0):
    """Return what a new loss of the shelf says of one tap on each side."""
    generator = torch.default_generator.manual_seed(seed)
    loss = built(name, (student,), (target,))
    classes, task = student.shape[1], "multilabel" if name in PER_LABEL else "multiclass"
    if labels is None:
        shape, options = (student.shape, 2) if task == "multilabel" else (student.shape[:1], classes)
        labels = torch.randint(options, shape, generator=generator)
    labels = labels.float() if task == "multilabel" else labels
    known = {"labels": labels, "ids": torch.arange(len(student)), "progress": torch.tensor(0.5)}
    return loss(student, target, **{key: known[key] for key in asked_by(loss)})


def close(one, other, rtol=1e-3, atol=1e-4):
    torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def finite_or_helped(say, *students):
    for student in students:
        student.requires_grad_()
    try:
        said = say()
    except RecipeError as error:
        if not re.search(HELPS, str(error)):
            raise AssertionError(f"does not say what would help: {error}") from error
        return
    assert said.ndim == 0
    assert said.isfinite()
    said.backward()
    assert all(student.grad.isfinite().all() for student in students)


@pytest.mark.parametrize("name", LOSSES)
@try_some
@given(given=sides())
def test_any_shapes_and_numbers_are_finite_or_told_what_would_help(name, given):
    student, target, generator = given
    finite_or_helped(lambda: value(name, student, target, seed=generator.initial_seed()), student)


@pytest.mark.parametrize("name", ON_OUTPUTS)
@try_some
@given(given=CHANNELS.flatmap(lambda classes: sides(shape=(classes,))))
def test_outputs_of_any_size_are_finite(name, given):
    student, target, generator = given
    finite_or_helped(lambda: value(name, student, target, seed=generator.initial_seed()), student)


@pytest.mark.parametrize("name", ["sp", "hcl", "patient_kd", "review_kd", "sem_ckd"])
@try_some
@given(layers=st.lists(shapes(), min_size=1, max_size=4), batch=SIZES, fills=st.tuples(FILLS, FILLS), odd=st.booleans())
def test_layers_of_any_shapes_and_numbers_are_finite_or_told_what_would_help(name, layers, batch, fills, odd):
    generator = torch.default_generator.manual_seed(len(layers))
    ours, theirs = (
        tuple(filled((batch, *each), fill, generator) for each in side)
        for side, fill in zip(zip(*layers, strict=True), fills, strict=True)
    )
    theirs += theirs[:1] if odd else ()
    finite_or_helped(lambda: built(name, ours, theirs)(ours, theirs), *ours)


def outputs(batch, classes, seed):
    """Return moderate logits of both sides, and labels of either kind."""
    generator = torch.Generator().manual_seed(seed)
    student, target = (3 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    single = torch.randint(classes, (batch,), generator=generator)
    return student, target, single, torch.randint(2, (batch, classes), generator=generator)


BATCHES, CLASSES, SEEDS = st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31)
drawn_outputs = st.builds(outputs, BATCHES, CLASSES, SEEDS)

OF_PROBABILITIES = ["soft_targets", "reverse_kl", "generalised_jsd", "dkd", "nkd", "dist", "hard_targets"]
OF_PROBABILITIES += ["logit_standardisation", "pskd", *catalog.PRESETS]


@pytest.mark.parametrize("name", OF_PROBABILITIES)
@try_few
@given(given=drawn_outputs, shift=st.floats(-20, 20))
def test_what_a_softmax_does_not_see_is_not_seen(name, given, shift):
    student, target, labels, _ = given
    shifts = shift * torch.arange(len(student))[:, None]
    close(value(name, student + shifts, target - shifts, labels), value(name, student, target, labels))


@pytest.mark.parametrize("name", ON_OUTPUTS)
@try_few
@given(given=drawn_outputs, seed=SEEDS)
def test_classes_may_be_in_any_order(name, given, seed):
    student, target, single, several = given
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    labels = several if name in PER_LABEL else single
    moved = several[:, order] if name in PER_LABEL else order.argsort()[single]
    close(value(name, student[:, order], target[:, order], moved), value(name, student, target, labels))


@pytest.mark.parametrize("name", ON_OUTPUTS)
@try_few
@given(given=drawn_outputs)
def test_a_batch_shown_twice_weighs_as_much_as_once(name, given):
    student, target, single, several = given
    labels = several if name in PER_LABEL else single
    twice = [torch.cat([each, each]) for each in (student, target, labels)]
    close(value(name, *twice), value(name, student, target, labels))


@pytest.mark.parametrize("name", [each for each in OF_PROBABILITIES if each not in ("reverse_kl", "generalised_jsd")])
def test_tokens_are_not_taken_for_classes(name):
    with pytest.raises(RecipeError, match=r"compares outputs \(batch, classes\); got \(2, 4, 3\); PerToken\(loss\)"):
        value(name, torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.int64))


def test_features_without_any_size_have_an_error_of_their_own_size():
    student = torch.randn(3, 2, 4)
    close(value("square_head", student, torch.zeros(3, 2, 4)), student.square().sum())


BOUNDS = {"generalised_jsd": (0, math.log(2)), "dist": (0, 4), "per_label_dist": (0, 4)}
BOUNDS |= dict.fromkeys(["soft_targets", "soft_targets_mutual", "logit_standardisation", "dkd"], (0, math.inf))
BOUNDS |= dict.fromkeys(["reverse_kl", "per_label_dkd", "per_label_soft_targets"], (0, math.inf))


@pytest.mark.parametrize("name", BOUNDS)
@try_few
@given(given=drawn_outputs)
def test_divergences_keep_to_their_bounds(name, given):
    student, target, single, several = given
    said = value(name, student, target, several if name in PER_LABEL else single).item()
    assert BOUNDS[name][0] - 1e-5 <= said <= BOUNDS[name][1] + 1e-5


def features(batch, channels, positions, seed):
    """Return moderate features of both sides of one shape."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, channels, *positions, generator=generator) for _ in range(2))


drawn_features = st.builds(
    features, st.integers(3, 6), st.integers(2, 5), st.lists(st.integers(2, 4), min_size=1, max_size=3), SEEDS
)
RELATIONS = ["rkd", "sp", "pkt", "cc", "cka"]
BY_DIRECTION = ["attention_transfer", "nst", "cosine", "patient_kd", "pkd"]
BY_ENTRY = ["hint", "square_head", "hcl", "cwd", "adjacent_cc"]
ON_FEATURES = [*RELATIONS, *BY_DIRECTION, *BY_ENTRY]


@pytest.mark.parametrize("name", [*RELATIONS, *BY_DIRECTION, "logit_standardisation"])
@try_few
@given(given=drawn_features, factors=st.tuples(*[st.floats(0.1, 100)] * 2))
def test_the_scale_of_either_side_is_not_seen(name, given, factors):
    student, target = given
    if name == "logit_standardisation":
        student, target = student.flatten(1), target.flatten(1)
    close(value(name, factors[0] * student, factors[1] * target), value(name, student, target))


@pytest.mark.parametrize("name", RELATIONS)
@try_few
@given(given=drawn_features, power=st.integers(-9, 9))
def test_relations_are_those_of_small_and_of_large_features(name, given, power):
    student, target = given
    if name == "pkt" and power < -4:
        return  # it adds its eps to lengths, as the authors do
    close(value(name, 10.0**power * student, target), value(name, student, target))


@pytest.mark.parametrize("name", [*(each for each in ON_FEATURES if each != "adjacent_cc"), "vid", "ofd", "srrl"])
@try_few
@given(given=drawn_features, seed=SEEDS)
def test_samples_may_be_in_any_order(name, given, seed):
    student, target = given
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))
    close(value(name, student[order], target[order]), value(name, student, target))


@pytest.mark.parametrize("name", ON_FEATURES)
@try_few
@given(given=drawn_features, seed=SEEDS)
def test_channels_may_be_in_any_order(name, given, seed):
    student, target = given
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    theirs = torch.arange(len(order)) if name in (*RELATIONS, "attention_transfer", "nst") else order
    close(value(name, student[:, order], target[:, theirs]), value(name, student, target))


@pytest.mark.parametrize("name", [each for each in ON_FEATURES if each != "hcl"])
@try_few
@given(given=drawn_features, seed=SEEDS)
def test_positions_may_be_in_any_order(name, given, seed):
    student, target = (each.flatten(2) for each in given)
    order = torch.randperm(student.shape[2], generator=torch.Generator().manual_seed(seed))
    close(value(name, student[:, :, order], target[:, :, order]), value(name, student, target))


@pytest.mark.parametrize("name", ["rkd", "cka"])
@try_few
@given(given=drawn_features, seed=SEEDS)
def test_rotations_and_shifts_are_not_seen(name, given, seed):
    student, target = (each.flatten(1) for each in given)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(student.shape[1], student.shape[1], generator=generator))
    shift = torch.randn(student.shape[1], generator=generator)
    close(value(name, student @ turn + shift, target), value(name, student, target), atol=1e-3)


SYMMETRIC = ["rkd", "sp", "cc", "cka", "adjacent_cc", "hint", "cosine", "hcl", "patient_kd", "pkd"]
SYMMETRIC += ["attention_transfer", "nst", "logit_mse", "dist", "generalised_jsd"]


@pytest.mark.parametrize("name", SYMMETRIC)
@try_few
@given(given=drawn_features)
def test_a_distance_is_the_same_from_either_side(name, given):
    student, target = (each.flatten(1) for each in given) if name in ON_OUTPUTS else given
    close(value(name, student, target), value(name, target, student))


@pytest.mark.parametrize(("name", "most"), [("cosine", 2.0), ("cka", 1.0), ("patient_kd", 4.0), ("nst", 2.0)])
@try_few
@given(given=drawn_features)
def test_distances_of_directions_keep_to_their_bounds(name, most, given):
    assert -1e-5 <= value(name, *given).item() <= most + 1e-5


@pytest.mark.parametrize("name", ["hint", "cosine", "square_head", "vid", "mgd", "ofd", "review_kd", "sem_ckd", "srrl"])
@try_few
@given(given=sides())
def test_losses_with_projectors_meet_any_map_of_as_many_dimensions(name, given):
    student, target, _ = given
    if student.ndim != target.ndim:
        target = target.flatten(2).mean(2) if target.ndim > 2 else target
    assert value(name, student, target).isfinite()
