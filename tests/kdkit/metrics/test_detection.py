"""Tests of the mean average precision of boxes, with values of pycocotools."""

import numpy as np
import pytest

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import BootstrapInterval, MeanAveragePrecision

NAMES = ("car", "dog", "cat")


def scenes(count: int = 40) -> Predictions:
    """Objects of three classes, with detections that are shifted, doubled, of another class or without an object."""
    random = np.random.default_rng(0)
    labels, outputs = np.zeros((count, 5, 5), np.float32), np.zeros((count, 20, 6), np.float32)
    for objects, detections in zip(labels, outputs, strict=True):
        boxes = []
        for row in objects[: random.integers(0, 6)]:
            corner = random.uniform(0, 60, 2)
            row[:] = [*corner, *(corner + random.uniform(8, 30, 2)), random.integers(1, 4)]
            for _ in range(random.integers(0, 4)):
                number = row[4] if random.random() < 0.8 else random.integers(1, 4)
                boxes.append([*(row[:4] + random.normal(0, 1.5, 4)), number, random.uniform(0.05, 1)])
        for corner in random.uniform(0, 60, (random.integers(0, 4), 2)):
            boxes.append([*corner, *(corner + 15), random.integers(1, 4), random.uniform(0.05, 1)])
        detections[: len(boxes)] = np.array(boxes).reshape(-1, 6)
    return Predictions(labels=labels, outputs=outputs, classes=NAMES)


@pytest.mark.parametrize(
    ("overlaps", "name", "value"),
    [
        ((0.5,), "map_50", 0.48142868889284834),
        ((0.75,), "map_75", 0.19536340253845266),
        (None, "map", 0.23866413626347377),
    ],
)
def test_the_value_is_that_of_pycocotools(overlaps, name, value):
    metric = MeanAveragePrecision() if overlaps is None else MeanAveragePrecision(overlaps)
    assert metric.name == name
    result = metric.compute(scenes())
    assert result.value == pytest.approx(value, abs=1e-9)
    assert list(result.by_class) == [*NAMES]
    if overlaps is None:
        # COCOeval of pycocotools 2.0.11, as the values above
        assert list(result.by_class.values()) == pytest.approx(
            [0.15454242880285363, 0.2942530980292157, 0.2671968819583519], abs=1e-9
        )


def test_resamples_are_the_values_of_repeated_images():
    test, metric = scenes(), MeanAveragePrecision((0.5, 0.75))
    counts = np.random.default_rng(1).multinomial(len(test), np.full(len(test), 1 / len(test)), 3).T
    repeated = [metric.compute(test.rows(np.repeat(np.arange(len(test)), column))).value for column in counts.T]
    assert metric.resampled(test, counts.astype(np.float32)).values.tolist() == repeated
    low, high = BootstrapInterval(metric, resamples=50).compute(test).interval
    assert low < metric.compute(test).value < high


def test_classes_without_an_object_are_left_out_and_named():
    test = scenes()
    labels = np.where(test.labels[..., 4:] == 2, 0, test.labels)
    result = MeanAveragePrecision().compute(Predictions(labels=labels, outputs=test.outputs, classes=NAMES))
    assert list(result.by_class) == ["car", "cat"]
    assert result.note == "no objects: dog"
    empty = Predictions(labels=0 * labels, outputs=0 * test.outputs, classes=NAMES)
    assert np.isnan(MeanAveragePrecision().compute(empty).value)
    missed = Predictions(labels=labels, outputs=0 * test.outputs, classes=NAMES)
    assert MeanAveragePrecision().compute(missed).value == 0


def test_classes_that_have_only_numbers_have_no_values_of_their_own():
    test = scenes()
    numbered = Predictions(labels=test.labels, outputs=test.outputs, classes=("0", "1"))
    result = MeanAveragePrecision().compute(numbered)
    assert (result.value, result.by_class) == (MeanAveragePrecision().compute(test).value, {})


def test_at_most_a_hundred_detections_of_a_class_count_in_an_image():
    labels, outputs = np.array([[[0.0, 0, 10, 10, 1]]]), np.zeros((1, 101, 6))
    outputs[0, :, 4:] = 1, 0.5
    outputs[0, 100] = 0, 0, 10, 10, 1, 0.4
    assert MeanAveragePrecision().compute(Predictions(labels=labels, outputs=outputs, classes=("car",))).value == 0
    outputs[0, 100, 5] = 0.6
    assert MeanAveragePrecision().compute(Predictions(labels=labels, outputs=outputs, classes=("car",))).value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": np.zeros((40, 20, 5))}, r"got labels \(40, 5, 5\) and outputs \(40, 20, 5\); pack the boxes"),
        ({"classes": ("car", "dog")}, r"must be classes from 1 to 2, or 0 in padding; .* names all; got 3"),
        ({"labels": np.full((40, 5, 5), 1.5)}, r"the last column of labels must be classes .* got 1.5"),
        (
            {"labels": np.tile([3.0, 3, 8, 9, 0], (40, 5, 1))},
            "has class 0, which is padding; number the classes from 1",
        ),
        ({"labels": np.tile([30.0, 30, 8, 9, 1], (40, 5, 1))}, r"got \[30.0, 30.0, 8.0, 9.0\]; .*box_convert"),
    ],
)
def test_labels_and_outputs_that_are_not_packed_boxes_are_refused(change, message):
    test = scenes()
    arrays = {"labels": test.labels, "outputs": test.outputs, "classes": NAMES} | change
    with pytest.raises(DataError, match=message):
        MeanAveragePrecision().compute(Predictions(**arrays))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "got NaN in 1 of 40 samples; did training diverge"),
        (5, np.nan, "got NaN in 1 of 40 samples; did training diverge"),
        (5, -2.5, "at least 0, which is padding; got -2.5; if they are logits, pass their sigmoid"),
        (4, 0, "a detection with a score has class 0, which is padding; number the classes from 1"),
    ],
)
def test_detections_that_would_be_taken_for_padding_are_refused(column, value, message):
    test = scenes()
    outputs = test.outputs.copy()
    outputs[3, 0] = 0, 0, 10, 10, 1, 0.5
    outputs[3, 0, column] = value
    with pytest.raises(DataError, match=message):
        MeanAveragePrecision().compute(Predictions(labels=test.labels, outputs=outputs, classes=NAMES))


@pytest.mark.parametrize("overlaps", [(), (0.5, 1.5), (0,), 0.5, "50"])
def test_overlaps_are_shares(overlaps):
    with pytest.raises(RecipeError, match="overlaps must be numbers above 0"):
        MeanAveragePrecision(overlaps)
