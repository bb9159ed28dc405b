"""Tests of data from torch Datasets and DataLoaders: how it is read, and which data is refused."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from kdkit import DataError, LoaderSplit, TorchData, Unlabelled
from kdkit.data.order import require_lengths, training_order
from kdkit.data.samples import missing_labels
from tests.helpers.datasets import Rows
from tests.helpers.tiny import samples, tiny_data


def listed(label, rows=4):
    return Rows([(torch.full((2,), float(row)), label(row)) for row in range(rows)])


class DataFrame(dict):
    """Like that of pandas: its items are columns."""

    columns = to_numpy = ()


def failing_collate(rows):
    raise ValueError("activate padding")


def padded(rows):
    """Pad samples, (length, 2) each."""
    return pad_sequence([inputs for inputs, _ in rows], batch_first=True), torch.tensor([label for _, label in rows])


LENGTHS = (3, 1, 4, 1, 5)
UNEQUAL = Rows([(torch.full((length, 2), float(row)), row % 3) for row, length in enumerate(LENGTHS)])


def test_ids_are_unique_over_all_splits():
    data = tiny_data()
    ids = torch.cat([split.ids for split in (data.train, data.validation, data.test)])
    assert ids.dtype == torch.int64
    assert len(ids.unique()) == len(ids) == 20


@pytest.mark.parametrize(
    "wrap", [lambda data: data, lambda data: Subset(data, range(len(data))), lambda data: Rows(list(data))]
)
def test_rows_come_in_the_requested_order_from_any_dataset(wrap):
    plain = samples()
    split = TorchData(wrap(plain), samples(), classes=["a", "b", "c"]).train
    batch = split.batch(torch.tensor([3, 0, 3]), 0)
    assert torch.equal(batch.inputs, plain.tensors[0][[3, 0, 3]])
    assert batch.ids.tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (torch.tensor([0, 2, 1, 0]), "multiclass", ("0", "1", "2")),
        (torch.eye(4)[:, :3], "multilabel", ("0", "1", "2")),
        (torch.eye(4, dtype=torch.int64), "multilabel", ("0", "1", "2", "3")),
        (torch.randn(4, 2) + 9, "regression", ("0", "1")),
        (torch.randn(4), "regression", ("0",)),
    ],
)
def test_the_task_and_the_classes_are_derived_from_the_labels(labels, task, classes):
    dataset = TensorDataset(torch.zeros(4, 2), labels)
    data = TorchData(dataset, dataset)
    assert data.task == task
    assert data.classes == classes


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
@pytest.mark.parametrize("positions", [(), (5, 5)])
def test_labels_by_class_become_floats(dtype, positions):
    labels = torch.randint(2, (4, 3, *positions))
    dataset = TensorDataset(torch.zeros(4, 2), labels.to(dtype))
    data = TorchData(dataset, dataset, task="multilabel")
    batch = data.train.batch(torch.arange(4), 0)
    assert data.position_dims == len(positions)
    assert batch.labels.dtype == torch.float32
    assert torch.equal(batch.labels, labels.float())


def test_the_largest_label_of_any_split_sets_the_number_of_classes():
    assert len(TorchData(labelled(0, 1), labelled(0, 4), labelled(2)).classes) == 5


def test_a_given_task_and_given_classes_are_not_derived():
    inputs, labels = samples("regression").tensors
    shares = TensorDataset(inputs, labels.sigmoid())  # which would be numbers without the task
    assert TorchData(shares, shares).task == "regression"
    data = TorchData(shares, shares, task="multilabel", classes=["x", "y", "z"])
    assert data.task == "multilabel"
    assert data.classes == ("x", "y", "z")


def test_classes_that_cannot_be_seen_have_to_be_named():
    with pytest.raises(DataError, match=r"pass the number or the names: TorchData\(\.\.\., classes=10"):
        TorchData(listed(lambda row: row % 2), listed(lambda row: row % 2))


def test_the_targets_of_a_dataset_set_the_number_of_classes():
    dataset = listed(lambda row: row % 3)
    dataset.targets = [0, 1, 2, 0]
    assert len(TorchData(dataset, dataset).classes) == 3


def test_a_tensor_dataset_has_one_draw():
    assert tiny_data().draws == 1
    assert TorchData(Subset(samples(), [0, 1]), samples(), classes=["a", "b", "c"]).draws == 1
    assert TorchData(samples(), DataLoader(samples(), 4), classes=["a", "b", "c"]).draws == 1


class Shifted(TensorDataset):
    """Changes samples when they are read, as an augmentation does."""

    def __getitem__(self, row):
        inputs, labels = super().__getitem__(row)
        return inputs + 1, labels


class Noisy(Subset):
    """Adds new noise at each access."""

    def __getitem__(self, row):
        inputs, labels = super().__getitem__(row)
        return inputs + torch.randn(inputs.shape), labels

    def __getitems__(self, rows):  # Subset would read the dataset directly
        return [self[row] for row in rows]


def test_validation_samples_that_may_change_do_not_change_the_draws_or_the_fingerprint():
    data = TorchData(samples(), Augmented(lambda: torch.rand(4)), classes=["a", "b", "c"])
    assert data.draws == 1
    assert data.fingerprint == data.fingerprint
    assert data.fingerprint != TorchData(samples(), samples(), classes=["a", "b", "c"]).fingerprint


def test_a_subclass_of_tensor_dataset_is_read_by_its_getitem_and_has_no_known_draws():
    shifted = Shifted(*samples().tensors)
    data = TorchData(shifted, samples(), classes=["a", "b", "c"])
    assert torch.equal(data.train.batch(torch.tensor([2]), 0).inputs, samples().tensors[0][[2]] + 1)
    assert data.draws is None
    assert data.train_digest is None
    for noisy in (Noisy(samples(), [0, 1]), Subset(Noisy(samples(), [0, 1]), [1]), Subset(shifted, [0])):
        assert TorchData(noisy, samples(), classes=["a", "b", "c"]).draws is None


@pytest.mark.parametrize("change", [lambda x: x.unsqueeze(1), lambda x: x.view(torch.int32), lambda x: x + 1])
def test_the_digests_change_with_the_shape_type_and_content_of_the_samples(change):
    inputs, labels = samples().tensors
    plain, changed = (TorchData(TensorDataset(x, labels), samples()) for x in (inputs, change(inputs)))
    assert plain.fingerprint != changed.fingerprint
    assert plain.train_digest != changed.train_digest


def test_the_train_digest_changes_if_samples_are_changed_in_place():
    data = TorchData(samples(), samples())
    before = data.train_digest
    assert data.train_digest == before
    data.train.dataset.tensors[0][5] += 1  # neither the first nor the last row, which the fingerprint sees
    assert data.train_digest != before


def test_other_datasets_have_no_known_draws_unless_promised():
    dataset = listed(lambda row: row % 2)
    assert TorchData(dataset, dataset, classes=["a", "b"]).draws is None
    assert TorchData(dataset, dataset, classes=["a", "b"], draws=1).draws == 1


def test_a_loader_keeps_its_batches_and_has_no_known_draws():
    loader = DataLoader(samples(), batch_size=3)
    data = TorchData(loader, samples(), classes=["a", "b", "c"], draws=1)
    assert isinstance(data.train, LoaderSplit)
    assert data.draws is None
    assert data.test is None
    assert [len(batch) for batch in data.train] == [3, 3, 2]


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


class Sized(IterableDataset):
    """A stream with a length, and with the labels of its samples in another order."""

    targets = (2, 1, 0, 9)

    def __iter__(self):
        return iter([(torch.full((2,), float(row)), row % 3) for row in range(4)])

    def __len__(self):
        return 4


@pytest.mark.parametrize("stream", [DataLoader(Sized(), batch_size=2), Sized()])
def test_a_sized_stream_is_data_in_a_loader_or_without(stream):
    data = TorchData(stream, samples(), classes=["a", "b", "c"])
    assert [batch.labels.tolist() for batch in data.train.batched(2)] == [[0, 1], [2, 0]]


def test_samples_of_different_lengths_are_padded_by_a_collate_fn_and_keep_their_ids():
    data = TorchData(UNEQUAL, UNEQUAL, classes=3, collate_fn=padded, draws=1)
    batch = data.train.batch(torch.tensor([2, 1]), 0)
    assert batch.inputs.shape == (2, 4, 2)
    assert batch.inputs[:, 0, 0].tolist() == batch.ids.tolist() == [2, 1]
    assert batch.labels.tolist() == [2, 1]
    assert data.validation.ids.tolist() == [5, 6, 7, 8, 9]


def test_lengths_group_training_samples_and_are_part_of_the_fingerprint():
    dataset = Rows([(torch.full((length, 2), 1.0), length % 3) for length in (5, 1, 5, 1, 5, 1, 5, 1)])
    options = {"classes": 3, "collate_fn": padded, "draws": 1}
    lengths = [len(tensor) for tensor, _ in dataset]
    data = TorchData(dataset, dataset, lengths=lengths, **options)
    rows = training_order(data.train, 2, 0, 0).split(2)
    assert [len({lengths[row] for row in pair.tolist()}) for pair in rows].count(1) >= 2
    plain = TorchData(dataset, dataset, **options)
    assert (
        TorchData(dataset, dataset, lengths=np.array(lengths, dtype=np.int32), **options).fingerprint
        == data.fingerprint
    )
    assert data.fingerprint != plain.fingerprint
    assert (plain.train.lengths, data.validation.lengths) == (None, None)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 1, 4], r"a finite number for each of the 5 training samples, such as \[len\(text\) .*; got 3 values"),
        ([3, 1, 4, 1, float("nan")], "the 5 training samples, .*; got 5 values, not all of which are finite numbers"),
        (torch.ones(5, 2), "a finite number for each of the 5 training samples"),
        (torch.tensor(3), r"the 5 training samples, .*; got tensor\(3\)"),
        (["3", "1", "4", "1", "5"], "a finite number for each of the 5 training samples"),
        (3, "a finite number for each of the 5 training samples, .*; got 3"),
        (len, "a finite number for each of the 5 training samples, .*; got <built-in function len>"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(DataError, match=message):
        TorchData(UNEQUAL, UNEQUAL, classes=3, collate_fn=padded, lengths=lengths)


def test_lengths_are_read_in_the_order_of_a_series_whose_labels_are_others():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": ["a", "bb", "ccc", "d", "ee"], "fold": [0, 1, 1, 1, 0]})
    lengths = table[table.fold == 1].text.str.len()
    assert require_lengths(lengths, 3).tolist() == [2, 3, 1]
    assert require_lengths(lengths.to_numpy()[::-1], 3).tolist() == [1, 3, 2]


def test_lengths_for_a_data_loader_are_refused():
    loader = DataLoader(UNEQUAL, 2, collate_fn=padded)
    with pytest.raises(DataError, match="a DataLoader or a stream, which has its own order; group samples there"):
        TorchData(loader, loader, classes=3, lengths=LENGTHS)


def test_a_stream_is_padded_by_a_collate_fn():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(UNEQUAL)

    data = TorchData(UNEQUAL, Stream(), classes=3, collate_fn=padded)
    assert [batch.inputs.shape[:2] for batch in data.validation.batched(3)] == [(3, 4), (2, 5)]


def test_labels_that_a_collate_fn_may_change_are_not_visible():
    def reversed_classes(rows):
        inputs, labels = padded(rows)
        return inputs, 2 - labels

    dataset = TensorDataset(torch.zeros(4, 3, 2), torch.tensor([0, 0, 0, 1]))
    data = TorchData(dataset, dataset, classes=3, collate_fn=reversed_classes)
    assert (data.draws, data.train_digest, data.train.labels) == (None, None, None)
    assert data.train.batch(torch.arange(4), 0).labels.tolist() == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("collate_fn", "message"),
    [
        (lambda rows: padded(sorted(rows, key=lambda row: -len(row[0]))), "must return samples in the order in which"),
        (lambda rows: padded([row for row in rows if row[1]] or rows), r"a label for each sample,.* got labels \(3,\)"),
        (lambda rows: padded(rows)[0], r"the collate_fn of the train data must return pairs \(inputs, labels\)"),
        (
            lambda rows: (padded(rows)[0], [1]),
            r"are a list; expected a tensor: torch.tensor\(",
        ),
        (lambda rows: (padded(rows)[0], torch.tensor(1)), "are one number for a whole batch; expected one for each"),
        (failing_collate, r"a batch of the train data \(rows 0\) cannot be read: ValueError: activate padding"),
        ("pad", "collate_fn must be a function that makes a batch of a list of samples; got 'pad'"),
    ],
    ids=["another order", "samples left out", "no labels", "a list of labels", "one label", "an error", "no function"],
)
def test_a_collate_fn_that_does_not_fit_is_refused(collate_fn, message):
    with pytest.raises(DataError, match=message):
        TorchData(UNEQUAL, UNEQUAL, classes=3, collate_fn=collate_fn)


def test_a_collate_fn_for_data_loaders_alone_is_refused():
    loader = DataLoader(UNEQUAL, 2, collate_fn=padded)
    with pytest.raises(DataError, match=r"pass DataLoader\(..., collate_fn=...\)"):
        TorchData(loader, loader, classes=3, collate_fn=padded)


def test_samples_of_different_shapes_are_refused_with_both_shapes_and_a_remedy():
    unequal = Rows([(torch.zeros(2, 3 + row), row % 2) for row in range(4)])
    data = TorchData(unequal, samples(), classes=["a", "b", "c"])
    message = r"samples of the {} data have different shapes, such as \(2, 3\) and \(2, 4\), .*collate_fn="
    with pytest.raises(DataError, match=message.format("train")):
        data.train.batch(torch.arange(4), 0)
    with pytest.raises(DataError, match=message.format("train")):
        TorchData(DataLoader(unequal, batch_size=2), samples(), classes=["a", "b", "c"])
    later = Rows([*(samples()[row] for row in range(4)), *unequal])
    data = TorchData(samples(), DataLoader(later, batch_size=4), classes=["a", "b", "c"])
    with pytest.raises(DataError, match=message.format("validation")):
        list(data.validation)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "have None instead of a tensor; give samples without a label"),
        ({1, 2}, r"must be pairs \(inputs, labels\) of tensors, arrays or numbers; got a set; pass collate_fn="),
        (np.array(["a"]), "must be pairs .* numbers; got an array of <U1; pass collate_fn="),
    ],
)
def test_a_later_batch_that_torch_cannot_collate_is_explained_as_the_first_one_is(inputs, message):
    later = DataLoader([*([(torch.zeros(2), 0)] * 2), *([(inputs, 0)] * 2)], batch_size=2)
    data = TorchData(samples(), later, classes=["a", "b", "c"])
    with pytest.raises(DataError, match=f"samples of the validation data {message}"):
        list(data.validation)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.arange(3.0)[::-1], "stride in the given numpy array is negative"),
        (np.array(["2026-11-30"], dtype="datetime64[D]"), "can't convert np.ndarray of type numpy.datetime64"),
    ],
)
@pytest.mark.parametrize("first", [0, 2])
def test_samples_that_torch_does_not_take_are_named_with_the_reason(inputs, message, first):
    data = [(np.zeros(len(inputs)), 0)] * first + [(inputs, 0)] * 2
    rows = r"a batch of the train data \(rows 0"
    with pytest.raises(DataError, match=f"{rows}.*{message}"):
        TorchData(data, samples(), classes=3).train.batch(torch.arange(len(data)), 0)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (TensorDataset(torch.zeros(0, 2), torch.zeros(0)), "the train data is empty"),
        (DataLoader(TensorDataset(torch.zeros(0, 2), torch.zeros(0))), "the train data is empty"),
        (DataLoader(samples(rows=3), 4, drop_last=True), "is empty; its only batch is dropped, pass drop_last=False"),
        (Empty(), "the train data is empty"),
        (DataLoader(Empty()), "the train data is empty"),
        (iter(samples()), "is a iterator; expected a Dataset with a length, an IterableDataset, or a DataLoader"),
        (7, "is a int; expected a Dataset with a length"),
        (TensorDataset(torch.zeros(4, 2)), r"the train data must yield pairs \(inputs, labels\); got a tuple of 1"),
        (
            TensorDataset(*[torch.zeros(4, 2)] * 4),
            r"must yield pairs \(inputs, labels\); got a tuple of 4",
        ),
        (Rows([torch.zeros(3)] * 3), r"must yield pairs \(inputs, labels\)"),
        (
            (torch.zeros(4, 3), torch.zeros(4)),
            r"got a Tensor; put arrays of all samples in a dataset: TensorDataset\(inputs, labels\)",
        ),
        (DataFrame(x=[0.0], y=[1]), r"is a DataFrame, whose items are columns.*TensorDataset\(torch.ten"),
        (DataLoader(DataFrame(x=[0.0])), "is a DataFrame, whose items are columns"),
        (
            DataLoader(samples(), collate_fn=failing_collate),
            r"^the first batch of the train data cannot be read: ValueError: activate padding \(.*test_torch_data.py",
        ),
        (Rows([(torch.zeros(2), 0, "extra")] * 3), r"must yield pairs \(inputs, labels\)"),
        (listed(lambda row: "cat"), "the labels of the train data are a"),
        (DataLoader(listed(lambda row: "cat")), "the labels of the train data are a"),
        (
            listed(lambda row: {"class": 0}),
            "the labels of the train data are a dict; expected a tensor with equal sizes",
        ),
        (TensorDataset(torch.zeros(4, 2), torch.ones(4) > 0), r"the labels are bool, one per sample; make them int64 "),
        (
            Rows([{"pixels": torch.zeros(2), "class": 0}] * 3),
            r"yield pairs \(inputs, labels\); got a dict with 'pixels', 'class': the key .* TorchData\(..., labels=",
        ),
        (DataLoader(Rows([{"x": torch.zeros(2), "a": 0}] * 3)), "got a dict with 'x', 'a': the key of its labels"),
        (Rows([{"y": 1, "label": 0}] * 3), r"got a dict with 'y', 'label': the key of .* Unlabelled\(dataset"),
        (Rows([{"label": 0}] * 3), "got a mapping with 'label' but no inputs"),
    ],
)
def test_data_of_another_form_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        TorchData(train, samples(), classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (TensorDataset(torch.arange(6.0).view(3, 2)), torch.arange(4.0).view(2, 2)),
        (TensorDataset(torch.ones(3, 2), torch.zeros(3)), (torch.ones(2, 2), torch.zeros(2))),
        (Rows([torch.ones(2)] * 3), torch.ones(2, 2)),
        (Rows([{"x": torch.ones(2), "__key__": "a"}] * 3), torch.ones(2, 2)),
        (Rows([{"x": torch.ones(2), "y": torch.zeros(1)}] * 3), {"x": torch.ones(2, 2), "y": torch.zeros(2, 1)}),
    ],
)
def test_samples_of_unlabelled_data_are_inputs_as_a_whole(data, expected):
    data = TorchData(Unlabelled(data), samples(), classes=["a", "b", "c"])
    batch = data.train.batch(torch.tensor([0, 1]), 0)
    torch.testing.assert_close(batch.inputs, expected, rtol=0, atol=0)
    assert (batch.labels.tolist(), data.has_labels, data.task) == ([-1, -1], False, "multiclass")


@pytest.mark.parametrize("inputs", [np.zeros((4, 2)), {"states": np.zeros((4, 2))}])
def test_inputs_without_labels_that_are_arrays_are_refused_with_the_function_that_makes_tensors(inputs):
    with pytest.raises(DataError, match=r"got a \w+; make tensors of its arrays, torch.from_numpy\(array\)"):
        missing_labels(inputs)


def test_validation_data_and_positions_need_labels():
    unlabelled = Unlabelled(TensorDataset(torch.zeros(4, 2)))
    with pytest.raises(
        DataError, match=r"the validation data needs labels for the metrics; .*use the teacher's classes"
    ):
        TorchData(samples(), unlabelled)
    pixels = TensorDataset(torch.zeros(4, 2, 3), torch.zeros(4, 3, dtype=torch.int64).random_(3))
    with pytest.raises(DataError, match=r"labels of this data are per position.* fill them with the ignore_index"):
        TorchData(unlabelled, pixels, classes=["a", "b", "c"])


@pytest.mark.parametrize("name", ["validation", "test"])
def test_no_split_may_be_empty(name):
    splits = {"validation": samples(), "test": samples(), name: samples(rows=0)}
    with pytest.raises(DataError, match=f"the {name} data is empty"):
        TorchData(samples(), **splits, classes=["a", "b", "c"])


class Batches:
    """A loader of batches of these sizes."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __iter__(self):
        return ((torch.zeros(size, 2), torch.zeros(size, dtype=torch.int64)) for size in self.sizes)


