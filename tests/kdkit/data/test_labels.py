"""The task follows from the labels of all splits, and labels that do not go together or are invalid are refused."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import kdkit
from kdkit import DataError, Net, Recipe, Stage, TorchData, Training, Truth
from kdkit.metrics.base import WithoutThresholds

ROWS = 64
INPUTS = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
INDICES = INPUTS[:, :3].argmax(1)
ONE_HOT = F.one_hot(INDICES, 3).float()
SOFT = 0.9 * ONE_HOT + 0.1 / 3
MULTI_HOT = (INPUTS[:, :3] > 0).float()


class Hidden(Dataset):
    """A dataset whose labels cannot be seen without reading samples."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return INPUTS[row], self.labels[row]


def visible(labels):
    return TensorDataset(INPUTS[: len(labels)], labels)


WRAPS = {
    "tensors": visible,
    "hidden": Hidden,
    "loader": lambda labels: DataLoader(visible(labels), batch_size=16),
    "hidden loader": lambda labels: DataLoader(Hidden(labels), batch_size=16),
    "collated": lambda labels: DataLoader(
        visible(labels), batch_size=16, collate_fn=lambda rows: default_collate(rows)
    ),
}


def replaced(labels, index, value):
    changed = labels.clone()
    changed[index] = value
    return changed


def soft_with_hard_rows(*rows):
    labels = SOFT.clone()
    labels[list(rows)] = ONE_HOT[list(rows)]
    return labels


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("first", [0, 1, 63])
def test_the_same_soft_labels_in_another_order_are_the_same_task(wrap, first):
    data = TorchData(wrap(soft_with_hard_rows(first)), wrap(SOFT))
    assert (data.task, data.classes) == ("multiclass", ("0", "1", "2"))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (SOFT, "multiclass"),
        (ONE_HOT, "multilabel"),
        (ONE_HOT.bool(), "multilabel"),
        (MULTI_HOT, "multilabel"),
        (MULTI_HOT * 0.9, "regression"),
        (INPUTS[:, :3], "regression"),
        (replaced(MULTI_HOT, 40, 0.5), "regression"),
        (INPUTS[:, 0], "regression"),
        ((INPUTS[:, 0] > 0).float(), "regression"),
        ((INPUTS[:, :1] > 0).float(), "multilabel"),
        (SOFT.half(), "multiclass"),
    ],
)
def test_the_labels_of_all_samples_decide_the_task(wrap, labels, task):
    if task == "regression" and wrap in (WRAPS["hidden loader"], WRAPS["collated"]):
        labels = labels[torch.arange(ROWS).roll(-40)]  # of hidden labels, a loader shows those of its first batch
    assert TorchData(wrap(labels), wrap(labels)).task == task


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    ("train", "validation"), [(ONE_HOT, INDICES), (SOFT, INDICES), (INDICES, SOFT), (SOFT, ONE_HOT)]
)
def test_one_hot_or_soft_labels_go_with_class_indices_of_another_split(wrap, train, validation):
    data = TorchData(wrap(train), wrap(validation), classes=["a", "b", "c"])
    assert data.task == "multiclass"


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            MULTI_HOT,
            INDICES,
            r"train data are 0 and 1 by class \(float32 of shape \(samples, 3\)\), those of the validation",
        ),
        (
            INDICES,
            INPUTS[:, 0],
            r"train data are class indices \(int64 of shape \(samples,\)\), those of the validation data",
        ),
        (
            MULTI_HOT * 0.9,
            MULTI_HOT,
            r"train data are numbers .* pass their task: TorchData\(\.\.\., task=",
        ),
        (
            INPUTS[:, :1],
            INPUTS[:, 0],
            r"shape \(samples, 1\), those of the validation data are float32 of shape \(samples,\)",
        ),
        (
            MULTI_HOT,
            MULTI_HOT[:, :2],
            r"shape \(samples, 3\), those of the validation data are float32 of shape \(samples, 2\)",
        ),
    ],
)
def test_splits_whose_labels_do_not_go_together_are_refused(wrap, train, validation, message):
    with pytest.raises(DataError, match=message):
        TorchData(wrap(train), wrap(validation), classes=["a", "b", "c"])


