"""What one of several processes has to do, and what cannot be shared out among them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from kdkit import DataError, RecipeError, TorchData
from kdkit.data.loading import batches, shard_rows
from kdkit.engine import distributed
from kdkit.utils import collectives
from tests.helpers.tiny import samples, tiny_data


@pytest.fixture
def two(monkeypatch):
    """Make this process the second of two, as far as nothing is told between them."""
    monkeypatch.setattr(collectives, "is_distributed", lambda: True)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_gather_objects", lambda values: [*values, *values])


@pytest.mark.parametrize(("size", "parts"), [(8, [4, 4]), (7, [4, 3]), (4, [2, 2]), (3, [3, 3]), (1, [1, 1])])
def test_a_batch_is_shared_out_where_each_process_has_two_samples(size, parts):
    rows = torch.arange(size)
    shares = [shard_rows(rows, (number, 2)) for number in range(2)]
    assert [len(each) for each in shares] == parts
    whole = rows if sum(parts) == size else torch.cat([rows, rows])
    assert torch.equal(torch.cat(shares), whole)


def test_processes_fetch_different_rows_which_are_together_those_of_one():
    split = tiny_data(rows=22).train
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))
    wholes = [batch.ids for batch in batches(split, 8, order=order)]
    parts = [[batch.ids for batch in batches(split, 8, order=order, shard=(number, 3))] for number in range(3)]
    assert [len(ids) for ids in parts[2]] == [2, 2, 2]
    for index, whole in enumerate(wholes):
        assert torch.equal(torch.cat([each[index] for each in parts]), whole)


@pytest.mark.parametrize(("parts", "whole"), [((4, 4), 8), ((4, 3), 7), ((3, 3), 3)])
def test_the_mean_over_processes_of_weighted_means_is_that_of_the_batch(two, parts, whole):
    values = torch.arange(float(whole))
    own = [values, values] if parts[0] == whole else values.split(parts)
    weighted = [part.mean() * distributed.weight_of(len(part), whole) for part in own]
    assert sum(weighted) / 2 == pytest.approx(values.mean())


def test_a_loader_of_ones_own_cannot_be_shared_out(two):
    data = TorchData(DataLoader(samples()), samples(), classes=["a", "b", "c"])
    with pytest.raises(DataError, match="pass its Dataset instead"):
        distributed.require_shareable(data, [8])


def test_a_batch_too_small_for_all_processes_is_refused(two):
    distributed.require_shareable(tiny_data(), [8, 4])
    with pytest.raises(RecipeError, match="a batch of 3 cannot be shared out among 2 processes"):
        distributed.require_shareable(tiny_data(), [8, 3])


def test_frozen_batch_norm_is_not_warned_of(two):
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert len([*distributed.notices([norm])]) == 2
    norm.requires_grad_(False)
    assert len([*distributed.notices([norm])]) == 1


@pytest.mark.parametrize(("chosen", "threads"), [("1", 3), (None, 3), ("2", None)])
def test_cores_are_shared_among_the_processes_of_a_machine_unless_somebody_chose(monkeypatch, chosen, threads):
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS") if chosen is None else monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    distributed._share_cores()
    assert set_to == ([] if threads is None else [threads])