@pytest.mark.parametrize("lacking", [0, 2])
@pytest.mark.parametrize("nested", [False, True])
def test_samples_that_lack_an_input_are_refused_and_not_those_of_the_others_dropped(lacking, nested):
    def sample(row):
        scan = {"t1": torch.zeros(2)} | ({} if row == lacking else {"t2": torch.ones(2)})
        return ({"scan": scan} if nested else scan), row % 3

    rows = Rows([sample(row) for row in range(4)])
    with pytest.raises(DataError, match=r"samples of a batch have different keys, .*'t1', 't2'.*; give all of them"):
        TorchData(rows, rows, classes=3).train.batch(torch.arange(4), 0)


@pytest.mark.parametrize(
    ("unlabelled", "message"),
    [
        (torch.zeros(2), "have different forms, such as a tuple of 2 and a Tensor; return pairs .*: give samples"),
        ((torch.zeros(2),), "have different forms, such as a tuple of 2 and a tuple of 1; return pairs"),
        ((torch.zeros(2), None), "have None instead of a tensor; give samples without a label the label -1, and pass"),
        ((torch.zeros(2), -1), r"are in part tensors, and in part numbers, .*; return numbers for all, int\(label\)"),
    ],
)
def test_a_mixture_of_samples_with_and_without_labels_is_refused_with_the_remedy(unlabelled, message):
    data = TorchData([(torch.zeros(2), torch.tensor(0))] * 2 + [unlabelled] * 2, samples(), classes=3)
    with pytest.raises(DataError, match=message):
        data.train.batch(torch.arange(4), 0)


def test_sparse_samples_are_refused_with_the_remedy():
    rows = Rows([(torch.eye(3)[row].to_sparse(), row) for row in range(3)])
    with pytest.raises(DataError, match=r"samples of the train data are sparse, .*; make them dense, \.to_dense\(\)"):
        TorchData(rows, samples(), classes=3)


def test_a_batch_without_samples_is_named():
    with pytest.raises(DataError, match="the train data must yield batches with samples, but batch 0 has none"):
        TorchData(Batches(0, 4), samples(), classes=3)
    data = TorchData(samples(), Batches(4, 0, 4), classes=3)
    with pytest.raises(
        DataError, match=r"the validation data must .*, but batch 1 has none; leave it out in the loader"
    ):
        list(data.validation)


def test_a_sample_that_is_none_is_named():
    data = TorchData(listed(lambda row: row % 3), samples(), classes=3)
    data.train.dataset = Rows([*data.train.dataset.samples[:3], None])
    with pytest.raises(DataError, match="the sample in row 3 of the train data is None; leave out such rows"):
        data.train.batch(torch.tensor([0, 3]), 0)


class Images(Dataset):
    """Images in files, with the attribute of an ImageFolder."""

    samples = (("images/a/1.png", 0), ("images/b/1.png", 1))
    is_damaged = False

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        if self.is_damaged:
            raise OSError("image file is truncated")
        return torch.zeros(3, 4, 4), self.samples[row][1]