def test_identities_of_training_and_numbers_of_pairs_are_refused_with_the_way_to_train_a_head_over_identities():
    train, validation = (TensorDataset(INPUTS, labels) for labels in (INDICES, INPUTS[:, :1]))
    with pytest.raises(DataError, match=r"those of training, .* among the inputs of Unlabelled\(.*kdkit\.model_loss"):
        TorchData(train, validation, task="regression")


def test_integers_by_column_may_be_numbers_as_two_errors_say():
    counts = TensorDataset(INPUTS, torch.arange(ROWS * 4).view(ROWS, 4) % 200)
    with pytest.raises(DataError, match=r"label of the train data is 199 .* such as counts, make them floats"):
        TorchData(counts, counts, classes=4)
    student = Net("student", nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 4))))
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=1))
    (problem,) = kdkit.check(Recipe(data=TorchData(counts, counts), schedule=[stage])).problems
    assert "200 classes need (batch, 200, 4)" in problem
    assert problem.endswith("if the labels are numbers, such as counts, make them floats: labels.float()")


def test_maps_of_numbers_may_have_another_size_in_each_split():
    maps = [TensorDataset(torch.rand(8, 1, size, size), torch.rand(8, 1, size, size)) for size in (4, 4, 6)]
    stage = Stage({Net("student", nn.Conv2d(1, 1, 1)): Truth(nn.MSELoss())}, Training(epochs=1))
    result = kdkit.run(Recipe(data=TorchData(*maps), schedule=[stage]), measure=False)
    assert np.isfinite(result.metrics["student"]["r2"].value)


def test_numbers_go_with_a_split_whose_numbers_happen_to_be_zero_and_one():
    assert TorchData(visible(INPUTS[:, :3]), visible(MULTI_HOT)).task == "regression"


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (
            INPUTS[:, 0],
            "multiclass",
            r"the task is multiclass; expected int64 class indices .* such as labels\.long\(\)",
        ),
        (MULTI_HOT, "multiclass", "the task is multiclass; expected int64 class indices"),
        (INDICES, "multilabel", r"the task is multilabel; expected 0 and 1 .* labels\.float\(\)\.unsqueeze\(1\)"),
        (INDICES[:, None], None, r"one class index per sample, \(samples,\), .*: labels\.squeeze\(1\)"),
        (
            INDICES[:, None, None, None].expand(-1, 1, 4, 4),
            None,
            r"\(samples, 1, 4, 4\); expected .*: labels\.squeeze\(1\), or, .* one output, floats: labels\.float\(\)",
        ),
        (SOFT[:, :2] / SOFT[:, :2].sum(1, keepdim=True), None, "3 classes; expected one column per class"),
    ],
)
def test_labels_that_do_not_fit_the_task_or_the_classes_are_refused(wrap, labels, task, message):
    with pytest.raises(DataError, match=message):
        TorchData(wrap(labels), wrap(labels), task=task, classes=["a", "b", "c"])


def test_the_error_about_a_column_next_to_two_classes_names_both_shapes():
    binary = INDICES.clamp(max=1)[:, None]
    with pytest.raises(DataError, match=r"2 classes; .* or class indices of shape \(samples,\): labels\.squeeze\(1\)"):
        TorchData(visible(binary), visible(binary), classes=["no", "yes"])


def test_the_error_about_masks_of_one_class_names_the_dimension_that_they_lack():
    masks = visible((INPUTS[:, :, None] > 0).float().expand(-1, -1, 4))
    with pytest.raises(
        DataError, match=r"for one class of pixels .* \(samples, 1, \*positions\): labels.unsqueeze\(1\)"
    ):
        TorchData(masks, masks, classes=["object"])


@pytest.mark.parametrize(
    ("train", "validation", "classes", "advice"),
    [
        ((12, 3), (12, 3), ["a", "b", "c"], r"classes to the second dimension, .*: labels\.movedim\(-1, 1\)"),
        ((12, 3), (10, 3), None, r"if they are the last one, labels\.movedim\(-1, 1\)"),
        ((12,), (10,), None, r"for one class at positions, .* \(samples, 1, positions\): labels\.unsqueeze\(1\)"),
    ],
)
def test_the_error_about_labels_of_frames_says_which_dimension_has_the_classes(train, validation, classes, advice):
    splits = (TensorDataset(torch.zeros(8, 2), torch.zeros(8, *shape)) for shape in (train, validation))
    with pytest.raises(DataError, match=advice):
        TorchData(*splits, task="multilabel", classes=classes)


