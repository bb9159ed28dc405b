"""Find the cause of NaN or infinite values: inputs, labels or outputs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdkit.data.batch import Batch, nested_tensors
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.teachers.base import TeacherOutput
from kdkit.utils.reprs import describe_numbers

ADVICE = "a lower learning rate, Training(max_grad_norm=...), or another precision may help"  # if no cause is found


def cause_in_inputs(
    batch: Batch, *, has_unknown: bool, split: Split | LoaderSplit | None = None, name: str = ""
) -> str | None:
    """Return a description of inputs or labels that are not finite numbers, or None if all are.

    has_unknown: whether labels may be NaN, see `Data.has_unknown`. split, name: the split of the batch, if known.
    """
    labels = torch.where(batch.labels.isnan(), 0, batch.labels) if has_unknown else batch.labels
    for kind, value in (("inputs", batch.inputs), ("labels", labels)):
        wrong = _wrong_rows(batch, nested_tensors(value))
        if wrong:
            samples = _describe_samples(batch, wrong, split, name)
            return f"the {kind} of {samples} are not finite numbers; leave out or correct these samples"
    return None


def cause_in_outputs(batch: Batch, outputs: Mapping[str, TeacherOutput]) -> str | None:
    """Return a description of outputs that are not finite numbers, or that mask classes, or None if all are finite."""
    for name, output in outputs.items():
        tensors = [*nested_tensors((output.output, output.features))]
        wrong = _wrong_rows(batch, [_without_masks(tensor) for tensor in tensors])
        if wrong:
            return (
                f"the outputs of {name!r} for {_describe_samples(batch, wrong)} are not finite numbers, but the inputs "
                "are; check its weights, or compute or cache the outputs in another precision: fp16 ends at 65504"
            )
        masked = _wrong_rows(batch, tensors)
        if masked:
            return (
                f"the outputs of {name!r} for {_describe_samples(batch, masked)} mask classes with -inf, and a loss "
                "may be infinite if such a class is the label, if the other side does not mask it, or if the loss "
                "subtracts or squares logits; correct these labels, mask the same classes on both sides, or mask them "
                f"with a number such as -1e4; if none of this is the case, {ADVICE}"
            )
    return None


def _describe_samples(batch: Batch, rows: list[int], split: Split | LoaderSplit | None = None, name: str = "") -> str:
    """Return a description of samples of a batch by their rows in the split if it is known, or by their ids."""
    ids = None if batch.ids is None else batch.ids.cpu()[rows]
    if ids is not None and isinstance(split, Split) and name:
        # Ids are unique over all splits, but users look up a sample by its row in a split.
        rows_of_split = (split.ids.cpu() == ids[:, None]).int().argmax(1)
        other_ids = "" if torch.equal(rows_of_split, ids) else f" (ids {describe_numbers(ids.tolist())})"
        return f"row{'s' * (len(rows) > 1)} {describe_numbers(rows_of_split.tolist())} of the {name} data{other_ids}"
    samples = f"rows {describe_numbers(rows)}" if ids is None else f"samples {describe_numbers(ids.tolist())}"
    return f"{samples} ({len(rows)} of {len(batch)} in the batch)"


def _without_masks(tensor: Tensor) -> Tensor:
    """Return outputs (samples, classes, ...) with 0 instead of -inf at rows that have finite numbers too."""
    if tensor.is_nested or tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    is_masked = tensor.isneginf() & tensor.isfinite().any(1, keepdim=True)
    return tensor.masked_fill(is_masked, 0)


def _wrong_rows(batch: Batch, tensors: Iterable[Any]) -> list[int]:
    """Return the rows of a batch for which any of the tensors, (samples, ...), has a value that is not finite."""
    wrong = torch.zeros(len(batch), dtype=torch.bool)
    for tensor in tensors:
        if tensor.is_nested:  # its samples cannot be selected
            continue
        is_per_sample = tensor.is_floating_point() and tensor.ndim and len(tensor) == len(batch) and tensor.numel()
        if is_per_sample:
            wrong |= ~tensor.detach().reshape(len(batch), -1).isfinite().all(1).cpu()
    return wrong.nonzero().flatten().tolist()