@pytest.mark.parametrize(("dataset", "row"), [(Images(), 1), (Subset(Subset(Images(), [0, 1, 1]), [2, 0]), 0)])
def test_a_damaged_image_of_a_folder_is_named_by_its_file(dataset, row, tmp_path, monkeypatch):
    (tmp_path / "images/b").mkdir(parents=True)
    (tmp_path / "images/b/1.png").touch()
    monkeypatch.chdir(tmp_path)
    data = TorchData(dataset, dataset, classes=2)
    monkeypatch.setattr(Images, "is_damaged", True)
    message = (
        rf"the sample in row {row} of the train data, images/b/1\.png, cannot be read: OSError: image file is trun"
    )
    with pytest.raises(DataError, match=message):
        data.train.batch(torch.tensor([row]), 0)
    monkeypatch.setattr(Images, "samples", (("a text", 0), ("another text", 1)))
    with pytest.raises(DataError, match=rf"the sample in row {row} of the train data cannot be read"):
        data.train.batch(torch.tensor([row]), 0)


def test_the_fingerprint_changes_with_the_arguments_of_a_batch_transform():
    def mix(inputs, labels, alpha):
        return inputs, labels

    data = tiny_data().train.dataset
    fingerprints = [TorchData(data, data, batch_transform=partial(mix, alpha=alpha)).fingerprint for alpha in (1, 1, 2)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_fingerprint_changes_with_the_samples_and_the_classes():
    fingerprint = tiny_data().fingerprint
    assert fingerprint == tiny_data().fingerprint
    assert fingerprint != tiny_data(rows=9).fingerprint
    assert fingerprint != tiny_data(classes=["a", "b", "x"]).fingerprint
    train = TensorDataset(samples().tensors[0] + 1, samples().tensors[1])
    changed = TorchData(train, samples(rows=6, seed=1), samples(rows=6, seed=2), classes=["a", "b", "c"])
    assert fingerprint != changed.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {"x": x},
        lambda x: (x, x),
        lambda x: x.bfloat16(),
        lambda x: [{"deep": x}],
        lambda x: {"mask": torch.ones(1), "text": str(x)},
    ],
)
def test_the_fingerprint_changes_with_inputs_of_any_form(change):
    def data(shift):
        pairs = [(change(torch.full((2,), float(row + shift))), row % 2) for row in range(4)]
        return TorchData(Rows(pairs), Rows(pairs), classes=["a", "b"], draws=1)

    assert data(0).fingerprint == data(0).fingerprint != data(1).fingerprint


