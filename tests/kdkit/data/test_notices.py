"""Data that is valid but rarely intended gives a notice."""

import pytest
import torch
from torch.nn.functional import one_hot
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, StackDataset, Subset, TensorDataset

from kdkit import TorchData

LABELS = torch.arange(12) % 3


def dataset(labels=LABELS, seed=0):
    return TensorDataset(torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed)), labels)


def notices(train, validation=None, test=None, **options):
    validation = dataset(seed=1) if validation is None else validation
    return TorchData(train, validation, test, **options).notices


ONE_HOT = (
    "each sample has exactly one class, and the labels, 0 and 1 by class, are taken for multilabel; if classes exclude "
    "each other, pass TorchData(..., task='multiclass')"
)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_one_hot_labels_of_all_splits_may_be_multiclass(dtype):
    labels = one_hot(LABELS).to(dtype)
    assert notices(dataset(labels), dataset(labels, 1)) == (ONE_HOT,)
    assert notices(dataset(labels), dataset(labels, 1), task="multilabel") == ()
    labels[3] = 1
    assert notices(dataset(labels), dataset(one_hot(LABELS).to(dtype), 1)) == ()


def test_one_hot_masks_may_be_multiclass():
    masks = one_hot(torch.arange(12 * 8).reshape(12, 2, 4) % 3).movedim(-1, 1).float()
    (notice,) = notices(dataset(masks), dataset(masks, 1))
    assert notice.startswith("each position has exactly one class, ")
    assert notice.endswith("pass class indices: labels.argmax(1)")
    assert notices(dataset(masks), dataset(masks, 1), task="multilabel") == ()
    masks[3, :, 1, 1] = 1
    assert notices(dataset(masks), dataset(masks, 1)) == ()


def test_floats_of_0_and_1_without_a_column_are_noticed():
    labels = (LABELS == 0).float()
    assert notices(dataset(labels), dataset(labels, 1)) == (
        "the labels, 0 and 1 as floats of shape (samples,), are taken for numbers (regression); if they are classes, "
        "make them labels[:, None] for one output, or integers for two",
    )
    assert notices(dataset(labels), dataset(labels, 1), task="regression") == ()
    assert notices(dataset(2 * labels), dataset(labels, 1)) == ()


def test_labels_from_one_are_noticed():
    (notice,) = notices(dataset(LABELS + 1), dataset(LABELS + 1, 1))
    assert notice == (
        "no label is below 1, and classes are numbered from 0: if those of the data are numbered from 1, subtract 1 "
        "from the labels"
    )
    assert notices(dataset(LABELS + 1), dataset(seed=1)) == ()
    of_many = 1 + torch.arange(len(LABELS)) * 50  # the first of many classes are missing by chance
    assert notices(dataset(of_many), dataset(of_many, 1)) == ()


class Named(Dataset):
    """A dataset with class names, such as an ImageFolder."""

    classes = ("cat", "dog", "owl")

    def __init__(self, **options):
        self.targets = LABELS.tolist()
        vars(self).update(options)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, row):
        return torch.zeros(4), self.targets[row]


def test_class_names_in_another_order_are_noticed():
    (notice,) = notices(Named(), Named(), classes=["cat", "owl", "dog"])
    assert notice.startswith("label 1 is 'dog' in the training data, but 'owl' in classes=..., which renumbers no lab")
    for classes in (None, ["cat", "dog", "owl"], ["Katze", "Hund", "Eule"], 3):
        assert notices(Named(), Named(), classes=classes) == ()
    pair = [Named(target_transform=lambda label: 2 - label) for _ in range(2)]
    assert notices(*pair, classes=["owl", "dog", "cat"]) == ()


def test_samples_that_a_loader_of_validation_data_drops_are_noticed():
    def of_loader(**options):
        loader = DataLoader(dataset(seed=1), batch_size=5, **options)
        return [notice for notice in notices(dataset(), loader, classes=3) if "drops" in notice]

    count = len(dataset())
    (notice,) = of_loader(drop_last=True)
    assert f"of the validation data drops the last {count % 5} of {count} samples, so metrics leave them out" in notice
    assert of_loader() == []
    assert notices(DataLoader(dataset(), 5, shuffle=True, drop_last=True), dataset(seed=1), classes=3) == ()


