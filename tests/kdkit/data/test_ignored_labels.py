"""The label that stands for none: refused if it is a class, or if labels are not class indices."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Net, TorchData, Truth
from kdkit.data.labels import is_ignored
from kdkit.errors import DataError
from tests.helpers.positions import CLASSES, images


def test_a_label_beyond_the_classes_is_refused_with_the_option_for_no_label():
    inputs, labels = images(void=False).tensors
    labels[5, 2, 3] = 7
    with pytest.raises(DataError, match=r"is 7 \(row 5\), but there are 3 classes.* pass ignore_index=7"):
        TorchData(TensorDataset(inputs, labels), images(), classes=CLASSES)


def test_an_ignored_label_must_not_be_a_class():
    with pytest.raises(DataError, match="ignore_index=1 must not be one of the 3 classes"):
        TorchData(images(), images(), classes=CLASSES, ignore_index=1)
    with pytest.raises(DataError, match="such as 255; got True"):
        TorchData(images(), images(), ignore_index=True)


def test_an_ignored_label_needs_class_indices():
    inputs, labels = torch.randn(4, 3), torch.eye(4)[:, :3]
    with pytest.raises(DataError, match="ignore_index=9 is a class index, but the task of this data is multilabel"):
        kdkit.Distiller(
            Net("student", nn.Linear(3, 3)),
            Truth(nn.BCEWithLogitsLoss()),
            (inputs, labels),
            task="multilabel",
            ignore_index=9,
        )


def test_splits_with_labels_per_image_and_per_pixel_are_refused():
    inputs, labels = images().tensors
    with pytest.raises(DataError, match=r"class indices per position must be integers .* in all splits"):
        TorchData(images(), TensorDataset(inputs, labels[:, 0, 0]), classes=CLASSES)


@pytest.mark.parametrize(
    ("dtype", "label", "ignored"), [(torch.uint8, 156, -100), (torch.int8, -1, 255), (torch.int16, -1, 65535)]
)
def test_an_ignored_label_beyond_the_range_of_a_dtype_is_no_other_label(dtype, label, ignored):
    labels = torch.tensor([label, 0], dtype=dtype)
    assert not is_ignored(labels, (ignored,)).any()
    assert is_ignored(labels, (label,)).tolist() == [True, False]