def labelled(*labels):
    return TensorDataset(torch.zeros(len(labels), 2), torch.tensor(labels))


def with_targets(*labels, **more):
    dataset = listed(lambda row: labels[row], rows=len(labels))
    vars(dataset).update(targets=list(labels), **more)
    return dataset


WRAPS = [
    lambda data: data,
    lambda data: Subset(Subset(data, [2, 1, 0]), [0, 1]),
    lambda data: DataLoader(data, batch_size=2),
]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [labelled, with_targets])
@pytest.mark.parametrize(("wrong", "row"), [(3, 1), (-1, 1)])
def test_a_label_beyond_the_classes_is_refused_before_training(make, wrap, wrong, row):
    data = wrap(make(0, wrong, 1))
    with pytest.raises(
        DataError, match=rf"a label of the validation data is {wrong} \(row {row}\), but there are 3 classes"
    ):
        TorchData(samples(), data, classes=["a", "b", "c"])


@pytest.mark.parametrize("wrong", [3, -1])
def test_a_hidden_label_beyond_the_classes_is_refused_when_it_is_read(wrong):
    hidden = listed(lambda row: wrong if row == 3 else row % 3)
    data = TorchData(hidden, DataLoader(hidden, batch_size=2), samples(), classes=["a", "b", "c"])
    assert data.train.batch(torch.arange(3), 0).labels.tolist() == [0, 1, 2]
    message = "but there are 3 classes, numbered 0 to 2"
    with pytest.raises(DataError, match=rf"a label of the train data is {wrong} \(row 3\), {message}") as caught:
        data.train.batch(torch.arange(4), 0)
    assert ("numbered from 1 to 3, subtract 1" in str(caught.value)) == (wrong == 3)
    position = rf"{wrong} \(index 1 of batch 2\)"
    with pytest.raises(DataError, match=f"a label of the validation data is {position}, {message}"):
        list(data.validation)


