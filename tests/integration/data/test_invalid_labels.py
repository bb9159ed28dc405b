"""Labels out of range end a run with the sample, the class and the value, for every kind of data, on the CPU."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import kdkit
from kdkit import Batch, Data, DataError, Net, Predictions, Recipe, Split, Stage, TorchData, Training, Truth
from kdkit.data.label_check import DeferredLabelCheck, LabelCheck
from kdkit.metrics import Accuracy, MacroAUROC, MacroF1
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.metrics import challenge_metric

ROWS, ROW, COLUMN = 40, 17, 1
INPUTS = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
SEVERAL = (INPUTS[:, :3] > 0).float()
INDICES = torch.arange(ROWS) % 3
WRONG = [2.0, -1.0, 1.5, float("inf"), float("nan")]


def changed(value):
    labels = SEVERAL.clone()
    labels[ROW, COLUMN] = value
    return labels


class Rows(Dataset):
    """Samples that are read one by one."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return INPUTS[row], self.labels[row]


class Stream(IterableDataset):
    """Samples without a length."""

    def __init__(self, labels):
        self.labels = labels

    def __iter__(self):
        return iter(zip(INPUTS, self.labels, strict=True))


class PlainSplit(Split):
    """A split of user code, with or without visible labels."""

    def __init__(self, labels, first, *, visible=False):
        self.values, self.ids = labels, torch.arange(first, first + ROWS)
        if visible:
            self.labels = labels

    def batch(self, rows, draw):
        return Batch(INPUTS[rows], self.values[rows], self.ids[rows], draw)


class PlainData(Data):
    """Data of user code, in the form that is documented."""

    classes, draws, fingerprint = ("a", "b", "c"), 1, "x"

    def __init__(self, *labels, task="multilabel", visible=False):
        self.task = task
        self.train, self.validation, self.test = (
            PlainSplit(split, first, visible=visible) for split, first in zip(labels, (0, 40, 80), strict=True)
        )


def run(data, *, loss=None, metric=None, steps=None):
    training = Training(epochs=1, batch_size=8, steps_per_epoch=steps)
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(loss or nn.BCEWithLogitsLoss())}, training)
    return kdkit.run(Recipe(data=data, schedule=[stage], metrics=(metric or MacroF1(),)), device="cpu")


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("value", WRONG)
def test_labels_by_class_of_a_split_of_user_code_are_checked(value, split, visible):
    names = ("train", "validation", "test")
    data = PlainData(*(changed(value) if name == split else SEVERAL for name in names), visible=visible)
    with pytest.raises(
        DataError, match=rf"a label of the {split} data is {value} \(class 'b', row 17\); expected a number in"
    ):
        run(data)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [3, -1, -100, 300])
def test_class_indices_of_a_split_of_user_code_are_checked(value, split):
    labels = INDICES.clone()
    labels[ROW] = value
    data = PlainData(
        *(labels if name == split else INDICES for name in ("train", "validation", "test")), task="multiclass"
    )
    with pytest.raises(DataError, match=rf"a label of the {split} data is {value} \(row 17\), but there are 3 classes"):
        run(data, loss=nn.CrossEntropyLoss(), metric=Accuracy())


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize(
    ("make", "position"),
    [
        (lambda labels: TorchData(TensorDataset(INPUTS, labels), Rows(SEVERAL), task="multilabel"), "row 17"),
        (lambda labels: TorchData(Rows(labels), Rows(SEVERAL), task="multilabel"), "row 17"),
        (lambda labels: TorchData(DataLoader(Rows(labels), 8), Rows(SEVERAL)), "index 1 of batch 3"),
        (lambda labels: TorchData(DataLoader(Rows(labels), 8, num_workers=1), Rows(SEVERAL)), "index 1 of batch 3"),
        (lambda labels: TorchData(Stream(labels), Rows(SEVERAL)), "index 1 of batch 3"),
    ],
    ids=["tensors", "samples", "loader", "loader with a worker", "stream"],
)
def test_labels_by_class_of_torch_data_are_checked(make, position, value):
    with pytest.raises(DataError, match=rf"a label of the train data is {value} \(class '1', {position}\); expected"):
        run(make(changed(value)), steps=5)


@pytest.mark.parametrize("value", [2.0, -1.0, 1.5])
def test_labels_that_batch_transform_makes_are_checked(value):
    def spoil(inputs, labels):
        labels[3, 0] = value
        return inputs, labels

    samples = TensorDataset(INPUTS, SEVERAL)
    with pytest.raises(DataError, match=rf"a label of batch_transform is {value} \(class '0', index 3 of batch 1\)"):
        run(TorchData(samples, samples, batch_transform=spoil))


