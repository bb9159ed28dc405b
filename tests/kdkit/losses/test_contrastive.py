"""CRD: which samples its memories hold, which negatives it draws, and that its state is saved. InfoNCE, by loops."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import CRD, InfoNCE, extra_kwargs_of, requirements_of
from kdkit.losses.memory_bank import RowIndex, draw_rows, draw_rows_of_other_classes
from kdkit.utils import memory
from tests.helpers.losses import CONTEXT, build_loss

IDS, LABELS = torch.tensor([900, 7, 31, 2]), torch.tensor([0, 1, 2, 0])


def sides(student=(3,), target=(5,), batch=4):
    return torch.randn(batch, *student), torch.randn(batch, *target)


def contrast(**options):
    torch.manual_seed(0)
    return build_loss(CRD(**{"negatives": 6, "width": 4, **options}), *sides())


@pytest.mark.parametrize("positions", [(), (6,), (4, 3), (2, 3, 2)])
def test_features_of_any_dimension_give_gradients(positions):
    student, target = sides((3, *positions), (5, *positions))
    loss = build_loss(CRD(negatives=6, width=4), student, target)
    loss(student.requires_grad_(), target, ids=IDS, labels=LABELS).backward()
    assert student.grad.any()
    assert all(weight.grad is not None for weight in loss.parameters())


def test_training_lowers_the_loss_on_the_same_samples():
    loss, (student, target) = contrast(), sides()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        value = loss(student, target, ids=IDS, labels=LABELS)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert sum(values[-10:]) < sum(values[:10])


def test_memories_are_keyed_by_the_ids_of_samples():
    loss, (student, target) = contrast(), sides()
    loss(student, target, ids=IDS, labels=LABELS)
    before = loss.memories.clone()
    loss(student[1:2], target[1:2], ids=IDS[1:2], labels=LABELS[1:2])
    changed = (loss.memories != before).any(2)
    assert changed.sum(1).tolist() == [1, 1]
    assert changed[:, 1].all()
    assert loss.classes[:4].tolist() == LABELS.tolist()
    torch.testing.assert_close(loss.memories[:, :4].norm(dim=2), torch.ones(2, 4))


def test_a_restored_loss_resumes_bit_for_bit():
    loss, batches = contrast(), [sides() for _ in range(4)]
    for student, target in batches[:2]:
        loss(student, target, ids=IDS, labels=LABELS)
    saved = copy.deepcopy(loss.state_dict())
    rest = [loss(*batch, ids=IDS.flip(0), labels=LABELS).item() for batch in batches[2:]]
    torch.manual_seed(5)
    restored = build_loss(CRD(negatives=6, width=4), *sides())
    restored.load_state_dict(saved)
    assert [restored(*batch, ids=IDS.flip(0), labels=LABELS).item() for batch in batches[2:]] == rest
    assert all(torch.equal(*buffers) for buffers in zip(restored.buffers(), loss.buffers(), strict=True))


def test_nothing_is_remembered_in_eval_mode():
    loss, (student, target) = contrast().eval(), sides()
    before = copy.deepcopy(loss.state_dict())
    loss(student, target, ids=IDS, labels=LABELS)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_normalisers_are_those_of_the_first_batch():
    loss, (student, target) = contrast(), sides()
    loss(student, target, ids=IDS, labels=LABELS)
    first = loss.log_normalisers.clone()
    loss(*sides(), ids=IDS, labels=LABELS)
    assert first.isfinite().all()
    assert torch.equal(loss.log_normalisers, first)


def test_each_id_gets_one_row():
    rows = RowIndex(5)
    assert rows(torch.tensor([40, 10, 40]), remember=True).tolist() == [0, 1, 0]
    assert rows(torch.tensor([10, -3]), remember=True).tolist() == [1, 2]
    assert rows(torch.tensor([8]), remember=False).tolist() == [3]
    assert rows.ids.tolist()[:3] == [40, 10, -3]
    assert rows.assigned.item() == 3


def test_ids_keep_their_rows_in_any_order():
    rows, ids = RowIndex(60), torch.randperm(1000)[:60]
    stored = rows(ids, remember=True)
    assert sorted(stored.tolist()) == [*range(60)]
    order = torch.randperm(60)
    assert torch.equal(rows(ids[order], remember=True), stored[order])
    with_others = torch.stack([ids, ids], 1)[:, 0]  # not contiguous
    assert torch.equal(rows(with_others, remember=False), stored)


def test_a_full_memory_reuses_the_oldest_row():
    rows = RowIndex(2)
    rows(torch.tensor([1, 2]), remember=True)
    assert rows(torch.tensor([3]), remember=True).tolist() == [0]
    assert rows(torch.tensor([2, 1]), remember=True).tolist() == [1, 1]


def test_negatives_are_uniform_over_all_other_rows():
    rows = torch.arange(5)
    drawn = draw_rows(rows, 5, 8000, torch.tensor(3))
    assert not (drawn == rows[:, None]).any()
    shares = torch.stack([torch.bincount(row, minlength=5) for row in drawn]) / 8000
    assert (shares[shares > 0] - 0.25).abs().max() < 0.03


def test_negatives_are_uniform_over_other_classes():
    classes = torch.tensor([2, 0, 2, 1, -1, 0])
    rows = torch.arange(6)
    drawn = draw_rows_of_other_classes(rows, classes, 8000, torch.tensor(3))
    assert not (classes[drawn] == classes[:, None]).any()
    assert set(drawn[0].tolist()) == {1, 3, 4, 5}
    assert (torch.bincount(drawn[0], minlength=6)[[1, 3, 4, 5]] / 8000 - 0.25).abs().max() < 0.03


def test_negatives_of_a_single_class_are_any_rows():
    (drawn,) = draw_rows_of_other_classes(torch.zeros(1, dtype=torch.int64), torch.zeros(3), 99, torch.tensor(0))
    assert set(drawn.tolist()) == {0, 1, 2}


def test_negatives_are_a_function_of_row_and_seed_and_change_with_both():
    rows = torch.tensor([4, 9])
    first, second, later = (draw_rows(rows, 1000, 50, torch.tensor(time)) for time in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, later)
    assert not torch.equal(first[0], first[1])


def test_multilabel_data_contrasts_any_other_samples():
    student, target = sides()
    loss = build_loss(CRD(negatives=6), student, target, context=replace(CONTEXT, task="multilabel"))
    assert loss(student, target, ids=IDS, labels=torch.ones(4, 3)).isfinite()
    assert not loss.by_class


def test_samples_are_contrasted_without_labels():
    loss, (student, target) = contrast(against="samples"), sides()
    assert extra_kwargs_of(loss) == {"ids"}
    assert loss(student, target, ids=IDS).isfinite()
    with pytest.raises(RecipeError, match="needs labels; use against='samples'"):
        contrast()(student, target, ids=IDS)


def test_mixed_labels_are_refused():
    loss, (student, target) = contrast(), sides()
    with pytest.raises(RecipeError, match="CRD needs one class per sample"):
        loss(student, target, ids=IDS, labels=torch.full((4, 3), 1 / 3))


def test_ids_are_required_and_one_class_per_sample_if_negatives_are_by_class():
    assert requirements_of(CRD()) >= {"ids"}
    assert "hard_labels" in requirements_of(CRD(against="classes"))


def test_a_memory_too_large_is_refused_before_it_is_allocated():
    context = replace(CONTEXT, samples=10**12)
    with pytest.raises(RecipeError, match=r"for 1000000000000 samples, .* would take 1907349 GB, but cpu has"):
        build_loss(CRD(), *sides(), context=context)


def test_memories_are_checked_against_the_memory_limit_if_it_is_set(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 0)
    with pytest.raises(RecipeError, match=r"would take 20 MB, but the limit is 19 MB; use a smaller width"):
        build_loss(CRD(memory_limit=19, samples=2**20 // 100, width=125), *sides())
    assert build_loss(CRD(memory_limit=1), *sides()).memories.shape == (2, 12, 128)
    with pytest.raises(RecipeError, match="but cpu has 0 B left"):
        build_loss(CRD(), *sides())


def test_memories_of_an_earlier_build_are_freed_first(monkeypatch):
    held = []
    loss = contrast()
    monkeypatch.setattr(memory, "available", lambda device: held.append(loss.memories.numel()) or 10**9)
    build_loss(loss, *sides())
    assert held == [0]


def test_memory_is_checked_on_the_cpu_and_on_the_teachers_device(monkeypatch):
    devices = []
    monkeypatch.setattr(memory, "available", lambda device: devices.append(device.type) or 10**9)
    build_loss(CRD(), *sides(), teacher=nn.Linear(1, 1, device="meta"))
    assert devices == ["cpu", "meta"]


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (replace(CONTEXT, samples=None), "does not define how many"),
        (replace(CONTEXT, ids=False), "the data has none"),
    ],
)
def test_data_without_a_size_or_ids_is_refused(context, message):
    with pytest.raises(RecipeError, match=message):
        build_loss(CRD(), *sides(), context=context)


def test_a_memory_smaller_than_a_batch_is_refused():
    context = replace(CONTEXT, samples=12, batch_size=64)
    build_loss(CRD(samples=12), *sides(), context=context)
    with pytest.raises(RecipeError, match=r"CRD\(samples=11\) must have a row for each of the 12 samples of a batch"):
        build_loss(CRD(samples=11), *sides(), context=context)


def test_features_of_different_channels_need_an_embedding():
    with pytest.raises(RecipeError, match=r"CRD\(width=128\) embeds both"):
        build_loss(CRD(width=None), *sides())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "a temperature must be"),
        ({"negatives": 0}, "negatives must be"),
        ({"width": 0}, "width must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"samples": 0}, "samples must be"),
        ({"memory_limit": 0}, "memory_limit must be"),
        ({"against": "others"}, "against must be"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        CRD(**options)


@pytest.mark.parametrize("positions", [(), (6,), (4, 3)])
def test_info_nce_is_the_cross_entropy_of_the_sample_among_those_of_the_batch(positions):
    student, target = (side.double() for side in sides((3, *positions), (5,)))
    loss = build_loss(InfoNCE(temperature=0.2), student, target).double()
    pooled = student.flatten(2).mean(2) if positions else student
    vectors = pooled @ loss.projector.channels.weight.T + loss.projector.channels.bias

    def score(row, column):
        cosine = vectors[row] @ target[column] / (vectors[row].norm() * target[column].norm())
        return math.exp(cosine.item() / 0.2)

    rows = [score(row, row) / sum(score(row, column) for column in range(4)) for row in range(4)]
    assert loss(student, target).item() == pytest.approx(-sum(map(math.log, rows)) / 4, rel=1e-9)


def test_info_nce_of_one_sample_has_nothing_to_learn():
    student, target = sides((3,), (3,), batch=1)
    value = build_loss(InfoNCE(), student, target)(student.requires_grad_(), target)
    value.backward()
    assert value == 0
    assert not student.grad.any()