def test_labels_outside_a_subset_may_be_beyond_the_classes():
    assert len(TorchData(Subset(labelled(0, 1, 9), [0, 1]), samples()).classes) == 3  # samples() has 0 to 2
    TorchData(Subset(labelled(0, 9, 1), [0, 2]), samples(), classes=["a", "b", "c"])


def test_the_yielded_labels_count_and_not_the_targets_of_the_dataset():
    remapped = listed(lambda row: row % 2)
    remapped.targets = [5, 6, 7, 8]
    TorchData(remapped, remapped, classes=["a", "b"])
    transformed = with_targets(4, 5, target_transform=lambda label: label - 4)
    with pytest.raises(DataError, match="pass the number or the names"):
        TorchData(transformed, transformed)


def test_targets_that_are_no_class_indices_are_ignored():
    for targets in (["cat", "dog"], [{"box": 1}], [[0, 1], [1, 0]], []):
        dataset = listed(lambda row: row % 2)
        dataset.targets = targets
        TorchData(dataset, dataset, classes=["a", "b"])


def test_a_dataset_may_have_a_pipeline_of_its_own():
    for pipeline in (None, [DataLoader(samples())], "resize"):
        dataset = listed(lambda row: row % 3)
        dataset.pipeline = pipeline
        assert len(TorchData(dataset, samples(), classes=["a", "b", "c"]).train) == 4