def test_labels_that_look_like_numbers_are_not_trained_by_a_binary_loss():
    with pytest.raises(
        DataError, match=r"a label of the train data is 2\.0 .*row 17\); expected a number in .* BCEWithLogitsLoss"
    ):
        run(TorchData(Rows(changed(2.0)), Rows(SEVERAL)))


def test_a_dataset_that_yields_other_labels_than_its_targets_is_checked():
    class Remapped(Rows):
        targets = INDICES

        def __getitem__(self, row):
            return INPUTS[row], 3 if row == ROW else int(INDICES[row])

    data = TorchData(Remapped(None), TensorDataset(INPUTS, INDICES))
    with pytest.raises(DataError, match=r"a label of the train data is 3 \(row 17\), but there are 3 classes"):
        run(data, loss=nn.CrossEntropyLoss(), metric=Accuracy())


def test_labels_of_recordings_are_checked():
    class Recordings(PlainData):
        def __init__(self):
            self.task = "multilabel"
            self.train, self.validation, self.test = (
                SignalSplit(
                    signals=np.zeros((ROWS, 12, 16), np.float32),
                    person=torch.zeros(ROWS, 5),
                    labels=labels,
                    ids=torch.arange(first, first + ROWS),
                    length=16,
                    rate=100,
                    window="centre",
                )
                for labels, first in ((changed(2.0), 0), (SEVERAL, 40), (SEVERAL, 80))
            )

    class Leads(nn.Linear):
        def forward(self, signal, person):
            return super().forward(signal.flatten(1))

    stage = Stage({Net("student", Leads(192, 3)): Truth(nn.BCEWithLogitsLoss())}, Training(epochs=1, batch_size=8))
    with pytest.raises(DataError, match=r"a label of the train data is 2\.0 \(class 'b', row 17\)"):
        kdkit.run(Recipe(data=Recordings(), schedule=[stage], metrics=(MacroF1(),)), device="cpu")


def test_labels_in_the_range_train_as_before():
    assert set(run(PlainData(SEVERAL, SEVERAL, SEVERAL)).metrics) == {"student"}


def test_metrics_name_the_sample_the_class_and_the_value():
    predictions = Predictions(labels=changed(2.0).numpy(), outputs=INPUTS[:, :3].numpy(), classes=("a", "b", "c"))
    with pytest.raises(DataError, match=r"such as 2\.0 of class 'b' in row 17"):
        MacroAUROC().compute(predictions)
    labels = np.zeros((30, 26))
    labels[5, 3] = 2
    with pytest.raises(DataError, match=r"got 2\.0 of class '\w+' in row 5"):
        challenge_metric(labels, np.zeros((30, 26)), 2021)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_labels_on_a_gpu_are_checked_without_a_wait():
    check = DeferredLabelCheck(LabelCheck("train", "multilabel", ("a", "b", "c")))
    batches = [SEVERAL.cuda(), changed(2.0).cuda()]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for labels in batches:
            check.add(labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(DataError, match=r"a label of the train data is 2\.0 \(class 'b', index 17 of batch 2\)"):
        check.finish()


def test_labels_on_a_gpu_are_looked_at_when_their_copy_is_ready(monkeypatch):
    class OnGpu(torch.Tensor):
        """A tensor that claims to be on a GPU, for machines without one."""

        device = torch.device("cuda")

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            result = super().__torch_function__(function, types, args, kwargs or {})
            return result.as_subclass(torch.Tensor) if isinstance(result, cls) else result  # on the CPU

    class Event:
        ready = False

        def record(self, stream):
            assert stream == "the stream of cuda"  # that of the labels, not of the current device

        def query(self):
            return self.ready

        def synchronize(self):
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"the stream of {device}")
    for wrong, task, message in (
        (changed(2.0), "multilabel", r"is 2\.0 \(class 'b', index 17 of batch 2\)"),
        (torch.where(torch.arange(ROWS) == ROW, 5, INDICES), "multiclass", r"is 5 \(index 17 of batch 2\)"),
    ):
        for ready in (False, True):
            Event.ready = ready
            check = DeferredLabelCheck(LabelCheck("train", task, ("a", "b", "c")))
            check.add((SEVERAL if task == "multilabel" else INDICES).as_subclass(OnGpu))
            check.add(wrong.as_subclass(OnGpu))
            with pytest.raises(DataError, match=f"a label of the train data {message}"):
                check.add(wrong.as_subclass(OnGpu)) if ready else check.finish()