def test_binary_classes_of_frames_whose_number_differs_are_refused_with_their_task():
    splits = [TensorDataset(torch.zeros(8, 2), torch.zeros(8, frames, dtype=torch.int64)) for frames in (12, 10)]
    with pytest.raises(DataError, match=r"classes of positions, such as frames, pass task='multiclass'"):
        TorchData(*splits)
    assert TorchData(*splits, task="multiclass", classes=2).position_dims == 1


def test_the_error_about_integer_labels_and_one_output_names_the_labels_of_binary_cross_entropy():
    binary = visible((INPUTS[:, 0] > 0).long())
    with pytest.raises(
        DataError, match=r"there is one class; .*labels\.float\(\)\.unsqueeze\(1\).*or give the network two"
    ):
        kdkit.distill(nn.Linear(8, 1), nn.Linear(8, 1), binary, binary)


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        nn.PoissonNLLLoss(),
        nn.PoissonNLLLoss(log_input=False),
        lambda student, target: (student - target).abs().mean(),
    ],
)
def test_the_problem_of_numbers_without_a_column_next_to_one_output_names_the_shape(loss):
    data = TorchData(visible(INPUTS[:, 0]), visible(INPUTS[:, 0]))
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 1), nn.Softplus())  # some losses are undefined for negative outputs
    stage = Stage({Net("student", student): Truth(loss)}, Training(epochs=1))
    (problem,) = kdkit.check(Recipe(data=data, schedule=[stage])).problems
    assert re.search(
        r"student \(4, 1\) and target \(4,\) .*would be broadcast.*; give .* such as labels\[:, None\]", problem
    )


