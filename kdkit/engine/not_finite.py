"""Find the cause of a term that is NaN or infinite: inputs, labels or teacher outputs, or else the training itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from kdkit.data.batch import Batch, nested_tensors
from kdkit.teachers.base import TeacherOutput

_SHOWN = 5  # samples that a message lists


def cause_in_inputs(batch: Batch, *, has_unknown: bool) -> str | None:
    """Return a description of inputs or labels that are not finite numbers, or None if all are.

    has_unknown: whether labels may be NaN, see `Data.has_unknown`.
    """
    labels = torch.where(batch.labels.isnan(), 0, batch.labels) if has_unknown else batch.labels
    for name, value in (("inputs", batch.inputs), ("labels", labels)):
        samples = _samples(batch, nested_tensors(value))
        if samples:
            return f"the {name} of {samples} are not finite numbers; leave these samples out, or mend them"
    return None


def cause_in_outputs(batch: Batch, outputs: Mapping[str, TeacherOutput]) -> str | None:
    """Return a description of teacher outputs that are not finite numbers, or None if all are."""
    for name, output in outputs.items():
        samples = _samples(batch, nested_tensors((output.output, output.features)))
        if samples:
            return (
                f"the outputs of {name!r} for {samples} are not finite numbers, though the inputs are; check its "
                "weights, or compute in another precision"
            )
    return None


def _samples(batch: Batch, tensors: Iterable[Any]) -> str:
    """Return the samples for which one of the tensors, (samples, ...), has a value that is not finite; "" if none."""
    wrong = torch.zeros(len(batch), dtype=torch.bool)
    for tensor in tensors:
        is_per_sample = tensor.is_floating_point() and tensor.ndim and len(tensor) == len(batch) and tensor.numel()
        if is_per_sample:
            wrong |= ~tensor.detach().reshape(len(batch), -1).isfinite().all(1).cpu()
    rows = wrong.nonzero().flatten().tolist()
    if not rows:
        return ""
    names = rows if batch.ids is None else batch.ids.cpu()[rows].tolist()
    listed = ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
    kind = "rows" if batch.ids is None else "samples"
    return f"{kind} {listed} ({len(rows)} of {len(batch)} in the batch)"
