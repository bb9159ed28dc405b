"""A batch is divided among ranks, and runs that cannot be divided are refused."""

import hashlib
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from kdkit import DataError, RecipeError, TorchData, Training
from kdkit.data.device_data import DeviceData
from kdkit.data.order import shard_rows
from kdkit.engine.distributed import data_parallel, process_group, rank_agreement
from kdkit.engine.options import RunOptions
from kdkit.engine.run_record import Origin, _notices_of_ranks
from kdkit.engine.stage.training_batches import TrainingBatches
from kdkit.utils import collectives
from tests.helpers.tiny import one_stage, plain_goal, samples, tiny_data, tiny_net


@pytest.fixture
def two_ranks(monkeypatch):
    """Make this process believe that it is one of two ranks, whose data are equal."""
    monkeypatch.setattr(collectives, "is_distributed", lambda: True)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_gather_objects", lambda values: [*values, *values])


@pytest.mark.parametrize(("size", "sizes"), [(8, [4, 4]), (7, [4, 3]), (4, [2, 2]), (3, [3, 3]), (1, [1, 1])])
def test_a_batch_is_divided_if_each_rank_gets_two_samples(size, sizes):
    rows = torch.arange(size)
    parts = [shard_rows(rows, rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == sizes
    # A smaller batch is not divided: every rank computes all of it.
    expected = rows if sum(sizes) == size else torch.cat([rows, rows])
    assert torch.equal(torch.cat(parts), expected)


def test_ranks_load_different_rows_that_together_are_the_batch_of_one_rank(monkeypatch):
    def load():
        training = Training(epochs=1, batch_size=8)
        data_on_cpu = DeviceData(torch.device("cpu"), share=0.0, draws=1, passes=1)
        return [batch.ids for batch in TrainingBatches(tiny_data(rows=22), data_on_cpu, training, seed=0).epoch(0)]

    whole_ids, ids_by_rank = load(), []
    for rank in range(3):
        for name, value in (("is_distributed", True), ("rank", rank), ("world_size", 3)):
            monkeypatch.setattr(collectives, name, lambda value=value: value)
        ids_by_rank.append(load())
    assert [len(ids) for ids in ids_by_rank[2]] == [2, 2, 2]
    for index, ids in enumerate(whole_ids):
        assert torch.equal(torch.cat([rank_ids[index] for rank_ids in ids_by_rank]), ids)


@pytest.mark.parametrize(("sizes", "whole"), [((4, 4), 8), ((4, 3), 7), ((3, 3), 3)])
def test_the_weighted_mean_over_ranks_is_the_mean_over_the_batch(two_ranks, sizes, whole):
    values = torch.arange(float(whole))
    parts = [values, values] if sizes[0] == whole else values.split(sizes)
    weighted = [part.mean() * data_parallel.rank_share(len(part), whole)[0] for part in parts]
    # DistributedDataParallel takes the plain mean over ranks.
    assert sum(weighted) / 2 == pytest.approx(values.mean())


def test_a_user_defined_loader_cannot_be_divided(two_ranks):
    data = TorchData(DataLoader(samples()), samples(), classes=["a", "b", "c"])
    with pytest.raises(DataError, match="pass its Dataset and collate_fn to TorchData instead"):
        data_parallel.require_divisible(data, [8])


def test_a_batch_that_is_too_small_for_all_ranks_is_refused(two_ranks):
    data_parallel.require_divisible(tiny_data(), [8, 4])
    with pytest.raises(RecipeError, match="a batch of 3 samples cannot be divided among 2 processes"):
        data_parallel.require_divisible(tiny_data(), [8, 3])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Mine(names=frozenset({'a', 'b'}))", "Mine(names=frozenset({'b', 'a'}))"),
        ("LRSchedule(lr_lambda=<function falling at 0x7f0a>)", "LRSchedule(lr_lambda=<function falling at 0x7f0b>)"),
        ("Mine(tensor([1.], device='cuda:0'))", "Mine(tensor([1.], device='cuda:1'))"),
    ],
)
def test_what_differs_between_processes_alone_is_no_difference_of_their_recipes(first, second):
    assert rank_agreement._text(first) == rank_agreement._text(second)
    assert rank_agreement._text(first) != rank_agreement._text(first.replace("Mine", "Other").replace("LR", "Other"))


def test_a_recipe_file_that_is_edited_or_deleted_meanwhile_is_no_difference(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("started")
    origin, recipe = Origin(file=file), one_stage(tiny_net("student"), plain_goal())
    file.unlink()
    facts = dict(rank_agreement._facts(recipe, RunOptions(), torch.device("cpu"), origin))
    assert facts["the recipe file"] == hashlib.sha256(b"started").hexdigest()


def test_the_notice_about_batch_norm_is_left_out_if_it_is_frozen(two_ranks):
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert len([*_notices_of_ranks([norm])]) == 2
    norm.requires_grad_(False)
    assert len([*_notices_of_ranks([norm])]) == 1


@pytest.mark.parametrize(("variable", "threads"), [("1", 3), (None, 3), ("2", None)])
def test_the_cores_of_a_machine_are_divided_among_its_ranks_unless_the_user_set_threads(monkeypatch, variable, threads):
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(process_group, "usable_cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("OMP_NUM_THREADS") if variable is None else monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(process_group, "launched", lambda: True)

    def no_rendezvous(*_args, **_kwargs):
        raise ConnectionError("no other rank")  # threads are set before the ranks meet

    monkeypatch.setattr(sys.modules["torch.distributed.rendezvous"], "rendezvous", no_rendezvous)
    with pytest.raises(ConnectionError, match="no other rank"), process_group.joined():
        pass
    assert calls == ([] if threads is None else [threads])
