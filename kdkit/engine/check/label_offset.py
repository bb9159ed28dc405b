"""Find out whether the outputs of a network for several labels per sample are trained up to an offset only."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.losses.base import loss_name
from kdkit.utils.modules import preserve_buffers
from kdkit.utils.randomness import preserve_rng_state


def sees_offset(term: BoundTerm, inputs: TermInputs, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the value of a term changes if all outputs of a sample grow by the same number.

    A softmax over the classes removes this offset, but the probability of a label by itself depends on it. inputs: of
    a few samples, for which the loss has a value.
    """
    student = inputs.student
    if not isinstance(student, Tensor) or student.ndim != 2 or student.shape[1] < 2:
        return True
    loss, target = term.loss, inputs.target_or_labels()

    def value(outputs: Tensor) -> Tensor:
        with preserve_rng_state(cuda=False), preserve_buffers([loss] if isinstance(loss, nn.Module) else []):
            result: Tensor = loss(outputs, target, **kwargs)
        return result

    offsets = torch.linspace(1, 2, len(student), device=student.device, dtype=student.dtype)[:, None]
    try:
        with torch.no_grad():
            return not torch.allclose(value(student), value(student + offsets), rtol=1e-3, atol=1e-6)
    except Exception:  # the loss may be user-defined, or only take probabilities
        return True


def offset_notices(terms: Mapping[str, Sequence[tuple[BoundTerm, bool]]]) -> Iterator[str]:
    """Yield a notice for each network whose probabilities of labels no term trains.

    terms: of each network by its name, those on outputs or features of as many columns, and whether they see an offset.
    """
    for name, of_net in terms.items():
        on_outputs = [term for term, _ in of_net if term.student.is_output]
        if on_outputs and not any(sees for _, sees in of_net):
            yield (
                f"the probability of a label of net {name!r} is not trained: {loss_name(on_outputs[0].loss)} compares "
                "classes with each other, as if a sample had only one, and stays the same if all outputs of a sample "
                "are larger; add Truth(nn.BCEWithLogitsLoss()), or use a PerLabel... loss"
            )
