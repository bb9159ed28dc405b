"""Tests of batches, of their order, and of derived seeds."""

import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Batch, Data, DataError, LoaderSplit, Split
from kdkit.data import dataset, loading
from kdkit.data.batch import as_targets
from kdkit.data.dataset import WorkerInit, require_splits
from kdkit.data.loading import BatchSeed, RowBatches, ThreadedBatches, batches, load_ahead
from kdkit.data.order import rows_of_batches, shuffled, training_order
from kdkit.utils.seeds import derive_seed
from tests.helpers.tiny import tiny_data

META = torch.device("meta")
Pair = namedtuple("Pair", "left right")


def test_derived_seeds_never_change():
    # recorded values: a change would change the results of every run
    assert derive_seed(0) == 3980143261097177850
    assert derive_seed(1, 2) == 4775233734956296224
    assert derive_seed(2, 1) == 1689874118103579988
    assert derive_seed(0, 0, 0) == 4635879678023765015


def test_orders_never_change():
    assert shuffled(10, seed=0, epoch=0).tolist() == [7, 1, 2, 9, 3, 8, 4, 6, 5, 0]
    assert shuffled(10, seed=7, epoch=3).tolist() == [4, 9, 1, 8, 3, 7, 0, 6, 5, 2]
    assert training_order(WithLengths(range(10)), 2, seed=7, epoch=3).tolist() == [9, 4, 5, 2, 8, 1, 6, 0, 7, 3]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_torch_accepts_any_derived_seed(numbers):
    seed = derive_seed(*numbers)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)  # raises for a seed that does not fit


def test_neighbouring_seeds_and_epochs_derive_different_seeds():
    # a sum of seed and epoch would give the same seed for (0, 1) and (1, 0)
    assert len({derive_seed(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9))
def test_an_order_contains_every_row_once(rows, seed, epoch):
    assert sorted(shuffled(rows, seed, epoch).tolist()) == list(range(rows))


def test_an_order_neither_reads_nor_changes_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = shuffled(20, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(shuffled(20, 0, 0), first)


@pytest.mark.parametrize(
    ("rows", "size", "length"), [(9, 4, 8), (8, 4, 8), (10, 4, 10), (1, 4, 1), (5, 1, 5), (4, 4, 4)]
)
def test_a_last_batch_of_a_single_sample_is_dropped_in_training(rows, size, length):
    order = training_order(tiny_data(rows=rows).train, size, seed=0, epoch=0)
    assert len(order) == length
    assert len(order) == len(set(order.tolist()))


class WithLengths(Split):
    """A split of which only the lengths are known."""

    def __init__(self, lengths):
        self.lengths = lengths
        self.ids = torch.arange(len(lengths))


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_an_order_by_length_has_the_rows_of_another_order_once(lengths, size, epoch):
    orders = [
        training_order(split, size, 0, epoch) for split in (WithLengths(lengths), tiny_data(rows=len(lengths)).train)
    ]
    assert orders[0].sort().values.tolist() == orders[1].sort().values.tolist()


def test_batches_of_like_lengths_have_little_padding_and_differ_between_epochs():
    lengths = torch.randint(1, 500, (3001,), generator=torch.Generator().manual_seed(0))

    def batches_of(split, epoch):
        return training_order(split, 4, seed=0, epoch=epoch).split(4)

    def padding(rows_of_batches):
        return sum(int((lengths[rows].max() - lengths[rows]).sum()) for rows in rows_of_batches)

    split = WithLengths(lengths)
    first, second = (batches_of(split, epoch) for epoch in (0, 1))
    split.lengths = None
    assert padding(first) < 0.1 * padding(batches_of(split, 0))
    assert len({frozenset(rows.tolist()) for rows in first} & {frozenset(rows.tolist()) for rows in second}) < 10
    assert lengths.max() in lengths[first[0]]
    means = torch.stack([lengths[rows].double().mean() for rows in first])
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(len(means))]))[0, 1]) < 0.1


