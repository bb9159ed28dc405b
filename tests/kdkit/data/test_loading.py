"""Batches, orders and seeds."""

import os
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from kdkit import Batch, DataError, LoaderSplit
from kdkit.data.batch import as_targets, moved
from kdkit.data.loading import batches, shuffled, training_order
from kdkit.utils.randomness import derive_seed
from tests.helpers.tiny import tiny_data

META = torch.device("meta")
Pair = namedtuple("Pair", "left right")


def test_seeds_stay_what_they_are():
    assert derive_seed(0) == 3980143261097177850
    assert derive_seed(1, 2) == 4775233734956296224
    assert derive_seed(2, 1) == 1689874118103579988
    assert derive_seed(0, 0, 0) == 4635879678023765015


def test_orders_stay_what_they_are():
    assert shuffled(10, seed=0, epoch=0).tolist() == [7, 1, 2, 9, 3, 8, 4, 6, 5, 0]
    assert shuffled(10, seed=7, epoch=3).tolist() == [4, 9, 1, 8, 3, 7, 0, 6, 5, 2]


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_any_seed_is_one_that_torch_takes(numbers):
    seed = derive_seed(*numbers)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_near_seeds_do_not_meet():
    assert len({derive_seed(seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500


@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 9))
def test_an_order_holds_every_row_once(rows, seed, epoch):
    assert sorted(shuffled(rows, seed, epoch).tolist()) == list(range(rows))


def test_an_order_is_left_alone_by_the_global_random_state():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = shuffled(20, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(shuffled(20, 0, 0), first)


@pytest.mark.parametrize(("rows", "size", "kept"), [(9, 4, 8), (8, 4, 8), (10, 4, 10), (1, 4, 1), (5, 1, 5), (4, 4, 4)])
def test_a_last_batch_of_a_single_sample_is_left_out_of_training(rows, size, kept):
    order = training_order(tiny_data(rows=rows).train, size, seed=0, epoch=0)
    assert len(order) == kept
    assert len(order) == len(set(order.tolist()))


def test_a_loader_of_ones_own_keeps_its_order():
    loader = DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4)
    stream = LoaderSplit(loader)
    assert training_order(stream, 2, 0, 0) is None
    assert batches(stream, 2) is stream
    assert [batch.labels.tolist() for batch in stream] == [[0, 1, 2, 3], [4, 5]]
    assert [batch.ids for batch in stream] == [None, None]
    assert len(stream) == 2


def test_batches_come_in_the_order_asked_for_and_carry_their_ids():
    split = tiny_data().train
    order = torch.tensor([5, 0, 3])
    first, second = batches(split, 2, order=order)
    assert first.ids.tolist() == [5, 0]
    assert second.ids.tolist() == [3]
    assert torch.equal(first.inputs, split.batch(torch.tensor([5, 0]), 0).inputs)


def test_batches_can_be_read_twice_and_know_how_many_they_are():
    fetched = batches(tiny_data(rows=7).train, 3)
    assert len(fetched) == 3
    assert [len(batch) for batch in fetched] == [3, 3, 1] == [len(batch) for batch in fetched]


def test_batches_ask_for_the_draw():
    class Drawn:
        ids = torch.arange(2)

        def __len__(self):
            return 2

        def batch(self, rows, draw):
            return Batch(torch.zeros(len(rows), 1), torch.zeros(len(rows)), self.ids[rows], draw)

    assert [batch.draw for batch in batches(Drawn(), 2, draw=3)] == [3]
    assert [batch.draw for batch in batches(Drawn(), 2, draw=None)] == [0]


def test_worker_processes_give_the_same_batches():
    split = tiny_data().train
    here, there = list(batches(split, 3)), list(batches(split, 3, workers=1))
    assert len(there) == len(here)
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(here, there, strict=True))
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(here, there, strict=True))


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        (torch.zeros(2), torch.zeros(3)),
        [torch.zeros(2), "kept"],
        {"a": torch.zeros(2), "b": [torch.zeros(1)]},
        Pair(torch.zeros(2), (torch.zeros(1),)),
    ],
)
def test_inputs_of_any_form_are_moved_and_keep_their_form(value):
    def tensors(one):
        if isinstance(one, torch.Tensor):
            return [one]
        items = one.values() if isinstance(one, dict) else one if isinstance(one, tuple | list) else ()
        return [tensor for item in items for tensor in tensors(item)]

    there = moved(value, META)
    assert type(there) is type(value)
    assert len(tensors(there)) == len(tensors(value))
    assert all(tensor.device == META for tensor in tensors(there))


def test_a_batch_moves_inputs_labels_and_ids_together():
    batch = Batch({"x": torch.zeros(2, 1)}, torch.zeros(2), torch.arange(2), draw=1).to(META)
    assert {batch.inputs["x"].device, batch.labels.device, batch.ids.device} == {META}
    assert batch.draw == 1
    assert len(batch) == 2


def test_a_batch_without_ids_can_be_moved():
    assert Batch(torch.zeros(2), torch.zeros(2)).to(META).ids is None


def test_a_batch_that_is_there_already_is_not_copied():
    batch = Batch(torch.zeros(2), torch.zeros(2))
    assert batch.to(torch.device("cpu")) is batch


def test_indicator_columns_become_floats_and_class_indices_stay():
    assert as_targets(torch.ones(2, 3, dtype=torch.int64)).dtype == torch.float32
    assert as_targets(torch.ones(2, 3, dtype=torch.bool)).dtype == torch.float32
    assert as_targets(torch.ones(2, dtype=torch.int64)).dtype == torch.int64
    assert as_targets(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_an_order_and_the_dropout_of_its_epoch_draw_different_numbers():
    torch.manual_seed(derive_seed(3, 5))
    assert torch.randperm(50).tolist() != shuffled(50, seed=3, epoch=5).tolist()


def test_batches_are_pinned_only_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    split = tiny_data().train
    assert not isinstance(batches(split, 4), DataLoader)
    assert batches(split, 4, pin=True).pin_memory
    assert not batches(split, 4, workers=1).pin_memory


@pytest.mark.parametrize(
    ("processors", "parallel", "pin", "workers"), [(8, 1, 1, 4), (3, 1, 1, 2), (8, 0, 1, 0), (8, 1, 0, 0)]
)
def test_workers_are_chosen_beside_a_gpu_for_data_that_others_may_fetch(
    processors, parallel, pin, workers, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(processors), raising=False)
    split = tiny_data().train
    split.parallel = bool(parallel)
    assert getattr(batches(split, 4, workers=None, pin=bool(pin)), "num_workers", 0) == workers
    assert batches(split, 4, workers=1, pin=True).num_workers == 1


def test_what_is_not_in_the_memory_of_the_host_is_not_pinned(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    host, device = torch.zeros(2), torch.zeros(2, device=META)
    batch = Batch({"a": device, "b": (host, device)}, device, ids=device).pin_memory()
    assert pinned == [host]
    assert batch.inputs["b"][1] is device
    Batch(host, host, ids=host).pin_memory()
    assert len(pinned) == 4


@pytest.mark.parametrize("item", [{"inputs": 1, "labels": 2}, (1, 2, 3)], ids=["a dict", "a triple"])
def test_a_loader_that_yields_no_pairs_is_refused_at_any_split(item):
    with pytest.raises(DataError, match=r"yields pairs \(inputs, labels\); got a"):
        next(iter(LoaderSplit([item])))
