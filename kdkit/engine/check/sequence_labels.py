"""Notice terms that compare outputs only where padded labels are, although the labels are sequences, as for CTC."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kdkit.engine.check.facts import Facts

_CTC = (F.ctc_loss, torch.ctc_loss)


class WatchCTC(TorchFunctionMode):
    """Finds out whether torch's CTC loss is called within the context, also by a loss of a user."""

    called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function, and note whether it is the CTC loss."""
        self.called |= func in _CTC
        return func(*args, **(kwargs or {}))


def sequence_notices(facts: Facts) -> Iterator[str]:
    """Yield a notice for each term with a teacher that selects frames by labels, if another term computes CTC."""
    for term in facts.module.terms if facts.computes_ctc and facts.context.position_dims else ():
        if term.rows is not None and term.target is not None:
            yield (
                f"term {term.label!r} compares only the frames at which the padded labels have a class, but with CTC "
                "the labels are sequences, not one per frame: Masked(loss, mask=...) selects the frames of a sample, "
                "PerPosition(loss, ignore_index=None) all of them"
            )
