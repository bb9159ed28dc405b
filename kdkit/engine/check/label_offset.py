"""Find out whether the outputs of a network for several labels per sample are trained up to an offset only."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdkit.engine.check.facts import Facts
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.losses.base import loss_name
from kdkit.utils.modules import preserve_buffers
from kdkit.utils.randomness import preserve_rng_state


def offset_notices(facts: Facts) -> Iterator[str]:
    """Yield a notice for each student whose probabilities of labels no term trains."""
    if facts.context.task != "multilabel" or facts.problems:
        return
    for net in facts.module.students:
        terms = [
            checked
            for checked in facts.checked_terms
            if checked.term.student_net is net and checked.term.weighted.has_weight
        ]
        on_outputs = [checked.term for checked in terms if checked.term.student.is_output]
        if on_outputs and not any(_sees_offset(facts, checked.term, checked.inputs) for checked in terms):
            yield (
                f"the probability of a label of net {net.name!r} is not trained: {loss_name(on_outputs[0].loss)} "
                "compares classes with each other, as if a sample had only one, and stays the same if all outputs of a "
                "sample are larger; add Truth(nn.BCEWithLogitsLoss()), or use a PerLabel... loss"
            )


def _sees_offset(facts: Facts, term: BoundTerm, inputs: TermInputs) -> bool:
    """Return whether the value of a term changes if all outputs of a sample grow by the same number.

    A softmax over the classes removes this offset, but the probability of a label by itself depends on it.
    """
    student = inputs.student
    if not isinstance(student, Tensor) or student.ndim != 2 or student.shape[1] < 2:
        return True
    loss, target = term.loss, inputs.target_or_labels()
    kwargs = term.loss_kwargs(inputs, facts.module.progress)

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