def test_a_small_data_set_grouped_by_length_has_other_batches_in_each_epoch():
    split = WithLengths(torch.arange(32))
    epochs = [{frozenset(rows.tolist()) for rows in training_order(split, 4, 0, epoch).split(4)} for epoch in (0, 1)]
    assert len(epochs[0] & epochs[1]) < 4


def test_wrong_lengths_of_a_user_defined_split_are_refused():
    split = WithLengths([1, 2, 3])
    split.ids = torch.arange(4)
    with pytest.raises(DataError, match=r"a finite number for each of the 4 training samples, .*; got 3 values"):
        training_order(split, 2, 0, 0)


def test_a_user_defined_loader_keeps_its_order():
    loader = DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4)
    split = LoaderSplit(loader)
    assert batches(split, 2) is split
    assert [batch.labels.tolist() for batch in split] == [[0, 1, 2, 3], [4, 5]]
    assert [batch.ids for batch in split] == [None, None]
    assert len(split) == 2


def test_batches_come_in_the_requested_order_and_carry_their_ids():
    split = tiny_data().train
    order = torch.tensor([5, 0, 3])
    first, second = batches(split, 2, order=order)
    assert first.ids.tolist() == [5, 0]
    assert second.ids.tolist() == [3]
    assert torch.equal(first.inputs, split.batch(torch.tensor([5, 0]), 0).inputs)


def test_batches_can_be_read_twice_and_have_a_length():
    loaded = batches(tiny_data(rows=7).train, 3)
    assert len(loaded) == 3
    assert [len(batch) for batch in loaded] == [3, 3, 1] == [len(batch) for batch in loaded]


class TwoRows(Split):
    """The smallest user-defined split."""

    def __init__(self):
        self.ids = torch.arange(2)

    def batch(self, rows, draw):
        return Batch(torch.zeros(len(rows), 1), torch.zeros(len(rows)), self.ids[rows], draw)


def test_batches_are_read_in_the_requested_draw():
    assert [batch.draw for batch in RowBatches(TwoRows(), (torch.arange(2),), draw=3)] == [3]
    assert [batch.draw for batch in batches(TwoRows(), 2)] == [0]


def test_optional_members_of_a_split_have_defaults():
    split = TwoRows()
    assert len(split) == 2
    assert split.labels is None
    assert split.groups is None
    assert split.parallel is False


def test_optional_members_of_data_have_defaults():
    data = Data()
    assert data.summary == ""
    assert data.notices == ()
    assert data.train_digest == ""
    assert data.augment is None


@pytest.mark.parametrize("member", ["classes", "task", "draws", "fingerprint", "train", "validation", "test"])
def test_a_required_member_of_data_that_is_not_defined_is_reported_by_name(member):
    class Incomplete(Data):
        pass

    with pytest.raises(DataError, match=f"Incomplete does not define {member}, which its kdkit base class"):
        getattr(Incomplete(), member)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_that_is_no_subclass_is_refused_by_its_name(name):
    class Duck:
        ids, batch = torch.arange(2), TwoRows().batch

    data = Data()
    data.train, data.validation, data.test = TwoRows(), LoaderSplit(DataLoader([])), None
    require_splits(data)
    setattr(data, name, Duck())
    with pytest.raises(DataError, match=rf"the {name} split of Data is a Duck; expected a subclass of kdkit\.Split"):
        require_splits(data)


def test_worker_processes_load_the_same_batches():
    split = tiny_data().train
    expected, loaded = list(batches(split, 3)), list(load_ahead(batches(split, 3), workers=1, pin=False))
    assert len(loaded) == len(expected)
    assert all(torch.equal(left.inputs, right.inputs) for left, right in zip(expected, loaded, strict=True))
    assert all(torch.equal(left.ids, right.ids) for left, right in zip(expected, loaded, strict=True))


class Noise(TwoRows):
    """Batches of random numbers from the global generators of three libraries."""

    def __len__(self):
        return 24

    def batch(self, rows, draw):
        noise = torch.rand(len(rows), 2) + random.random() + float(np.random.random())
        return Batch(inputs=noise, labels=torch.zeros(len(rows), dtype=torch.int64), ids=rows, draw=draw)


