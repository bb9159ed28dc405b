"""The record of a run."""

import tracemalloc

import torch
from torch.utils.data import TensorDataset

from kdkit import TorchData
from kdkit.engine.run_record import _positives


def test_training_samples_of_many_classes_are_counted_without_a_matrix():
    count, classes = 20_000, 5000
    samples = TensorDataset(torch.zeros(count, 1), torch.arange(count) % classes)
    data = TorchData(samples, TensorDataset(*samples[:10]))
    tracemalloc.start()
    positives = _positives(data)
    _current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert positives == dict.fromkeys(data.classes, count // classes)
    assert peak < count * classes / 10
