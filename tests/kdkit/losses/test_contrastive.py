"""CRD: what it remembers of whom, which others it draws, and that all of it is saved."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import CRD, needs_of
from kdkit.losses.memory_bank import Rows, other_rows, rows_of_other_classes
from kdkit.utils import memory
from tests.helpers.losses import FACTS, built

IDS, LABELS = torch.tensor([900, 7, 31, 2]), torch.tensor([0, 1, 2, 0])


def sides(student=(3,), target=(5,), batch=4):
    return torch.randn(batch, *student), torch.randn(batch, *target)


def contrast(**options):
    torch.manual_seed(0)
    return built(CRD(**{"negatives": 6, "width": 4, **options}), *sides())


@pytest.mark.parametrize("positions", [(), (6,), (4, 3), (2, 3, 2)])
def test_features_of_any_dimension_are_learned_from(positions):
    student, target = sides((3, *positions), (5, *positions))
    loss = built(CRD(negatives=6, width=4), student, target)
    loss(student.requires_grad_(), target, ids=IDS, labels=LABELS).backward()
    assert student.grad.any()
    assert all(weight.grad is not None for weight in loss.parameters())


def test_the_same_samples_are_told_apart_better_with_time():
    loss, (student, target) = contrast(), sides()
    rate = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        value = loss(student, target, ids=IDS, labels=LABELS)
        rate.zero_grad()
        value.backward()
        rate.step()
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


def test_a_restored_loss_goes_on_to_the_last_bit():
    loss, batches = contrast(), [sides() for _ in range(4)]
    for student, target in batches[:2]:
        loss(student, target, ids=IDS, labels=LABELS)
    saved = copy.deepcopy(loss.state_dict())
    rest = [loss(*batch, ids=IDS.flip(0), labels=LABELS).item() for batch in batches[2:]]
    torch.manual_seed(5)
    restored = built(CRD(negatives=6, width=4), *sides())
    restored.load_state_dict(saved)
    assert [restored(*batch, ids=IDS.flip(0), labels=LABELS).item() for batch in batches[2:]] == rest
    assert all(torch.equal(one, other) for one, other in zip(restored.buffers(), loss.buffers(), strict=True))


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


def test_a_row_is_given_to_each_id_once():
    rows = Rows(5)
    assert rows(torch.tensor([40, 10, 40]), remember=True).tolist() == [0, 1, 0]
    assert rows(torch.tensor([10, -3]), remember=True).tolist() == [1, 2]
    assert rows(torch.tensor([8]), remember=False).tolist() == [3]
    assert rows.known.tolist()[:3] == [40, 10, -3]
    assert rows.given.item() == 3


def test_a_full_memory_gives_the_oldest_row_anew():
    rows = Rows(2)
    rows(torch.tensor([1, 2]), remember=True)
    assert rows(torch.tensor([3]), remember=True).tolist() == [0]
    assert rows(torch.tensor([2, 1]), remember=True).tolist() == [1, 1]


def test_negatives_are_any_rows_but_ones_own_and_evenly_so():
    rows = torch.arange(5)
    found = other_rows(rows, 5, 8000, torch.tensor(3))
    assert not (found == rows[:, None]).any()
    shares = torch.stack([torch.bincount(row, minlength=5) for row in found]) / 8000
    assert (shares[shares > 0] - 0.25).abs().max() < 0.03


def test_negatives_are_of_other_classes_and_evenly_so():
    classes = torch.tensor([2, 0, 2, 1, -1, 0])
    rows = torch.arange(6)
    found = rows_of_other_classes(rows, classes, 8000, torch.tensor(3))
    assert not (classes[found] == classes[:, None]).any()
    assert set(found[0].tolist()) == {1, 3, 4, 5}
    assert (torch.bincount(found[0], minlength=6)[[1, 3, 4, 5]] / 8000 - 0.25).abs().max() < 0.03


def test_negatives_of_a_single_class_are_any_rows():
    assert set(
        rows_of_other_classes(torch.zeros(1, dtype=torch.int64), torch.zeros(3), 99, torch.tensor(0))[0].tolist()
    ) == {
        0,
        1,
        2,
    }


def test_negatives_are_a_function_of_row_and_count_and_change_with_either():
    rows = torch.tensor([4, 9])
    one, again, later = (other_rows(rows, 1000, 50, torch.tensor(time)) for time in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, later)
    assert not torch.equal(one[0], one[1])


def test_data_of_several_labels_contrasts_any_other_samples():
    student, target = sides()
    loss = built(CRD(negatives=6), student, target, facts=replace(FACTS, task="multilabel"))
    assert loss(student, target, ids=IDS, labels=torch.ones(4, 3)).isfinite()
    assert not loss.by_class


def test_mixed_labels_have_no_other_classes():
    loss, (student, target) = contrast(), sides()
    with pytest.raises(RecipeError, match="CRD needs one class per sample"):
        loss(student, target, ids=IDS, labels=torch.full((4, 3), 1 / 3))


def test_ids_are_needed_and_a_class_each_where_asked_for():
    assert needs_of(CRD()) >= {"ids"}
    assert "hard_labels" in needs_of(CRD(against="classes"))


def test_a_memory_too_large_is_refused_before_it_is_made():
    facts = replace(FACTS, samples=10**12)
    with pytest.raises(RecipeError, match=r"for 1000000000000 samples, .* would take 1907349 GB, but cpu has"):
        built(CRD(), *sides(), facts=facts)


def test_memories_are_held_to_a_limit_of_ones_own_where_there_is_one(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 0)
    with pytest.raises(RecipeError, match=r"would take 20 MB, but the limit is 19 MB; embed in a smaller width"):
        built(CRD(memory_limit=19, samples=2**20 // 100, width=125), *sides())
    assert built(CRD(memory_limit=1), *sides()).memories.shape == (2, 12, 128)
    with pytest.raises(RecipeError, match="but cpu has 0 B left"):
        built(CRD(), *sides())


def test_memories_of_an_earlier_build_do_not_count_as_taken(monkeypatch):
    held = []
    loss = contrast()
    monkeypatch.setattr(memory, "available", lambda device: held.append(loss.memories.numel()) or 10**9)
    built(loss, *sides())
    assert held == [0]


def test_the_teachers_device_needs_room_beside_the_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "available", lambda device: asked.append(device.type) or 10**9)
    built(CRD(), *sides(), teacher=nn.Linear(1, 1, device="meta"))
    assert asked == ["cpu", "meta"]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (replace(FACTS, samples=None), "does not say how many"),
        (replace(FACTS, ids=False), "the data has none"),
    ],
)
def test_data_that_cannot_be_remembered_is_refused(facts, says):
    with pytest.raises(RecipeError, match=says):
        built(CRD(), *sides(), facts=facts)


def test_features_of_other_channels_are_not_contrasted_as_they_are():
    with pytest.raises(RecipeError, match=r"CRD\(width=128\) embeds both"):
        built(CRD(width=None), *sides())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0}, "a temperature is"),
        ({"negatives": 0}, "negatives is"),
        ({"width": 0}, "width is"),
        ({"momentum": 1.0}, "momentum is"),
        ({"samples": 0}, "samples is"),
        ({"memory_limit": 0}, "memory_limit is"),
        ({"against": "others"}, "against is"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, says):
    with pytest.raises(RecipeError, match=says):
        CRD(**options)
