"""Lists of classes brought together: what one side lacks is left out."""

import pytest
import torch

from kdkit import RecipeError
from kdkit.engine.class_alignment import ClassAlignment, TermInputs, shared


def compared(student, target=None, labels=(0, 1, 2), teacher_outputs=(), ids=(5, 6, 7)):
    return TermInputs(student, target, torch.tensor(labels), torch.tensor(ids), teacher_outputs)


def cut(student=(0, 2), targets=(), outputs=False, labels=None, task="multiclass"):
    return ClassAlignment(student=student, targets=targets, outputs=outputs, labels=labels, task=task)


def test_the_same_classes_need_nothing():
    assert shared((["a", "b"], ("a", "b"), ["a", "b"]), "all") is None


def test_shared_classes_are_found_in_the_order_of_the_first_side():
    assert shared((["c", "x", "a"], ["a", "b", "c"]), "both") == ((0, 2), (2, 0))


def test_of_three_sides_those_are_shared_that_all_have():
    assert shared((["a", "b", "c"], ["c", "b"], ["b", "x", "c"]), "all") == ((1, 2), (1, 0), (0, 2))


def test_another_order_of_the_same_classes_is_a_difference():
    assert shared((["b", "a"], ["a", "b"]), "both") == ((0, 1), (1, 0))


def test_sides_without_a_shared_class_are_refused():
    with pytest.raises(RecipeError, match=r"student and teacher share no class: a ... against b"):
        shared((["a"], ["b"]), "student and teacher")


def test_columns_are_cut_and_brought_into_one_order():
    given = compared(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]]))
    found = cut(targets=((2, 0),), outputs=True)(given)
    assert found.student.tolist() == [[1, 3]]
    assert found.target.tolist() == [[30, 10]]
    assert found.labels is given.labels


def test_features_are_left_as_they_are():
    student, target = torch.ones(3, 4), torch.ones(3, 5)
    found = cut(student=None, targets=((1,),), labels=(0, 1, 2), task="multilabel")(
        TermInputs(student, target, torch.eye(3), None, (torch.ones(3, 2),))
    )
    assert found.student is student
    assert found.target is target
    assert found.teacher_outputs[0].shape == (3, 1)


def test_columns_of_labels_are_cut_where_each_sample_has_several():
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    found = cut(labels=(2, 0), task="multilabel")(TermInputs(torch.ones(2, 3), None, labels, None, ()))
    assert found.labels.tolist() == [[1, 1], [0, 0]]


def test_rows_of_a_class_that_is_not_shared_are_dropped_everywhere():
    outputs = torch.arange(9.0).view(3, 3)
    given = compared(outputs, (outputs, 2 * outputs), teacher_outputs=(outputs, 2 * outputs))
    found = cut(targets=((0, 2), (1, 2)), outputs=True, labels=(2, 0))(given)
    assert found.student.tolist() == [[0, 2], [6, 8]]
    assert [each.tolist() for each in found.target] == [[[0, 2], [6, 8]], [[2, 4], [14, 16]]]
    assert [each.tolist() for each in found.teacher_outputs] == [each.tolist() for each in found.target]
    assert found.labels.tolist() == [1, 0]
    assert found.labels.dtype == torch.int64
    assert found.ids.tolist() == [5, 7]


def test_a_batch_without_any_known_class_is_empty():
    found = cut(student=(0,), labels=(0,))(compared(torch.ones(2, 1), labels=(1, 1), ids=(0, 1)))
    assert found.student.shape == (0, 1)
    assert len(found.labels) == 0


def test_positions_move_with_the_net_and_are_not_saved():
    module = cut(targets=((0, 1),), outputs=True, labels=(1, 2))
    assert module.state_dict() == {}
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}