def noisy(first, seed):
    """Return batches of four rows of `Noise`, from this one on."""
    return RowBatches(Noise(), rows_of_batches(Noise(), 4)[first:], seed=seed)


def test_random_numbers_of_a_batch_do_not_depend_on_the_number_of_workers_or_the_first_batch():
    def load(workers, first=0, seed=5):
        noise = noisy(first, BatchSeed(seed, first, in_process=True))
        return [batch.inputs for batch in load_ahead(noise, workers=workers, pin=False)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about forks in a process with threads, and more workers than cores
        expected = load(1)
        for workers, first in ((0, 0), (2, 0), (3, 0), (0, 1), (1, 2), (2, 3)):
            assert all(map(torch.equal, load(workers, first), expected[first:])), (workers, first)
        assert not any(map(torch.equal, load(1, seed=6), expected))
    assert len({float(inputs[0, 0]) for inputs in expected}) == 6


def test_a_batch_that_this_process_loads_leaves_its_random_numbers():
    def draw():
        return [*torch.rand(2).tolist(), random.random(), *np.random.standard_normal(2).tolist()]

    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draw()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    assert len([*noisy(0, BatchSeed(5, in_process=True))]) == 6
    assert draw() == expected


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        (torch.zeros(2), torch.zeros(3)),
        [torch.zeros(2), "text"],
        {"a": torch.zeros(2), "b": [torch.zeros(1)]},
        Pair(torch.zeros(2), (torch.zeros(1),)),
    ],
)
def test_inputs_of_any_form_are_moved_and_keep_their_form(value):
    def tensors(content):
        if isinstance(content, torch.Tensor):
            return [content]
        items = content.values() if isinstance(content, dict) else content if isinstance(content, tuple | list) else ()
        return [tensor for item in items for tensor in tensors(item)]

    moved = Batch(value, torch.zeros(2)).to(META).inputs
    assert type(moved) is type(value)
    assert len(tensors(moved)) == len(tensors(value))
    assert all(tensor.device == META for tensor in tensors(moved))


def test_a_batch_moves_inputs_labels_and_ids_together():
    batch = Batch({"x": torch.zeros(2, 1)}, torch.zeros(2), torch.arange(2), draw=1).to(META)
    assert {batch.inputs["x"].device, batch.labels.device, batch.ids.device} == {META}
    assert batch.draw == 1
    assert len(batch) == 2


def test_a_batch_without_ids_can_be_moved():
    assert Batch(torch.zeros(2), torch.zeros(2)).to(META).ids is None


def test_a_batch_that_is_on_the_device_already_is_not_copied():
    batch = Batch(torch.zeros(2), torch.zeros(2))
    assert batch.to(torch.device("cpu")) is batch


def test_indicator_columns_become_floats_and_class_indices_int64():
    assert as_targets(torch.ones(2, 3, dtype=torch.int64)).dtype == torch.float32
    assert as_targets(torch.ones(2, 3, dtype=torch.bool)).dtype == torch.float32
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert as_targets(torch.ones(2, dtype=dtype)).dtype == torch.int64
    assert as_targets(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_the_order_and_the_dropout_of_an_epoch_draw_different_numbers():
    torch.manual_seed(derive_seed(3, 5))  # as the trainer seeds epoch 5, before its dropout
    assert torch.randperm(50).tolist() != shuffled(50, seed=3, epoch=5).tolist()


def test_batches_are_pinned_only_on_request(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # torch pins memory only then
    split = tiny_data().train
    assert not isinstance(load_ahead(batches(split, 4), workers=0, pin=False), DataLoader)
    assert load_ahead(batches(split, 4), workers=0, pin=True).pin_memory
    assert not load_ahead(batches(split, 4), workers=1, pin=False).pin_memory


@pytest.mark.parametrize(
    ("cores", "parallel", "pin", "workers"), [(8, 1, 1, 4), (3, 1, 1, 2), (8, 0, 1, 0), (8, 1, 0, 0)]
)
def test_workers_are_chosen_next_to_a_gpu_if_the_split_is_parallel(cores, parallel, pin, workers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "usable_cores", lambda: cores)
    # of which torch warns if there are fewer than workers
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores), raising=False)
    split = tiny_data().train
    split.parallel = bool(parallel)
    assert getattr(load_ahead(batches(split, 4), workers=None, pin=bool(pin)), "num_workers", 0) == workers
    assert load_ahead(batches(split, 4), workers=1, pin=True).num_workers == 1


