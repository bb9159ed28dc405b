"""Two lists of classes brought together: what one side lacks is left out."""

import pytest
import torch

from kdkit import RecipeError
from kdkit.classes import Shared, SharedClasses, shared


def test_the_same_classes_need_nothing():
    assert shared(["a", "b"], ("a", "b"), "both") is None


def test_shared_classes_are_found_in_the_order_of_the_first_side():
    assert shared(["c", "x", "a"], ["a", "b", "c"], "both") == Shared((0, 2), (2, 0))


def test_another_order_of_the_same_classes_is_a_difference():
    assert shared(["b", "a"], ["a", "b"], "both") == Shared((0, 1), (1, 0))


def test_sides_without_a_shared_class_are_refused():
    with pytest.raises(RecipeError, match=r"student and teacher share no class: a ... against b"):
        shared(["a"], ["b"], "student and teacher")


def test_columns_are_cut_and_brought_into_one_order():
    cut = SharedClasses(shared(["c", "x", "a"], ["a", "b", "c"], "both"))
    student, target = cut.columns(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]]))
    assert student.tolist() == [[1, 3]]
    assert target.tolist() == [[30, 10]]


def test_rows_of_a_class_that_the_net_does_not_know_are_dropped():
    cut = SharedClasses(shared(["c", "x", "a"], ["a", "b", "c"], "both"))
    outputs = torch.arange(9.0).view(3, 3)
    student, labels = cut.rows(outputs, torch.tensor([0, 1, 2]))
    assert student.tolist() == [[0, 2], [6, 8]]
    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_a_batch_without_any_known_class_is_empty():
    cut = SharedClasses(shared(["a"], ["a", "b"], "both"))
    student, labels = cut.rows(torch.ones(2, 1), torch.tensor([1, 1]))
    assert student.shape == (0, 1)
    assert len(labels) == 0


def test_positions_move_with_the_net_and_are_not_saved():
    cut = SharedClasses(Shared((0,), (1,)))
    assert cut.state_dict() == {}
    assert {buffer.device.type for buffer in cut.to("meta").buffers()} == {"meta"}
