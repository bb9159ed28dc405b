"""Means of the terms over an epoch, without waiting for the device at every step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.utils.collectives import all_reduce_sum


class RunningMeans:
    """Means of scalars by label, weighted by the number of samples that each value represents."""

    _FLUSH = 256  # steps between two transfers to the CPU, which limits the number of small tensors in memory

    def __init__(self) -> None:
        self._pending: list[tuple[list[Tensor], float]] = []
        self.labels: tuple[str, ...] = ()  # empty before the first step
        self._totals: list[float] = []
        self._samples = 0.0
        self.steps = 0
        # The first step with a value that is not finite; known at most _FLUSH steps later.
        self.not_finite: int | None = None

    def add(self, terms: Mapping[str, Tensor], samples: float) -> None:
        """Add the detached scalar terms of a step. With several ranks, each adds those of its own part."""
        self.steps += 1
        self.labels = self.labels or tuple(terms)
        self._pending.append(([*terms.values()], samples))
        if len(self._pending) == self._FLUSH:
            self._flush()

    def values(self, device: torch.device) -> dict[str, float]:
        """Return the mean of each label over all ranks, reduced on `device`. Empty if nothing was added."""
        self._flush()
        *totals, samples = all_reduce_sum([*self._totals, self._samples], device)
        return {label: total / samples for label, total in zip(self.labels, totals, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state. Pending values are not added to the totals, which would change the rounding."""
        return {
            "labels": self.labels,
            "totals": [*self._totals],
            "samples": self._samples,
            "steps": self.steps,
            "not_finite": self.not_finite,
            "pending": self._pending_terms() if self._pending else None,  # (steps, labels)
            "pending_samples": [samples for _, samples in self._pending],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.labels = state["labels"]
        self._totals = [*state["totals"]]
        self._samples, self.steps, self.not_finite = state["samples"], state["steps"], state["not_finite"]
        counts = state["pending_samples"]
        values = state["pending"].view(len(counts), -1) if counts else ()
        self._pending = [([*step], samples) for step, samples in zip(values, counts, strict=True)]

    def load_share(self, states: Sequence[Mapping[str, Any]], share: float) -> None:
        """Restore a share of the sum of all ranks' saved states: 1 / ranks if the number of ranks has changed."""
        for state in states:
            means = RunningMeans()
            means.load_state_dict(state)
            means._flush()
            self.labels, self.steps = means.labels, means.steps
            totals = self._totals or [0.0] * len(means._totals)
            self._totals = [total + share * more for total, more in zip(totals, means._totals, strict=True)]
            self._samples += share * means._samples
            if means.not_finite is not None:
                self.not_finite = min(means.not_finite, self.steps if self.not_finite is None else self.not_finite)

    def _flush(self) -> None:
        if not self._pending:
            return
        steps = self._pending_terms().double()  # on the CPU, because MPS has no float64
        samples = torch.tensor([count for _, count in self._pending], dtype=torch.float64)
        if self.not_finite is None and not bool(steps.isfinite().all()):
            first = int((~steps.isfinite().all(1)).nonzero()[0])
            self.not_finite = self.steps - len(steps) + first
        sums = (steps * samples[:, None]).sum(0).tolist()
        self._totals = [total + more for total, more in zip(self._totals or [0.0] * len(sums), sums, strict=True)]
        self._samples += float(samples.sum())
        self._pending.clear()

    def _pending_terms(self) -> Tensor:
        """Return the pending values on the CPU, (steps, labels)."""
        device = self._pending[-1][0][0].device  # values from before a resume are on the CPU
        terms = torch.stack([term.to(device) for terms, _ in self._pending for term in terms])
        return terms.view(len(self._pending), -1).cpu()