def test_threads_are_chosen_next_to_a_gpu_if_the_split_asks_for_them(monkeypatch):
    monkeypatch.setattr(loading, "usable_cores", lambda: 8)
    split = tiny_data().train
    split.parallel = "threads"
    loader = load_ahead(batches(split, 4), workers=None, pin=True)
    assert (loader.threads, loader.pin) == (4, True)
    loader = load_ahead(batches(split, 4), workers=None, pin=False)
    assert [batch.ids.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_cores_are_not_counted_on_a_cpu(monkeypatch):
    monkeypatch.setattr(loading, "usable_cores", lambda: pytest.fail("which imports joblib"))
    split = tiny_data().train
    split.parallel = True
    assert not isinstance(load_ahead(batches(split, 4), workers=None, pin=False), DataLoader)


class Slow(Split):
    """Samples whose batches take longer the earlier they are; `loaded` lists the first row of each."""

    def __init__(self, fails_at=None):
        self.ids = torch.arange(20)
        self.loaded = []
        self.fails_at = fails_at

    def batch(self, rows, draw):
        first = int(rows[0])
        time.sleep(0.02 if first < 6 else 0)
        self.loaded.append(first)
        if first == self.fails_at:
            raise OSError("the disk is gone")
        return Batch(rows * 1.0, rows, self.ids[rows], draw)


def threaded(split, threads):
    return ThreadedBatches(batches(split, 2), threads, pin=False)


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_threads_return_batches_in_order(threads):
    assert [batch.labels.tolist() for batch in threaded(Slow(), threads)] == [[row, row + 1] for row in range(0, 20, 2)]


def test_an_error_in_a_thread_is_raised_in_its_turn():
    loader = iter(threaded(Slow(fails_at=6), 3))
    assert [next(loader).labels[0].item() for _ in range(3)] == [0, 2, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader)


def test_threads_load_no_further_ahead_than_their_number_and_stop_with_the_consumer():
    split = Slow()
    loader = iter(threaded(split, 3))
    next(loader)
    time.sleep(0.1)
    assert len(split.loaded) <= 4
    loader.close()
    assert len(split.loaded) <= 4


def test_tensors_on_a_device_are_not_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    host, device = torch.zeros(2), torch.zeros(2, device=META)
    batch = Batch({"a": device, "b": (host, device)}, device, ids=device).pin_memory()
    assert pinned == [host]
    assert batch.inputs["b"][1] is device
    Batch(host, host, ids=host).pin_memory()  # inputs, labels and ids
    assert len(pinned) == 4


@pytest.mark.parametrize(
    "item", [{"inputs": 1, "class": 2}, (1, 2, 3), (1, 2, 3, 4), "ab"], ids=["a dict", "a triple", "four", "a text"]
)
def test_a_loader_that_yields_no_pairs_is_refused(item):
    with pytest.raises(DataError, match=r"yields pairs \(inputs, labels\); got a"):
        next(iter(LoaderSplit([item])))


def test_a_worker_process_ignores_ctrl_c_on_windows_where_it_has_no_process_group(monkeypatch):
    monkeypatch.setattr(dataset, "sys", SimpleNamespace(platform="win32"))
    before, numbers = signal.getsignal(signal.SIGINT), []
    try:
        dataset.WorkerInit(numbers.append)(3)
        assert (signal.getsignal(signal.SIGINT), numbers) == (signal.SIG_IGN, [3])
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_of_a_fork_server_ends_with_the_training_process(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "setpgid", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())
    killed = SimpleNamespace(pid=-1, join=lambda: None)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: killed)
    WorkerInit()(0)
    assert ended.wait(10)
