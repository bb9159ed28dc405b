"""What a net says about a whole split, and how well that scores."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split, optional_member
from kdkit.data.loading import batches
from kdkit.engine.class_alignment import shared
from kdkit.errors import DataError, KdkitError
from kdkit.metrics import Metric, MetricResult, Predictions
from kdkit.nets.net import Net
from kdkit.utils.collectives import all_gather, is_distributed, rank, world_size
from kdkit.utils.modules import eval_mode


class Predictor:
    """Runs nets over splits of one data set, on one device and in one precision."""

    def __init__(self, data: Data, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.data = data
        self.device = device
        self.autocast = autocast

    @torch.no_grad()
    def predict(
        self,
        net: Net[Any],
        split: Split | LoaderSplit,
        *,
        batch_size: int,
        module: nn.Module | None = None,
        workers: int | None = 0,
    ) -> Predictions:
        """Return what a net says in eval mode, or what `module` says in its place.

        workers: processes that fetch the batches; 0 fetches them in this one; None chooses.
        Raises DataError where the split is empty, KdkitError where an output is not a finite number.
        """
        speaker = module if module is not None else net.module
        own = _own(split)
        outputs, labels, ids = [], [], []
        with eval_mode(speaker):
            for batch in batches(own, batch_size, workers=workers, pin=self.device.type == "cuda"):
                with self.autocast():
                    output = net.through(speaker, batch.to(self.device))
                outputs.append(output.float().cpu().numpy())
                labels.append(batch.labels.cpu().numpy())
                ids.append(None if batch.ids is None else batch.ids.cpu().numpy())
        if not outputs:
            raise DataError("there is nothing to predict: the split is empty")
        known = None if any(each is None for each in ids) else [each for each in ids if each is not None]
        said = Predictions(
            labels=self._whole(labels, whole=own is split),
            outputs=self._whole(outputs, whole=own is split),
            classes=self.data.classes,
            ids=None if known is None else self._whole(known, whole=own is split),
            groups=_groups(split),
        )
        _require_finite(net, said)
        return self._shared(net, said)

    def _whole(self, parts: list[NDArray[Any]], *, whole: bool) -> NDArray[Any]:
        """Return the rows of all batches, and those of the other processes where each had rows of its own."""
        rows: NDArray[Any] = np.concatenate(parts)
        return rows if whole else all_gather(torch.from_numpy(rows).to(self.device)).cpu().numpy()

    def _shared(self, net: Net[Any], said: Predictions) -> Predictions:
        """Cut down to the classes that the net shares with the data."""
        positions = None
        if self.data.task != "regression" and net.classes is not None:
            positions = shared((net.classes, self.data.classes), f"net {net.name!r} and the data")
        if positions is None:
            return said
        theirs, ours = positions
        classes = tuple(self.data.classes[index] for index in ours)
        outputs = said.outputs[:, list(theirs)]
        if self.data.task == "multilabel":
            return replace(said, labels=said.labels[:, list(ours)], outputs=outputs, classes=classes)
        matches = said.labels[:, None] == np.asarray(ours)
        known = matches.any(1)
        return replace(said, labels=matches.argmax(1), outputs=outputs, classes=classes).rows(known)


class _Part(Split):
    """Some rows of a split, as a split."""

    def __init__(self, split: Split, rows: Tensor) -> None:
        self.split = split
        self.rows = rows
        self.ids = split.ids[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        return self.split.batch(self.rows[rows], draw)


def _own(split: Split | LoaderSplit) -> Split | LoaderSplit:
    """Return what this one of several processes predicts of a split: itself, or a part of its rows."""
    if not is_distributed() or isinstance(split, LoaderSplit) or len(split) < world_size():
        return split
    return _Part(split, torch.tensor_split(torch.arange(len(split)), world_size())[rank()])


def _groups(split: Split | LoaderSplit) -> NDArray[np.int64] | None:
    """Return which samples belong together, where the split knows it. Raises DataError where they are no row each."""
    groups = optional_member(split, Split, "groups")
    if groups is None:
        return None
    known = torch.as_tensor(groups).cpu().numpy()
    if known.shape != (len(split),) or known.dtype.kind not in "iu":
        raise DataError(
            f"groups of a split are whole numbers, one per row: ({len(split)},); got {known.dtype} {known.shape}"
        )
    return known.astype(np.int64)


def _require_finite(net: Net[Any], said: Predictions) -> None:
    """Raise KdkitError for NaN or infinity, of which argmax and thresholds would make figures that look plausible."""
    finite = np.isfinite(said.outputs).reshape(len(said.outputs), -1).all(1)
    if not finite.all():
        raise KdkitError(
            f"net {net.name!r} gives outputs that are not finite numbers, for {(~finite).sum()} of {len(finite)} "
            "samples; a lower learning rate, Training(clip=...), or another precision may help"
        )


def compute_metrics(metrics: Sequence[Metric], validation: Predictions, test: Predictions) -> dict[str, MetricResult]:
    """Return every score: what is to be chosen is chosen on `select`, what is reported comes from `test`."""
    return {metric.name: metric.fit(validation).compute(test) for metric in metrics}