def test_masks_of_0_and_255_are_noticed():
    mask = torch.zeros(8, 4, 4, dtype=torch.uint8)
    mask[3, :2] = 255

    def masks_of(mask, **options):
        data = TensorDataset(torch.zeros(8, 3, 4, 4), mask)
        return [notice for notice in TorchData(data, data, **options).notices if "0 and 255" in notice]

    (notice,) = masks_of(mask, classes=2)
    assert notice.endswith(
        "so only class 0 is learned; if 255 is the second class, make it 1, such as by (mask > 0).long()"
    )
    assert masks_of(mask, classes=2, ignore_index=255) == []
    assert masks_of(mask, classes=256) == []
    mask[4, 0] = 1
    assert masks_of(mask, classes=2) == []


class Plain(Dataset):
    """A dataset of which nothing is visible without reading samples."""

    def __init__(self, labels=LABELS):
        self.samples = dataset(labels)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        return self.samples[row]


def test_samples_that_are_in_two_splits_are_counted():
    end = "too, so metrics on them are too optimistic"
    whole, plain = dataset(), Plain()
    same = TensorDataset(*whole.tensors)
    assert notices(whole, same) == (f"the samples of the validation data are in the train data {end}",)
    assert notices(dataset(seed=2), whole, same) == (f"the samples of the test data are in the validation data {end}",)
    sparse = whole.tensors[0].to_sparse()
    for inputs in (whole.tensors[0], sparse):
        first, second = (StackDataset(inputs=inputs, labels=LABELS) for _ in range(2))
        assert notices(first, second) == (f"the samples of the validation data are in the train data {end}",)
    assert notices(TensorDataset(sparse, LABELS), TensorDataset(sparse.clone(), LABELS)) == ()
    loader = DataLoader(plain, 4, shuffle=True)
    classes = ["a", "b", "c"]
    assert notices(plain, loader, classes=classes) == (
        f"the samples of the validation data are in the train data {end}",
    )
    parts = Subset(plain, range(8)), Subset(Subset(plain, range(2, 12)), range(10))
    assert notices(*parts, classes=classes) == (
        f"6 of the 10 samples of the validation data are in the train data {end}",
    )
    assert notices(plain, parts[0], classes=classes) == (
        f"the 8 samples of the validation data are in the train data {end}",
    )
    assert notices(parts[0], plain, classes=classes) == (
        f"8 of the samples of the validation data are in the train data {end}",
    )


def test_separate_samples_are_no_notice():
    plain = Plain()
    classes = ["a", "b", "c"]
    assert notices(Subset(plain, range(8)), Subset(plain, range(8, 12)), Plain(), classes=classes) == ()
    inputs, labels = dataset().tensors
    assert notices(TensorDataset(inputs[:6], labels[:6]), TensorDataset(inputs[6:], labels[6:])) == ()


SORTED = (
    "the DataLoader of the training data yields one class after the other, in the same order in each epoch; pass "
    "shuffle=True to it"
)


@pytest.mark.parametrize("labels", [LABELS.sort().values, LABELS.sort(descending=True).values])
def test_a_loader_that_yields_one_class_after_the_other_is_noticed(labels):
    assert notices(DataLoader(dataset(labels), 4), dataset(seed=1)) == (SORTED,)
    assert notices(DataLoader(dataset(labels), 4, shuffle=True), dataset(seed=1)) == ()
    assert notices(dataset(labels), dataset(seed=1)) == ()  # kdkit shuffles it


def test_the_first_batch_shows_the_order_of_labels_that_are_not_visible():
    plain = Plain(LABELS.sort().values.repeat_interleave(3))
    options = {"classes": ["a", "b", "c"]}
    assert notices(DataLoader(plain, 8), Plain(), **options) == (SORTED,)
    assert notices(DataLoader(Plain(LABELS.repeat(3)), 8), Plain(), **options) == ()


def test_a_batch_sampler_of_the_user_orders_samples_itself():
    class Mixed(BatchSampler):
        def __iter__(self):
            return iter([[0, 5, 10], [1, 6, 11]])

    data = dataset(LABELS.sort().values)
    loader = DataLoader(data, batch_sampler=Mixed(SequentialSampler(data), 3, drop_last=False))
    assert notices(loader, dataset(seed=1)) == ()
