"""The task follows from the labels of all splits, and labels that do not go together or are invalid are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import kdkit
from kdkit import DataError, Net, Recipe, Stage, TorchData, Training, Truth

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
            r"train data are numbers .* name the task that they are for: TorchData\(\.\.\., task=",
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
        (INDICES[:, None], None, r"class indices have the shape \(samples,\): labels\.squeeze\(1\)"),
        (
            INDICES[:, None, None].expand(-1, 4, 4),
            None,
            r"int64 of shape \(samples, 4, 4\); expected one class index per",
        ),
        (SOFT[:, :2] / SOFT[:, :2].sum(1, keepdim=True), None, "3 classes; expected a column for each class"),
    ],
)
def test_labels_that_do_not_fit_the_task_or_the_classes_are_refused(wrap, labels, task, message):
    with pytest.raises(DataError, match=message):
        TorchData(wrap(labels), wrap(labels), task=task, classes=["a", "b", "c"])


def test_a_column_of_zeros_and_ones_next_to_two_classes_is_told_both_shapes():
    binary = INDICES.clamp(max=1)[:, None]
    with pytest.raises(DataError, match=r"2 classes; .* or class indices of shape \(samples,\): labels\.squeeze\(1\)"):
        TorchData(visible(binary), visible(binary), classes=["no", "yes"])


def test_integer_labels_next_to_one_output_are_told_the_labels_of_binary_cross_entropy():
    binary = visible((INPUTS[:, 0] > 0).long())
    with pytest.raises(
        DataError, match=r"there is one class; .*labels\.float\(\)\.unsqueeze\(1\).*or give the network two"
    ):
        kdkit.distill(nn.Linear(8, 1), nn.Linear(8, 1), binary, binary)


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.PoissonNLLLoss(), lambda student, target: (student - target).abs().mean()]
)
def test_numbers_without_a_column_next_to_one_output_are_told_the_shape(loss):
    data = TorchData(visible(INPUTS[:, 0]), visible(INPUTS[:, 0]))
    stage = Stage({Net("student", nn.Linear(8, 1)): Truth(loss)}, Training(epochs=1))
    (problem,) = kdkit.check(Recipe(data=data, schedule=[stage])).problems
    assert "student (4, 1) and target (4,) have different shapes and would be broadcast" in problem
    assert problem.endswith("give the labels the shape of the outputs: labels.unsqueeze(1)")


@pytest.mark.parametrize("initial", [None, nn.init.zeros_])
def test_a_loss_that_brings_the_shapes_together_itself_is_accepted(initial):
    def squeezed(student, target):
        return (student.squeeze(1) - target).square().mean()

    head = nn.Linear(8, 1)
    if initial is not None:
        initial(head.weight)
    data = TorchData(visible(INPUTS[:, 0]), visible(INPUTS[:, 0]))
    stage = Stage({Net("student", head): Truth(squeezed)}, Training(epochs=1))
    assert kdkit.check(Recipe(data=data, schedule=[stage])).problems == ()


INVALID = {
    "two": (replaced(MULTI_HOT, (17, 1), 2.0), "multilabel", r"is 2\.0 \(class 'b', row 17\); expected in \[0, 1\]"),
    "nan": (
        replaced(MULTI_HOT, (17, 1), torch.nan),
        "multilabel",
        r"is nan \(class 'b', row 17\); expected in \[0, 1\]",
    ),
    "-1": (replaced(MULTI_HOT, ([3, 17], 0), -1.0), "multilabel", r"is -1\.0 \(class 'a', rows 3, 17\); expected in"),
    "soft": (replaced(SOFT, (17, 2), torch.nan), "multiclass", r"is nan \(class 'c', row 17\); expected in \[0, 1\]"),
    "numbers": (
        replaced(INPUTS[:, :3], (17, 2), torch.nan),
        "regression",
        r"is nan \(class 'c', row 17\); expected a fin",
    ),
    "number": (replaced(INPUTS[:, 0], 17, torch.inf), "regression", r"is inf \(row 17\); expected a finite number"),
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
        DataError, match=r"train data are 0 and 1, but also (-1\.0|nan) \(row 17, column 1\); drop samples"
    ):
        TorchData(labels, labels)


def test_hidden_labels_of_a_loader_are_checked_in_their_batch():
    labels = MULTI_HOT.clone()
    data = TorchData(DataLoader(Hidden(labels), batch_size=16), visible(MULTI_HOT))
    labels[50, 2] = 7
    with pytest.raises(DataError, match=r"a label of the train data is 7\.0 \(class '2'\); expected in \[0, 1\]"):
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
        (("a", "b"), lambda teacher: Truth(nn.CrossEntropyLoss()), "it leaves out samples whose class one side lacks"),
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
