"""A batch of samples, with functions that move, slice, collate and rebuild it."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from kdkit.errors import DataError
from kdkit.utils.reprs import describe_array, describe_options

SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}  # of the same size


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of samples with their labels and ids.

    inputs: a tensor, or a (named) tuple, list, mapping or dataclass of tensors, each (batch, ...), or an object with a
    method `to`, such as the graphs of a batch.
    labels: for multiclass, (batch,) int64, or (batch, classes) floats whose rows sum to 1, or (batch, *positions) int64
    with one class per pixel or token; for multilabel, (batch, classes) or (batch, classes, *positions) floats of 0 and
    1; for regression, any floats.
    ids: (batch,) int64, unique per sample; None if the data has no ids.
    draw: the index of the samples' deterministic augmentation; None if unknown.
    ids_on_cpu: the ids before the batch was moved to a device, so that looking up samples does not wait for the device.
    weights: (batch,) floats, the weight of each sample in losses that use weights; None if the data has no weights.
    """

    inputs: Any
    labels: Tensor
    ids: Tensor | None = None
    draw: int | None = None
    ids_on_cpu: Tensor | None = None
    weights: Tensor | None = None

    def __repr__(self) -> str:
        values = {"inputs": self.inputs, "labels": self.labels, "ids": self.ids, "weights": self.weights}
        arrays = [f"{name}={describe_array(value)}" for name, value in values.items() if value is not None]
        return f"Batch({', '.join([*arrays, *describe_options(self, 'draw')])})"

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`. The copy is asynchronous if the batch is in pinned memory."""
        if self.labels.device == device:  # all tensors of a batch are on one device
            return self

        def moved(value: Any) -> Any:
            # Nothing would wait for an asynchronous copy to the CPU before it is read.
            return to_device(value, device, non_blocking=device.type != "cpu")

        ids_on_cpu = self.ids if self.ids_on_cpu is None else self.ids_on_cpu
        return replace(self._changed(moved(self.inputs), moved), ids_on_cpu=ids_on_cpu)

    @property
    def is_divisible(self) -> bool:
        """Whether samples can be selected: all inputs have an entry for each label, unlike the edges of a graph."""
        arguments = [item for _, item in items_of(self.inputs) or [(None, self.inputs)]]
        has_entries = all(_has_entries(argument, len(self)) for argument in arguments)
        return not has_objects(self.inputs) and (has_entries or self._has_rows)

    def rows(self, rows: Tensor) -> "Batch":
        """Return the samples in these rows, (samples,) int64 on the CPU. Raises DataError unless it `is_divisible`.

        An argument that is a list with an item for each sample, such as the texts or the images of a batch, is a
        selection of its items.
        """
        if not self.is_divisible:
            shapes = [_described(tensor) for tensor in nested_tensors(self.inputs)]
            of_tensors = ", ".join(shapes[:3]) + (", ..." if len(shapes) > 3 else "")
            raise DataError(
                "samples cannot be selected from inputs that do not have an entry for each label, such as a batch of "
                f"graphs; got {of_tensors or f'a {type(self.inputs).__name__}'} for {len(self)} labels; "
                "training needs no selection, but kdkit check --pairs and kdkit export do: for these, pass tensors, "
                "one row per sample, or lists, one item per sample"
            )
        index = rows.to(self.labels.device, non_blocking=True)
        has_rows = self._has_rows

        def select(value: Any, *, is_argument: bool = True) -> Any:
            if isinstance(value, Tensor):
                return value[index]
            # The items of the inputs themselves are arguments.
            has_items = _is_list(value) and len(value) == len(self) and is_argument and not has_rows
            if has_items or (_are_texts(value) and len(value) == len(self)):
                return [value[row] for row in rows.tolist()]
            items = items_of(value)
            return value if items is None else rebuild(value, {key: select(item) for key, item in items})

        selected = self._changed(select(self.inputs, is_argument=False), select)
        return selected if self.ids_on_cpu is None else replace(selected, ids_on_cpu=self.ids_on_cpu[rows])

    def pin_memory(self) -> "Batch":
        """Return the batch in pinned memory. torch's DataLoader calls this. Tensors on a device stay there."""
        return self._changed(map_tensors(self.inputs, _pinned), _pinned)

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def _has_rows(self) -> bool:
        """Whether all tensors of the inputs have a row for each label."""
        return all(_has_entries(tensor, len(self)) for tensor in nested_tensors(self.inputs))

    def _changed(self, inputs: Any, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with these inputs, and with its labels, ids and weights changed."""
        ids = None if self.ids is None else change(self.ids)
        weights = None if self.weights is None else change(self.weights)
        return replace(self, inputs=inputs, labels=change(self.labels), ids=ids, weights=weights)


def as_targets(labels: Tensor, *, per_position: bool = False) -> Tensor:
    """Return labels in the form that losses take: (batch, classes) indicators as floats, class indices as int64.

    per_position: whether labels are classes of positions, (batch, *positions), which become int64.
    """
    if isinstance(labels, Tensor) and labels.dtype is torch.int64 and (per_position or labels.ndim == 1):
        return labels  # by far the most common case
    if per_position:
        return labels.long()  # image masks are often uint8
    if not isinstance(labels, Tensor):
        return labels  # which is refused elsewhere
    if labels.is_floating_point():
        return labels.float() if labels.dtype == torch.bfloat16 else labels  # NumPy has no bfloat16
    if labels.ndim == 2:  # torch's BCEWithLogitsLoss needs floats, but multi-hot labels are often integers or bools
        return labels.float()
    # numpy and pandas often have int32, which torch's cross-entropy does not take. Bools are refused elsewhere.
    return labels.long() if labels.ndim == 1 and labels.dtype != torch.bool else labels


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a tensor, or a (named) tuple, list, mapping or dataclass of tensors, with `change` applied to each tensor.

    A mapping keeps its type if the type can be built from a dict; otherwise the result is a dict.
    """
    if isinstance(value, Tensor):
        return change(value)
    items = items_of(value)
    return value if items is None else rebuild(value, {key: map_tensors(item, change) for key, item in items})


def as_signed(tensor: Tensor) -> Tensor:
    """Return a view of wide unsigned integers as signed ones with the same bits, and other tensors as they are.

    torch can store and convert wide unsigned integers, but not index all of them.
    """
    return tensor.view(SIGNED[tensor.dtype]) if tensor.dtype in SIGNED else tensor


def select_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a tensor, (len(rows), ...). rows: (rows,) int64 on the device of the tensor."""
    selected = as_signed(tensor).index_select(0, rows)
    return selected.view(tensor.dtype) if tensor.dtype in SIGNED else selected


def to_device(value: Any, device: torch.device, *, non_blocking: bool = False) -> Any:
    """Return a tensor, a container of tensors, or an object with a method `to`, such as a graph, on a device."""
    if isinstance(value, Tensor):
        if value.dtype == torch.float64 and device.type == "mps":  # which has no float64
            value = value.float()
        return value.to(device, non_blocking=non_blocking)
    items = items_of(value)
    if items is not None:
        return rebuild(value, {key: to_device(item, device, non_blocking=non_blocking) for key, item in items})
    # The method of some graphs changes them in place, and a DataLoader may yield the same object in each epoch.
    return copy.copy(value).to(device) if has_objects(value) else value


def has_objects(value: Any) -> bool:
    """Return whether a value is an object with a method `to`, or contains one, nested, next to tensors."""
    items = items_of(value)
    if items is None:
        return not isinstance(value, Tensor) and callable(getattr(value, "to", None))
    return any(has_objects(item) for _, item in items)


def nested_tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in a nested value, in the order in which `map_tensors` changes them."""
    if isinstance(value, Tensor):
        yield value
    else:
        for _, item in items_of(value) or ():
            yield from nested_tensors(item)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor is neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _described(tensor: Tensor) -> str:
    return str(tuple(tensor.shape)) if is_dense(tensor) else "nested" if tensor.is_nested else "sparse"


def modifications(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed in place, which autograd counts; None for one of torch.inference_mode."""
    return None if tensor.is_inference() else tensor._version


def content_of(value: Any) -> Iterator[bytes]:
    """Yield the texts, the keys, and the dtypes, shapes and bytes of tensors in a nested value."""
    if isinstance(value, Tensor) and value.is_nested:
        yield from content_of(value.unbind())
    elif isinstance(value, Tensor):
        value = value if value.layout is torch.strided else value.to_dense()
        yield f"{value.dtype}{tuple(value.shape)}".encode()  # tensors of different shapes may have the same bytes
        value = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
        yield value.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, str):
        yield repr(value).encode()
    for key, item in items_of(value) or ():
        if not isinstance(value, (tuple, list)):
            yield repr(key).encode()
        yield from content_of(item)


def holds_only_tensors(value: Any) -> bool:
    """Return whether a value is a tensor, None, or a nested container of only these."""
    items = items_of(value)
    return isinstance(value, Tensor | None) or (
        items is not None and all(holds_only_tensors(item) for _, item in items)
    )


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the keys and items of a mapping, dataclass, tuple or list; None for anything else."""
    if isinstance(value, Mapping):  # before dataclasses: the outputs of transformers models are both
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return None


def collate(samples: Sequence[Any]) -> Any:
    """Collate samples into a batch like torch's DataLoader, which does not accept dataclasses."""
    first = samples[0]
    items = items_of(first)
    if items is None or not _contains_dataclass(first):
        return default_collate(list(samples))
    rows = [dict(items_of(sample) or ()) for sample in samples]
    if any(row.keys() != rows[0].keys() for row in rows):
        raise RuntimeError("each element in list of batch should be of equal size")  # as torch does
    return rebuild(first, {key: collate([row[key] for row in rows]) for key in rows[0]})


def rebuild(value: Any, items: dict[Any, Any]) -> Any:
    """Return a container like `value` with these items, under the keys of `items_of`."""
    if type(value) is dict:
        return items
    if isinstance(value, Mapping):
        return _rebuilt_mapping(value, items)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its items as arguments
        return type(value)(*items.values())
    if isinstance(value, (tuple, list)):
        return type(value)(items.values())
    rebuilt = copy.copy(value)  # does not call __init__ and __post_init__, which may expect other arguments
    for name, item in items.items():
        object.__setattr__(rebuilt, name, item)  # a frozen dataclass refuses setattr
    return rebuilt


def _rebuilt_mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    try:
        rebuilt = type(value)(items)  # type: ignore[call-arg]  # the constructor of user code may take anything
        if len(rebuilt) == len(items) and all(rebuilt[key] is item for key, item in items.items()):
            return rebuilt
    except Exception:  # such as a defaultdict, whose first argument is its factory
        pass
    # Only these: the copy of another mapping may share its items, so that an update would change the original.
    if isinstance(value, (dict, UserDict)):
        try:
            copied = copy.copy(value)
            copied.clear()  # the items may be fewer
            copied.update(items)
            return copied
        except Exception:  # such as a dict that refuses changes
            pass
    return items


def _contains_dataclass(value: Any) -> bool:
    items = items_of(value)
    if items is None:
        return False
    is_container = isinstance(value, (Mapping, tuple, list))
    return not is_container or any(_contains_dataclass(item) for _, item in items)


def _has_entries(value: Any, count: int) -> bool:
    """Return whether a value has an entry for each of `count` samples: a row of its tensors, or an item of a list."""
    if isinstance(value, Tensor):
        return is_dense(value) and value.ndim > 0 and len(value) == count
    if _is_list(value) and len(value) == count:
        return True
    return all(_has_entries(item, count) for _, item in items_of(value) or ())


def _is_list(value: Any) -> bool:
    """Return whether a value is a list or tuple, whose items may be samples, unlike those of a PackedSequence."""
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor
