"""A sample of a split is a pure function of (seed, id, draw), with and without augmentations."""

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from kdkit import RecipeError
from kdkit.data.order import training_order
from kdkit_ecg import Synthetic
from kdkit_ecg.augmentations import BaselineWander, CutOut, GaussianNoise, LeadDropout, Mixup, Scaling, TimeWarp
from kdkit_ecg.datasets.signal_split import SignalSplit

ALL_AUGMENTATIONS = (LeadDropout(0.2), GaussianNoise(), BaselineWander(), Scaling(), TimeWarp(), CutOut(0.2), Mixup())


def split(times=(400, 500, 260, 300), **options):
    generator = np.random.default_rng(0)
    return SignalSplit(
        signals=[generator.normal(0, 0.3, (12, time)).astype(np.float32) for time in times],
        person=torch.from_numpy(generator.random((len(times), 5)).astype(np.float32)),
        labels=torch.eye(len(times)),
        ids=torch.arange(100, 100 + len(times)),
        **{"length": 300, "rate": 100.0, "window": "random", "augment": ALL_AUGMENTATIONS, **options},
    )


def bytes_of(batch):
    """Return the bytes of signal, person and labels of each sample."""
    tensors = (batch.inputs.signal, batch.inputs.person, batch.labels)
    return [tuple(tensor[row].numpy().tobytes() for tensor in tensors) for row in range(len(batch))]


def test_a_sample_is_the_same_in_any_order_and_batch():
    ours = split()
    together = bytes_of(ours.batch([0, 1, 2, 3], 4))
    assert bytes_of(ours.batch([3, 1], 4)) == [together[3], together[1]]
    assert [bytes_of(ours.batch([row], 4))[0] for row in range(4)] == together


def test_draws_and_seeds_give_different_samples():
    ours = split()
    samples = {sample for draw in range(5) for sample in bytes_of(ours.batch([0, 1, 2, 3], draw))}
    assert len(samples) == 20
    assert bytes_of(replace(ours, seed=1).batch([0], 0)) != bytes_of(ours.batch([0], 0))


def test_the_signals_of_the_split_are_not_modified():
    ours = split()
    before = [signal.copy() for signal in ours.signals]
    ours.batch([0, 1, 2, 3], 0)
    assert all(np.array_equal(*pair) for pair in zip(before, ours.signals, strict=True))


def test_groups_and_a_sampler_may_be_set_as_for_any_data():
    data = Synthetic(train=12, validation=4, length=500)
    data.test.groups = torch.zeros(len(data.test), dtype=torch.int64)
    data.train.sampler = WeightedRandomSampler(data.train.labels.sum(1) + 1, 40)
    assert len(training_order(data.train, 8, seed=0, epoch=0)) == 40


def test_the_text_of_a_split_has_no_signals():
    assert repr(split()) == "SignalSplit(4 samples)"


class SampleBytes(Dataset):
    """The samples of a split in draw 2, as bytes."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, row):
        return bytes_of(self.split.batch([row], 2))[0]


def test_a_pickled_split_gives_the_same_samples():
    ours = split()
    assert bytes_of(pickle.loads(pickle.dumps(ours)).batch([1, 2], 3)) == bytes_of(ours.batch([1, 2], 3))


def test_worker_processes_give_the_same_samples():
    ours = split()
    loader = DataLoader(SampleBytes(ours), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [tuple(sample) for sample in loader] == bytes_of(ours.batch([0, 1, 2, 3], 2))


PROGRAM = """
import hashlib
from kdkit_ecg import CutOut, GaussianNoise, Mixup, Synthetic, TimeWarp
augment = (GaussianNoise(), TimeWarp(), CutOut(), Mixup())
data = Synthetic(train=4, validation=1, test=1, length=300, draws=3, augment=augment)
print(data.fingerprint, hashlib.sha256(data.train.batch([2, 0], 1).inputs.signal.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_gives_the_same_samples():
    augment = (GaussianNoise(), TimeWarp(), CutOut(), Mixup())
    data = Synthetic(train=4, validation=1, test=1, length=300, draws=3, augment=augment)
    ours = hashlib.sha256(data.train.batch([2, 0], 1).inputs.signal.numpy().tobytes()).hexdigest()
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.split() == [data.fingerprint, ours]


def test_only_training_is_augmented_and_the_fingerprint_depends_on_the_augmentation():
    sizes = {"train": 4, "validation": 3, "test": 3, "length": 300, "draws": 3}
    plain, noisy = Synthetic(**sizes), Synthetic(**sizes, augment=(GaussianNoise(),))
    for name in ("validation", "test"):
        without_noise, with_noise = (bytes_of(getattr(data, name).batch([0, 1, 2], 1)) for data in (plain, noisy))
        assert without_noise == with_noise
    assert bytes_of(plain.train.batch([0], 1)) != bytes_of(noisy.train.batch([0], 1))
    noisier = Synthetic(**sizes, augment=(GaussianNoise(5.0),))
    assert len({plain.fingerprint, noisy.fingerprint, noisier.fingerprint}) == 3


def test_padding_stays_zero():
    ours = split(times=(100, 120), augment=(BaselineWander(), GaussianNoise(), TimeWarp()))
    signal = ours.batch([0, 1], 0).inputs.signal
    assert [int(row.any(dim=0).sum()) for row in signal] == [100, 120]


def test_uninitialised_memory_never_reaches_a_batch(monkeypatch):
    ours = split(times=(100, 300, 120, 400), augment=())
    clean = [bytes_of(ours.batch([0, 1, 2, 3], draw)) for draw in range(3)]
    # Every window must be written completely, padding included.
    monkeypatch.setattr("numpy.empty", lambda shape, dtype=float: np.full(shape, np.nan, dtype))
    assert [bytes_of(ours.batch([0, 1, 2, 3], draw)) for draw in range(3)] == clean
    assert torch.isfinite(ours.batch([0, 1, 2, 3], 0).inputs.signal).all()


def test_mixup_mixes_signal_person_and_labels_with_one_share():
    ours = split(augment=(Mixup(1.0),))
    plain = replace(ours, augment=()).batch([0, 1, 2, 3], 0)
    mixed = ours.batch([0, 1, 2, 3], 0)
    assert mixed.ids.tolist() == plain.ids.tolist()
    assert torch.allclose(mixed.labels.sum(dim=1), torch.ones(4))
    assert ((mixed.labels > 0) & (mixed.labels < 1)).any()
    for row in range(4):
        # The labels are one-hot, so a row of mixed labels contains the share of each record.
        assert mixed.labels[row, row] >= 0.5
        assert torch.allclose(
            mixed.inputs.signal[row], torch.einsum("r,rlt->lt", mixed.labels[row], plain.inputs.signal)
        )
        assert torch.allclose(mixed.inputs.person[row], mixed.labels[row] @ plain.inputs.person)


def test_augmentations_without_draws_are_refused():
    with pytest.raises(RecipeError, match="there is only one; pass draws=10"):
        Synthetic(augment=(CutOut(),))
