"""Two lists of classes are aligned: classes that one side lacks are dropped."""

import pytest
import torch

from kdkit import RecipeError
from kdkit.engine.stage.class_alignment import ClassAlignment, shared_classes
from kdkit.engine.stage.term_inputs import TermInputs


def term_inputs(student, target=None, labels=(0, 1, 2), teacher_outputs=(), ids=(5, 6, 7)):
    return TermInputs(student, target, torch.tensor(labels), torch.tensor(ids), teacher_outputs)


def alignment(student=(0, 2), targets=(), target_is_output=False, labels=None, task="multiclass"):
    return ClassAlignment(student=student, targets=targets, target_is_output=target_is_output, labels=labels, task=task)


def test_equal_classes_need_no_alignment():
    assert shared_classes((["a", "b"], ("a", "b"), ["a", "b"]), "all", "abc") is None


def test_shared_classes_have_the_order_of_the_data():
    assert shared_classes((["c", "x", "a"], ["a", "b", "c"]), "both", "abc") == ((2, 0), (0, 2))


def test_shared_classes_that_the_data_lacks_keep_the_order_of_the_first_side():
    assert shared_classes((["c", "x", "a"], ["a", "x", "c"]), "both", "abc") == ((0, 1, 2), (2, 1, 0))
    assert shared_classes((["c", "x", "a"], ["c", "x", "a"]), "both", "abc") is None


def test_classes_of_three_sides_are_shared_if_all_three_have_them():
    assert shared_classes((["a", "b", "c"], ["c", "b"], ["b", "x", "c"]), "all", "abc") == ((1, 2), (1, 0), (0, 2))


def test_the_same_classes_in_another_order_are_aligned():
    assert shared_classes((["b", "a"], ["a", "b"]), "both", "abc") == ((1, 0), (0, 1))
    assert shared_classes((["b", "a"], ["b", "a"]), "both", "ab") == ((1, 0), (1, 0))


def test_sides_without_a_shared_class_are_refused():
    with pytest.raises(RecipeError, match=r"nets 'new' and 'old' share no class: a, b against c; name the outputs"):
        shared_classes((["a", "b"], ["c"]), "nets 'new' and 'old'", "abc")


def test_columns_are_selected_in_the_same_order_on_both_sides():
    inputs = term_inputs(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]]))
    aligned = alignment(targets=((2, 0),), target_is_output=True)(inputs)
    assert aligned.student.tolist() == [[1, 3]]
    assert aligned.target.tolist() == [[30, 10]]
    assert aligned.labels is inputs.labels


def test_columns_that_follow_each_other_are_not_copied():
    outputs = torch.randn(3, 5)
    aligned = alignment(student=(1, 2, 3))(term_inputs(outputs))
    assert torch.equal(aligned.student, outputs[:, 1:4])
    assert aligned.student.untyped_storage().data_ptr() == outputs.untyped_storage().data_ptr()


def test_features_stay_as_they_are():
    student, target = torch.ones(3, 4), torch.ones(3, 5)
    # Both sides are features; only the teacher output that the loss takes as well has columns per class.
    aligned = alignment(student=None, targets=((1,),), labels=(0, 1, 2), task="multilabel")(
        TermInputs(student, target, torch.eye(3), None, (torch.ones(3, 2),))
    )
    assert aligned.student is student
    assert aligned.target is target
    assert aligned.teacher_outputs[0].shape == (3, 1)


def test_columns_of_multilabel_labels_are_selected():
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    aligned = alignment(labels=(2, 0), task="multilabel")(TermInputs(torch.ones(2, 3), None, labels, None, ()))
    assert aligned.labels.tolist() == [[1, 1], [0, 0]]


def test_samples_of_a_class_that_is_not_shared_are_dropped_from_all_inputs():
    outputs = torch.arange(9.0).view(3, 3)
    inputs = term_inputs(outputs, (outputs, 2 * outputs), teacher_outputs=(outputs, 2 * outputs))
    # Data classes 2 and 0 are shared, so the second sample, of class 1, is dropped.
    aligned = alignment(targets=((0, 2), (1, 2)), target_is_output=True, labels=(2, 0))(inputs)
    assert aligned.student.tolist() == [[0, 2], [6, 8]]
    assert [target.tolist() for target in aligned.target] == [[[0, 2], [6, 8]], [[2, 4], [14, 16]]]
    assert [output.tolist() for output in aligned.teacher_outputs] == [target.tolist() for target in aligned.target]
    assert aligned.labels.tolist() == [1, 0]
    assert aligned.labels.dtype == torch.int64
    assert aligned.ids.tolist() == [5, 7]


def test_a_batch_without_a_shared_class_becomes_empty():
    aligned = alignment(student=(0,), labels=(0,))(term_inputs(torch.ones(2, 1), labels=(1, 1), ids=(0, 1)))
    assert aligned.student.shape == (0, 1)
    assert len(aligned.labels) == 0


def test_positions_move_with_the_module_and_are_not_in_its_state_dict():
    module = alignment(targets=((0, 1),), target_is_output=True, labels=(1, 2))
    assert module.state_dict() == {}
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}