INVALID = {
    "two": (
        replaced(MULTI_HOT, (17, 1), 2.0),
        "multilabel",
        r"is 2\.0 \(class 'b', row 17\); expected a number in \[0, 1\]",
    ),
    "nan": (
        replaced(MULTI_HOT, (17, 1), torch.nan),
        "multilabel",
        r"is nan \(class 'b', row 17\); expected a number in \[0, 1\]",
    ),
    "-1": (
        replaced(MULTI_HOT, ([3, 17], 0), -1.0),
        "multilabel",
        r"is -1\.0 \(class 'a', rows 3, 17\); expected a number in",
    ),
    "soft": (
        replaced(SOFT, (17, 2), torch.nan),
        "multiclass",
        r"is nan \(class 'c', row 17\); expected a number in \[0, 1\]",
    ),
    "numbers": (
        replaced(INPUTS[:, :3], (17, 2), torch.nan),
        "regression",
        r"is nan \(class 'c', row 17\); expected a fin",
    ),
    "number": (
        replaced(INPUTS[:, 0], 17, torch.inf),
        "regression",
        r"is inf \(row 17\); expected a finite number.*pass TorchData\(..., unknown=",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_labels_that_are_not_valid_numbers_are_refused_with_their_split_class_and_rows(name):
    labels, task, message = INVALID[name]
    valid = labels.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) if task != "regression" else torch.zeros_like(labels)
    if task == "multiclass":
        valid = SOFT
    options = {"classes": ["a", "b", "c"]} if labels.ndim > 1 else {}
    with pytest.raises(DataError, match=f"a label of the validation data {message}"):
        TorchData(visible(valid), visible(labels), task=task, **options)
    if task != "multiclass":
        data = TorchData(Hidden(valid), Hidden(valid), task=task, **options)
        data.train.dataset.labels = labels
        with pytest.raises(DataError, match=f"a label of the train data {message}"):
            data.train.batch(torch.arange(ROWS), 0)


@pytest.mark.parametrize("unknown", [-1.0, torch.nan])
def test_zeros_and_ones_with_a_value_for_unknown_are_not_taken_for_numbers(unknown):
    labels = visible(replaced(MULTI_HOT, (17, 1), unknown))
    with pytest.raises(
        DataError,
        match=r"are 0 and 1, but also (-1\.0|nan) \(row 17, column 1\); if it means unknown, pass TorchData\(",
    ):
        TorchData(labels, labels)


def test_hidden_labels_of_a_loader_are_checked_in_their_batch():
    labels = MULTI_HOT.clone()
    data = TorchData(DataLoader(Hidden(labels), batch_size=16), visible(MULTI_HOT))
    labels[50, 2] = 7
    message = r"a label of the train data is 7\.0 \(class '2', index 2 of batch 4\); expected a number in \[0, 1\]"
    with pytest.raises(DataError, match=message):
        list(data.train)


def test_reading_samples_to_see_the_labels_draws_no_random_numbers():
    class Noisy(Hidden):
        def __getitem__(self, row):
            inputs, labels = super().__getitem__(row)
            return inputs + torch.randn(8), labels

    def drawn(labels):
        torch.manual_seed(0)
        TorchData(Noisy(labels), Noisy(labels), classes=["a", "b", "c"])
        return torch.rand(1)

    assert drawn(SOFT) == drawn(INDICES)  # class indices are seen from the first sample


def metrics_of(train, validation, loss):
    torch.manual_seed(0)
    data = TorchData(visible(train), visible(validation))
    training = Training(epochs=3, batch_size=16, keep="last")
    stage = Stage({Net("student", nn.Linear(8, 3)): Truth(loss)}, training)
    metrics = kdkit.run(Recipe(data=data, schedule=[stage])).metrics["student"]
    return {name: result.value for name, result in metrics.items()}


def test_one_hot_training_labels_have_the_metrics_of_class_indices():
    with_indices = metrics_of(INDICES, INDICES, nn.CrossEntropyLoss())
    assert with_indices.keys() == {"accuracy", "macro_f1"}
    assert metrics_of(ONE_HOT, INDICES, nn.CrossEntropyLoss()) == pytest.approx(with_indices, abs=0.02)


def test_the_class_of_a_soft_label_for_metrics_is_its_largest():
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert metrics_of(SOFT, SOFT, nn.CrossEntropyLoss()) == pytest.approx(metrics_of(INDICES, INDICES, loss), abs=0.02)


@pytest.mark.parametrize(
    ("classes", "objective", "message"),
    [
        (("a", "b"), lambda teacher: Truth(nn.CrossEntropyLoss()), "it leaves out samples whose class one"),
        (None, lambda teacher: kdkit.Match(teacher, kdkit.losses.DKD()), "DKD needs one class per sample"),
    ],
)
def test_terms_that_need_class_indices_are_refused_for_soft_labels(classes, objective, message):
    data = TorchData(visible(SOFT), visible(SOFT), classes=["a", "b", "c"])
    teacher = Net("teacher", nn.Linear(8, 3), trained=True)
    student = Net("student", nn.Linear(8, len(classes or "abc")), classes=classes)
    stage = Stage({student: objective(teacher)}, Training(epochs=1))
    problems = kdkit.check(Recipe(data=data, schedule=[stage])).problems
    assert any(message in problem for problem in problems), problems


# Unknown labels


def with_unknown(value, dtype=torch.float32):
    return replaced(MULTI_HOT, ([3, 17, 40], [0, 1, 2]), value).to(dtype)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize(("value", "dtype"), [(-1, torch.float32), (-1, torch.int64), (torch.nan, torch.float32)])
def test_unknown_labels_are_nan_in_every_batch(wrap, value, dtype):
    labels = wrap(with_unknown(value, dtype))
    data = TorchData(labels, labels, unknown=value)
    assert (data.task, data.classes, data.has_unknown) == ("multilabel", ("0", "1", "2"), True)
    split = data.train
    batches = list(split) if isinstance(split, kdkit.LoaderSplit) else [split.batch(torch.arange(ROWS), 0)]
    seen = torch.cat([batch.labels for batch in batches])
    assert torch.equal(seen.isnan(), with_unknown(torch.nan).isnan())
    assert torch.equal(seen.nan_to_num(0.0), with_unknown(0.0))


def test_an_unknown_task_is_refused():
    dataset = TensorDataset(torch.randn(4, 2), torch.arange(4))
    with pytest.raises(DataError, match="task must be 'multiclass', 'multilabel', 'regression' or None; got 'multi'"):
        TorchData(dataset, dataset, task="multi")


@pytest.mark.parametrize("unknown", [0, 1.0, True])
def test_zero_and_one_cannot_stand_for_unknown(unknown):
    with pytest.raises(DataError, match="unknown must be a label other than 0 and 1"):
        TorchData(visible(MULTI_HOT), visible(MULTI_HOT), unknown=unknown)


@pytest.mark.parametrize(("value", "task"), [(-99.0, None), (torch.nan, None), (0, "regression")])
def test_numbers_may_be_unknown_too(value, task):
    numbers = TensorDataset(torch.zeros(3, 1), torch.tensor([[2.5, value], [value, 7.0], [0.5, 1.0]]))
    data = TorchData(numbers, numbers, task=task, unknown=value)
    assert (data.task, data.has_unknown) == ("regression", True)
    assert data.train.batch(torch.arange(3), 0).labels.isnan().tolist() == [[False, True], [True, False], [False] * 2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_whole_numbers_may_be_unknown_too(dtype):
    numbers = TensorDataset(torch.zeros(3, 1), torch.tensor([61, -1, 7], dtype=dtype))
    data = TorchData(numbers, numbers, task="regression", unknown=-1)
    for labels in (data.train.labels, data.train.batch(torch.arange(3), 0).labels):
        assert labels.isnan().tolist() == [False, True, False]


def test_class_indices_have_an_ignore_index_instead():
    with pytest.raises(DataError, match=r"unknown=-100 is for .* multiclass; use a class index .* ignore_index"):
        TorchData(visible(INDICES), visible(INDICES), unknown=-100)


def test_other_values_than_the_unknown_one_are_still_refused():
    labels = visible(replaced(with_unknown(-1.0), (5, 0), 2.0))
    with pytest.raises(DataError, match=r"is 2\.0 \(class '0', row 5\); expected a number in \[0, 1\]"):
        TorchData(labels, labels, unknown=-1, task="multilabel")


def unknown_recipe(loss, metrics=(), **terms):
    data = TorchData(visible(with_unknown(-1.0)), visible(with_unknown(-1.0)), unknown=-1)
    teacher = Net("teacher", nn.Linear(8, 3), trained=True)
    objective = Truth(loss)
    for match in terms.values():
        objective = objective + kdkit.Match(teacher, match)
    stage = Stage({Net("student", nn.Linear(8, 3)): objective}, Training(epochs=2, batch_size=16))
    return Recipe(data=data, schedule=[stage], metrics=metrics)


class Mine(WithoutThresholds):
    name = "mine"

    def compute(self, test):
        return kdkit.MetricResult(value=float(test.labels.mean()))


def test_a_run_with_unknown_labels_has_finite_terms_and_metrics():
    recipe = unknown_recipe(kdkit.losses.IgnoreUnknown(), soft=kdkit.losses.PerLabelSoftTargets())
    result = kdkit.run(recipe)
    assert torch.tensor([[*epoch["terms"].values()] for epoch in result.history["student"]]).isfinite().all()
    assert all(0 <= metric.value <= 1 for metric in result.metrics["student"].values())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            unknown_recipe(nn.BCEWithLogitsLoss()),
            "BCEWithLogitsLoss does not leave them out; wrap it: kdkit.losses.Ignore",
        ),
        (
            unknown_recipe(F.binary_cross_entropy_with_logits),
            "leave out those that are NaN in it, and set its attribute accepts_unknown = True",
        ),
        (
            unknown_recipe(kdkit.losses.IgnoreUnknown(), dkd=kdkit.losses.PerLabelDKD()),
            "PerLabelDKD does not leave them out; use a loss that takes no labels",
        ),
        (
            unknown_recipe(kdkit.losses.IgnoreUnknown(), metrics=(Mine(),)),
            "metric 'mine' does not leave out unknown labels, which this data may have",
        ),
    ],
)
def test_terms_and_metrics_that_would_read_unknown_labels_are_problems(recipe, message):
    (problem,) = kdkit.check(recipe).problems
    assert message in problem


@pytest.mark.parametrize(("largest", "count"), [(2.0, 1), (0.9, 0)])
def test_binary_cross_entropy_is_refused_for_numbers_beyond_one(largest, count):
    labels = visible(MULTI_HOT * largest)
    stage = Stage({Net("student", nn.Linear(8, 3)): Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1))
    problems = kdkit.check(Recipe(data=TorchData(labels, labels), schedule=[stage])).problems
    assert len(problems) == count
    assert all(
        "BCEWithLogitsLoss takes labels in [0, 1], but those of the training data are numbers from 0 to 2" in problem
        for problem in problems
    )