@pytest.mark.parametrize("option", ["labels", "weights"])
def test_labels_and_weights_are_keys_of_samples(option):
    with pytest.raises(DataError, match=f"{option} must be a key of .* or an attribute .*; got a Tensor"):
        TorchData(samples(), samples(), **{option: torch.zeros(8)})


def test_a_text_is_not_accepted_as_a_list_of_classes():
    with pytest.raises(DataError, match=r"classes must be a list of names; got the text 'abc'; pass \['abc'\]"):
        TorchData(samples(), samples(), classes="abc")


@pytest.mark.parametrize("classes", [0, -1, True, [], [0, 1, 2], range(3), {"a", "b", "c"}, 3.0])
def test_classes_are_a_list_of_names_or_a_number(classes):
    with pytest.raises(DataError, match=r"list of names, or the number of classes, such as classes=10; got"):
        TorchData(samples(), samples(), classes=classes)


def test_a_number_of_classes_names_them_by_their_numbers():
    assert TorchData(samples(), samples(), classes=4).classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_class_names_of_a_dataset_are_used_if_none_are_given(wrap):
    folder = wrap(with_targets(0, 1, 0, classes=["cat", "dog"]))
    assert TorchData(folder, folder).classes == ("cat", "dog")
    assert TorchData(folder, folder, classes=["x", "y"]).classes == ("x", "y")


def test_a_dataset_may_keep_its_inputs_as_features():
    dataset = with_targets(0, 1, 0)
    dataset.features = torch.zeros(3, 2)
    assert TorchData(dataset, dataset).classes == ("0", "1")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
@pytest.mark.parametrize("positions", [(), (3, 3)])
def test_labels_may_be_unsigned_integers(dtype, positions):
    labels = torch.zeros(4, *positions, dtype=torch.int64)
    labels[0] = 2
    data = TorchData(*(TensorDataset(torch.zeros(4, 2), labels.to(dtype)),) * 2)
    assert (data.task, len(data.classes), data.position_dims) == ("multiclass", 3, len(positions))
    assert torch.equal(data.train.batch(torch.arange(4), 0).labels, labels)


def test_the_largest_class_of_uint8_masks_is_no_ignored_label():
    masks = torch.zeros(4, 3, 3, dtype=torch.uint8)
    masks[0, 0] = 156  # -100 modulo 256
    dataset = TensorDataset(torch.zeros(4, 2), masks)
    assert len(TorchData(dataset, dataset).classes) == 157


def test_a_column_of_class_indices_is_refused_if_the_task_is_passed():
    dataset = TensorDataset(torch.zeros(4, 2), torch.tensor([[0], [1], [2], [0]]))
    with pytest.raises(DataError, match=r"int64 of shape \(samples, 1\); .* labels\.squeeze\(1\)"):
        TorchData(dataset, dataset, task="multiclass")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (["cat", "emu"], "lack 'dog' and also are 'emu', so the same label would have two meanings"),
        (["cat"], "lack 'dog', so"),
        (["dog", "cat"], "have another order, so"),
    ],
)
@pytest.mark.parametrize("classes", [None, 2, ["cat", "dog"]], ids=["none given", "their number", "their names"])
def test_splits_whose_classes_differ_are_refused_whatever_classes_are_given(other, difference, classes):
    train, validation = with_targets(0, 1, 1, classes=["cat", "dog"]), with_targets(0, 0, classes=other)
    with pytest.raises(DataError, match=f"the train data has the classes cat, dog, .* validation data {difference}"):
        TorchData(train, validation, classes=classes)
    validation.target_transform = lambda label: label
    TorchData(train, validation, classes=classes)  # the function may give labels the order of the training data


def test_class_names_are_ignored_if_the_label_columns_are_not_as_many():
    dataset = samples("multilabel")
    dataset.classes = ["only", "two"]  # the labels have three columns
    assert TorchData(dataset, dataset).classes == ("0", "1", "2")
    dataset.classes = ["x", "y", "z"]
    assert TorchData(dataset, dataset).classes == ("x", "y", "z")


