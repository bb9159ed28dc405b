"""Collate samples into a batch, and split a sample or a batch into its inputs, labels and weights."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdkit.data.batch import collate, items_of, nested_tensors, rebuild
from kdkit.errors import DataError

MISSING_LABEL = -1  # the label of every sample in data without labels
_NO_LABEL = "give samples without a label the label -1, and pass ignore_index=-1"
TENSORS_OF_TABLE = (
    "TensorDataset(torch.tensor(table[INPUTS].to_numpy(), dtype=torch.float32), torch.tensor(table[LABEL].to_numpy()))"
)
_OTHERS = "leave out indices and names of samples, and put what networks and losses need into the inputs"
_LABEL_KEYS = ("label", "labels", "target", "targets", "y")  # conventions of Hugging Face, torchvision and others


@dataclass(frozen=True, slots=True)
class SampleKeys:
    """The keys of labels and weights in samples that are mappings, or their attributes in other objects.

    labels: None for the one of "label", "labels", "target", "targets" and "y" that a sample has.
    weights: None if samples have no weights. inputs_only: whether samples consist of inputs only, without labels.
    """

    labels: str | None = None
    weights: str | None = None
    inputs_only: bool = False

    def __post_init__(self) -> None:
        for name, key in (("labels", self.labels), ("weights", self.weights)):
            if not isinstance(key, str | None):
                raise DataError(
                    f"{name} must be a key of samples that are mappings, or an attribute of other objects; got a "
                    f"{type(key).__name__}"
                )

    def split(self, sample: Any, must_yield: str = "the data must yield") -> tuple[Any, Any, Any]:
        """Return the inputs, the labels and the weights of a pair, a triple, a mapping, or another object.

        Labels are None with `inputs_only`, and weights are None if there are none. The inputs of a mapping are
        everything except labels and weights: the value if there is one, or a mapping of several values. The inputs of
        an object with an attribute for the labels are the object itself.
        Raises DataError for anything else. Its message begins with `must_yield`.
        """
        if self.inputs_only:
            if isinstance(sample, Mapping):
                return _inputs_of(sample), None, None
            is_alone = isinstance(sample, tuple | list) and len(sample) == 1  # as in TensorDataset(inputs)
            return sample[0] if is_alone else sample, None, None
        if isinstance(sample, Mapping):
            return self._split_mapping(sample, must_yield)
        if self._are_attributes_of(sample):
            weights = None if self.weights is None else getattr(sample, self.weights)
            return sample, getattr(sample, str(self.labels)), weights
        if not isinstance(sample, Sequence) or isinstance(sample, str) or len(sample) not in (2, 3):
            size = f" of {len(sample)}" if isinstance(sample, Sequence) else ""
            # The usual reasons are arrays of all samples that are not in a dataset, and samples without labels.
            is_array = isinstance(sample, Tensor)
            advice = "; put arrays of all samples in a dataset: TensorDataset(inputs, labels)" if is_array else ""
            if is_array or (isinstance(sample, Sequence) and len(sample) == 1):
                advice += (
                    f"; training data without labels is kdkit.Unlabelled(dataset); if a part has labels, {_NO_LABEL}"
                )
            elif isinstance(sample, Sequence):
                advice = f"; {_OTHERS}"
            else:
                names = [name for name in (self.labels, self.weights) if name is not None and not hasattr(sample, name)]
                lacking = f" without an attribute {names[0]!r}" if names else ""
                advice = f"{lacking}; name the attribute that has its labels: TorchData(..., labels='y')"
            raise DataError(f"{must_yield} pairs (inputs, labels); got a {type(sample).__name__}{size}{advice}")
        inputs, labels, *weights = sample
        return inputs, labels, weights[0] if weights else None

    def _are_attributes_of(self, sample: Any) -> bool:
        names = [name for name in (self.labels, self.weights) if name is not None]
        is_object = not isinstance(sample, Sequence | Tensor)
        return is_object and self.labels is not None and all(hasattr(sample, name) for name in names)

    def _split_mapping(self, sample: Mapping[Any, Any], must_yield: str) -> tuple[Any, Any, Any]:
        candidates = [key for key in _LABEL_KEYS if key in sample] if self.labels is None else [self.labels]
        missing = [key for key in (*candidates, self.weights) if key is not None and key not in sample]
        if missing or len(candidates) != 1:
            reason = f"no key {missing[0]!r}" if missing else "the key of its labels is not clear"
            names = ", ".join(repr(key) for key in sample)
            raise DataError(
                f"{must_yield} pairs (inputs, labels); got a {type(sample).__name__} with {names}: {reason}; pass the "
                "key of the labels: TorchData(..., labels='label') or distill(..., labels='label'); training data "
                "without labels needs Unlabelled(dataset)"
            )
        inputs = _inputs_of(sample, candidates[0], self.weights)
        if inputs is None:
            raise DataError(f"{must_yield} pairs (inputs, labels); got a mapping with {candidates[0]!r} but no inputs")
        return inputs, sample[candidates[0]], None if self.weights is None else sample[self.weights]


def _inputs_of(sample: Mapping[Any, Any], *others: str | None) -> Any:
    """Return the inputs in a mapping: the value if there is one, a mapping of several values, or None if there is none.

    others: the keys of labels and weights. Keys such as __key__ and __url__, which WebDataset adds, are left out.
    """
    inputs = {key: value for key, value in sample.items() if key not in others and not str(key).startswith("__")}
    return rebuild(sample, inputs) if len(inputs) > 1 else next(iter(inputs.values()), None)


def missing_labels(inputs: Any) -> Tensor:
    """Return placeholder labels, (batch,) int64, for inputs without labels. No term reads them.

    Raises DataError if there is no tensor in the inputs.
    """
    first = next(nested_tensors(inputs), None)
    if first is None or not first.ndim:
        parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
        if any(isinstance(part, np.ndarray) for part in (inputs, *parts)):
            advice = "make tensors of its arrays, torch.from_numpy(array)"
        else:
            advice = "give it labels that mean none, such as -1 for each sample, and pass ignore_index=-1"
        raise DataError(
            "inputs without labels must have a tensor with one item per sample; got a "
            f"{type(inputs).__name__}; {advice}"
        )
    return torch.full((len(first),), MISSING_LABEL, device=first.device)


def require_samples(labels: Any, index: int, must_yield: str) -> None:
    """Raise DataError if a batch of a loader has no samples: means over it would be NaN. index: of the batch."""
    if isinstance(labels, Tensor) and labels.ndim and not len(labels):
        raise DataError(
            f"{must_yield} batches with samples, but batch {index} has none; leave it out in the loader, such as if "
            "its collate_fn drops all samples of a batch"
        )


def as_weights(weights: Any, labels: Any, must_yield: str) -> Tensor | None:
    """Return the weights of a batch, (batch,) float32; None if there are none.

    Raises DataError if they are not floats of at least 0, one per sample. Values on a GPU are not checked.
    """
    if weights is None:
        return None
    # The weights may be the third element of a triple, or the value of a key.
    prefix = f"{must_yield} pairs (inputs, labels); got additional weights"
    expected = "expected the weight of each sample, a float of at least 0"
    if not isinstance(weights, Tensor):
        raise DataError(f"{prefix} that are a {type(weights).__name__}; {expected}; {_OTHERS}")
    if not weights.is_floating_point() or weights.shape != labels.shape[:1]:
        dtype = str(weights.dtype).removeprefix("torch.")
        raise DataError(f"{prefix} that are {dtype} of shape {tuple(weights.shape)}; {expected}; {_OTHERS}")
    if weights.device.type == "cpu":
        is_valid = (weights >= 0) & weights.isfinite()
        if not is_valid.all():
            raise DataError(f"{prefix} with {weights[~is_valid][0].item()}; {expected}")
    return weights.to(torch.float32)


def collate_samples(samples: list[Any]) -> Any:
    """Collate samples into a batch.

    Raises DataError for lists of numbers, which would become many tensors, for samples of which only some have labels,
    and for mappings with different keys. `collating` explains the errors of torch.
    """
    require_tensors(samples[0])
    _require_same_form(samples)
    _require_same_keys(samples)
    return collate(samples)


@contextmanager
def collating(name: str) -> Iterator[None]:
    """Raise DataError for samples that torch cannot collate in this context, whose error has no split and no remedy.

    name: of the split.
    """
    try:
        yield
    except (TypeError, RuntimeError) as error:
        reason = _why_not_collated(str(error))
        if not reason:
            raise
        raise DataError(f"samples of the {name} data {reason}") from error


def _why_not_collated(text: str) -> str:
    """Return why samples cannot be collated, and what to do, by the text of torch's error; "" for any other error."""
    if re.search(r"(found <class '|expected Tensor as element .* but got |infer dtype of )NoneType", text):
        return (
            f"have None instead of a tensor; {_NO_LABEL}; give those without one of several inputs zeros of its shape"
        )
    if "expected Tensor as element" in text:
        return (
            "are in part tensors, and in part numbers, such as labels; return numbers for all, int(label), or tensors, "
            "torch.tensor(label)"
        )
    if "Batches of sparse tensors" in text:
        return (
            "are sparse, so they cannot be stacked; make them dense, .to_dense(), or pass a collate_fn that makes a "
            "batch of them"
        )
    shapes = re.search(r"equal size, but got \[(.*?)\] at entry \d+ and \[(.*?)\] at entry", text)
    if shapes or "each element in list of batch should be of equal size" in text:  # the latter for lists of numbers
        sizes = f"shapes, such as ({shapes[1]}) and ({shapes[2]})" if shapes else "lengths"
        return (
            f"have different {sizes}, so they cannot be stacked; crop or pad them in the Dataset, or pass a collate_fn "
            "that pads a batch: TorchData(..., collate_fn=...), or that of a DataLoader"
        )
    found = re.search(r"default_collate: batch must contain .*found (?:<class '(.*)'>|(.*))", text)
    if not found:
        return ""
    item = f"a {found[1]}" if found[1] else f"an array of {found[2]}"
    advice = "pass collate_fn=..., a function that makes a batch of a list of such samples"
    if item.startswith("a PIL."):
        advice = "convert images to tensors in the Dataset, such as with torchvision.transforms.v2.PILToTensor()"
    elif item.startswith(("a pandas.", "a polars.")):
        advice = f"make tensors of tables: {TENSORS_OF_TABLE}"
    return f"must be pairs (inputs, labels) of tensors, arrays or numbers; got {item}; {advice}"


