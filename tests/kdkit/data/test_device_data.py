"""Samples that are kept on a device are the samples of their split, in any order and draw."""

from dataclasses import replace

import pytest
import torch

from kdkit import Batch, Split
from kdkit.data.batch import select_rows
from kdkit.data.device_data import DeviceData, KeptSamples
from kdkit.data.loading import RowBatches, batches
from kdkit.data.order import rows_of_batches, shuffled

CPU = torch.device("cpu")
ROWS = 11
ALL = (torch.arange(ROWS),)  # one batch


class Drawn(Split):
    """Samples that differ in each draw. lengths: of the signals, by row."""

    def __init__(self, lengths=(3,) * ROWS, with_ids=True):
        self.lengths, self.with_ids = lengths, with_ids
        self.ids = torch.arange(100, 100 + len(lengths))

    def batch(self, rows, draw):
        signal = (rows * 10.0 + draw)[:, None].expand(-1, self.lengths[int(rows[0])])
        ids = self.ids[rows] if self.with_ids else None
        return Batch((signal, {"row": rows.clone()}), rows % 3, ids, draw, ids)


def keep_all(kept, split, draw, size=4):
    for rows in rows_of_batches(split, size, shuffled(len(split), 0, draw)):
        kept.keep(split.batch(rows, draw), rows, draw)


@pytest.mark.parametrize("length", [3, 2000], ids=["gathered for an epoch", "gathered for a batch"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_kept_batches_are_those_of_the_split_in_every_draw_and_order(with_ids, length):
    split = Drawn(with_ids=with_ids, lengths=(length,) * ROWS)
    kept = KeptSamples(split, 2, CPU, share=0.5)
    for draw in (0, 1):
        assert not kept.has(ALL, draw)
        keep_all(kept, split, draw)
        assert kept.has(ALL, draw)
    rows = rows_of_batches(split, 5, shuffled(ROWS, 7, 0))
    for draw in (1, 0):
        for batch, batch_rows in zip(kept.batches(rows, draw), rows, strict=True):
            expected = split.batch(batch_rows, draw)
            assert torch.equal(batch.inputs[0], expected.inputs[0])
            assert torch.equal(batch.inputs[1]["row"], expected.inputs[1]["row"])
            assert torch.equal(batch.labels, expected.labels)
            assert batch.draw == draw
            assert torch.equal(batch.ids_on_cpu, expected.ids) if with_ids else batch.ids is None


class Images(Split):
    """Images of 16 bits."""

    pixels = torch.randint(0, 2**16, (ROWS, 1, 4, 4)).to(torch.uint16)
    ids = torch.arange(ROWS)

    def batch(self, rows, draw):
        return Batch(select_rows(self.pixels, rows), rows % 3, rows, draw)


def test_unsigned_inputs_are_kept():
    split = Images()
    kept = KeptSamples(split, 1, CPU, share=0.5)
    keep_all(kept, split, 0)
    (batch,) = kept.batches((torch.tensor([7, 0, 3]),), 0)
    assert batch.inputs.dtype == torch.uint16
    assert batch.inputs.long().equal(split.pixels.long()[[7, 0, 3]])


def test_a_draw_of_which_a_batch_is_missing_is_not_complete():
    split = Drawn()
    kept = KeptSamples(split, 1, CPU, share=0.5)
    for rows in rows_of_batches(split, 4)[:-1]:
        kept.keep(split.batch(rows, 0), rows, 0)
    assert not kept.has(ALL, 0)
    assert kept.has(rows_of_batches(split, 4)[:-1], 0)


def test_samples_that_do_not_fit_are_not_kept():
    split = Drawn()
    kept = KeptSamples(split, 1, CPU, share=1e-12)
    keep_all(kept, split, 0)
    assert not kept.has(ALL, 0)


def test_samples_of_different_lengths_are_not_kept():
    split = Drawn(lengths=(3, 3, 5, 5))
    kept = KeptSamples(split, 1, CPU, share=0.5)
    for rows in rows_of_batches(split, 2):
        kept.keep(split.batch(rows, 0), rows, 0)
    assert not kept.has((torch.arange(4),), 0)


def test_samples_that_change_when_they_are_read_again_are_not_kept():
    class Augmented(Drawn):
        def batch(self, rows, draw):
            batch = super().batch(rows, draw)
            return replace(batch, inputs=torch.rand(len(rows), 3))

    state = torch.get_rng_state()
    kept = KeptSamples(Augmented(), 1, CPU, share=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    keep_all(kept, Augmented(), 0)
    assert not kept.has(ALL, 0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "inputs",
    [
        lambda parts: torch.nested.nested_tensor(parts),
        lambda parts: torch.nested.nested_tensor(parts, layout=torch.jagged),
        lambda parts: torch.stack(parts).to_sparse(),
    ],
    ids=["nested", "jagged", "sparse"],
)
def test_inputs_that_are_not_dense_are_not_kept(inputs):
    split, rows = Drawn(lengths=(3, 3)), torch.arange(2)
    kept = KeptSamples(split, 1, CPU, share=0.5)
    kept.keep(Batch(inputs([torch.ones(2, 3)] * 2), rows, rows, 0, rows), rows, 0)
    assert not kept.has((rows,), 0)


def test_a_gathered_batch_is_a_copy_that_a_net_may_change_in_place():
    split = Drawn()
    kept = KeptSamples(split, 1, CPU, share=0.5)
    keep_all(kept, split, 0)
    rows = torch.tensor([1, 2])
    for _ in range(2):
        (batch,) = kept.batches((rows,), 0)
        assert torch.equal(batch.inputs[0], split.batch(rows, 0).inputs[0])
        batch.inputs[0].zero_()


def test_on_a_cpu_batches_are_loaded_as_they_are():
    split = Drawn()
    data = DeviceData(CPU, share=0.5, draws=1, passes=3)
    for _ in range(3):
        loaded = data.load(batches(split, 4), keep_draws=1)
        assert [len(batch) for batch in loaded] == [4, 4, 3]
    assert not data._kept


def test_samples_that_are_kept_are_read_once_in_each_draw(monkeypatch):
    class Counted(Drawn):
        read = 0

        def batch(self, rows, draw):
            self.read += len(rows)
            return super().batch(rows, draw)

    split = Counted()
    data = DeviceData(CPU, share=0.5, draws=2, passes=3)
    monkeypatch.setattr(data, "_share", 0.5)  # which is 0 on a CPU, whose samples are there already

    def load(draw, keep_draws=2):
        rows = rows_of_batches(split, 4, shuffled(ROWS, 3, draw))
        return [batch.labels.tolist() for batch in data.load(RowBatches(split, rows, draw=draw), keep_draws=keep_draws)]

    first = [load(draw) for draw in (0, 1)]
    reads = split.read
    assert [load(draw) for draw in (0, 1)] == first
    assert split.read == reads
    assert load(0, keep_draws=0) == first[0]
    assert split.read == reads + ROWS