class Augmented(Dataset):
    """Samples that a function draws."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 6

    def __getitem__(self, row):
        return self.draw(), row % 3


def of_every_state():
    return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])


@pytest.mark.parametrize(
    ("draw", "draws", "notice"),
    [
        (lambda: torch.randn(4), 1, "draws=1 means that a sample is always the same, but samples of the training"),
        (lambda: torch.tensor(np.random.default_rng().standard_normal(4)).float(), 1, "draws=1 means that a sample is"),
        (lambda: torch.full((4,), torch.nan), 1, None),
        (lambda: torch.tensor(np.random.default_rng().standard_normal(4)).float(), 2, "draws=... seeds the random"),
        (of_every_state, 2, None),
    ],
)
def test_the_number_of_draws_is_tried_on_a_few_samples(draw, draws, notice):
    state = torch.get_rng_state()
    data = TorchData(Augmented(draw), Augmented(lambda: torch.zeros(4)), classes=["a", "b", "c"], draws=draws)
    assert [text[:20] for text in data.notices] == ([] if notice is None else [notice[:20]])
    assert notice or draws > 1 or torch.equal(torch.get_rng_state(), state)


def test_random_numbers_of_a_collate_fn_are_noticed_if_samples_have_draws():
    def noisy(rows):
        inputs, labels = default_collate(rows)
        return inputs + torch.randn(len(rows), 4), labels

    splits = Augmented(lambda: torch.zeros(4)), DataLoader(samples(), 4)
    (notice,) = TorchData(*splits, classes=["a", "b", "c"], draws=2, collate_fn=noisy).notices
    assert "are not cached; draw random numbers in the dataset, not in the collate_fn; if" in notice


def test_samples_of_evaluation_that_change_are_noticed():
    state = torch.get_rng_state()
    for changing in ([], ["validation"], ["validation", "test"]):
        draws = {
            name: of_every_state if name in changing else lambda: torch.zeros(3) for name in ("validation", "test")
        }
        splits = {name: Augmented(draw) for name, draw in draws.items()}
        notices = TorchData(samples(), **splits, classes=["a", "b", "c"]).notices
        expected = [f"samples of the {' and '.join(changing)} data change when"] if changing else []
        assert [text[: len(expected[0])] for text in notices] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_a_draw_of_an_augmented_sample_is_the_same_whenever_it_is_read():
    data = TorchData(Augmented(of_every_state), Augmented(of_every_state), classes=["a", "b", "c"], draws=2)
    assert data.draws == 2
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    first, second = (data.train.batch(torch.arange(6), draw).inputs for draw in (0, 1))
    assert random.getstate() == python_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    of_every_state()  # as a run of another seed would
    again = data.train.batch(torch.tensor([4, 1]), 1).inputs
    assert torch.equal(again, second[[4, 1]])
    assert len(torch.cat([first, second]).unique()) == 36  # of each sample, draw and random state
    assert not torch.equal(*(data.validation.batch(torch.arange(6), 0).inputs for _ in range(2)))


@pytest.mark.parametrize(
    ("draws", "message"), [(0, "draws must be 1, for samples"), (4, "samples in tensors never change")]
)
def test_a_number_of_draws_that_fits_no_augmentation_is_refused(draws, message):
    with pytest.raises(DataError, match=message):
        TorchData(samples(), samples(), draws=draws)


def test_stacked_tensors_are_samples_that_never_change():
    words, mask = torch.arange(24).view(8, 3), torch.ones(8, 3)
    labels = torch.arange(8) % 2
    stacked = StackDataset(input_ids=words, mask=mask, labels=labels)
    data = TorchData(stacked, Subset(stacked, [0, 1]))
    assert (data.draws, data.classes) == (1, ("0", "1"))
    batch, rows = data.train.batch(torch.tensor([5, 2]), 0), [stacked[row] for row in (5, 2)]
    assert batch.inputs.keys() == {"input_ids", "mask"}
    assert torch.equal(batch.inputs["input_ids"], torch.stack([row["input_ids"] for row in rows]))
    assert batch.labels.tolist() == [1, 0]
    assert data.validation.batch(torch.tensor([1]), 0).inputs["input_ids"].tolist() == [[3, 4, 5]]
    other = TorchData(StackDataset(input_ids=words + 1, mask=mask, labels=labels), stacked, classes=["a", "b"])
    assert None is not data.train_digest != other.train_digest
    nested = TorchData(StackDataset(StackDataset(words, mask), labels), stacked, classes=["a", "b"])
    assert [part.tolist() for part in nested.train.batch(torch.tensor([0]), 0).inputs] == [[[0, 1, 2]], [[1, 1, 1]]]
    inputs = [inputs for inputs, _ in samples()]
    assert TorchData(StackDataset(inputs, labels[:1].expand(len(inputs))), samples(), classes=3).draws is None


def test_the_digest_of_training_samples_is_a_text():
    data = tiny_data()
    with pytest.raises(DataError, match="a text that changes with any training sample; got 3"):
        data.train_digest = 3