def _require_same_form(samples: Sequence[Any]) -> None:
    """Raise DataError unless all samples are pairs, or none is: some may come from a dataset without labels."""
    lengths = [len(sample) if isinstance(sample, tuple | list) else 0 for sample in samples]
    if len({*lengths}) > 1:
        forms = [
            f"a {type(sample).__name__}" + (f" of {length}" if length else "")
            for sample, length in zip(samples, lengths, strict=True)
        ]
        raise DataError(
            f"samples of a batch have different forms, such as {' and '.join([*dict.fromkeys(forms)][:2])}; return "
            f"pairs (inputs, labels) for all: {_NO_LABEL}"
        )


def _require_same_keys(samples: Sequence[Any]) -> None:
    """Raise DataError unless mappings have the same keys. torch would leave out those that the first one lacks."""
    first = samples[0]
    if isinstance(first, Mapping):
        for sample in samples:
            if isinstance(sample, Mapping) and sample.keys() != first.keys():
                keys, others = (", ".join(map(repr, mapping)) for mapping in (first, sample))
                raise DataError(
                    f"samples of a batch have different keys, {keys} and {others}; give all of them the same keys, "
                    "such as zeros for an input that is missing, and for a label a class index that you pass as "
                    "ignore_index, or pass a collate_fn: TorchData(..., collate_fn=...)"
                )
            if not isinstance(sample, Mapping):
                return  # torch raises an error
        for key in first:
            _require_same_keys([sample[key] for sample in samples])
    elif isinstance(first, tuple | list) and all(isinstance(sample, tuple | list) for sample in samples):
        for items in zip(*samples, strict=False):  # torch raises an error for different lengths
            _require_same_keys(items)


def require_tensors(sample: Any) -> None:
    """Raise DataError if a sample contains a list of numbers, which torch would collate by columns."""
    if isinstance(sample, list) and sample and all(isinstance(item, int | float) for item in sample):
        raise _list_error(len(sample))
    for _, item in items_of(sample) or ():
        require_tensors(item)


def require_stacked(batch: Any) -> None:
    """Raise DataError if torch's default collate made a mapping from samples with lists of numbers."""
    if not isinstance(batch, Mapping):
        return
    for value in batch.values():
        if isinstance(value, list) and value and all(isinstance(item, Tensor) and item.ndim == 1 for item in value):
            raise _list_error(len(value))


def _list_error(length: int) -> DataError:
    return DataError(
        f"a sample has a list of {length} numbers, which torch would collate into {length} tensors; make it one tensor "
        'with torch.tensor(...), or set the format of a Hugging Face dataset: dataset.with_format("torch")'
    )
