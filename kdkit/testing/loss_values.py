"""What is tried of the value of a loss and of its gradient: numbers at the edge, small batches, memory, precision."""

from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kdkit.losses import Loss, asked_by
from kdkit.testing.loss_case import Trial

_SATURATED = 1e4
# Of autocast, student and target: a net ends in half precision or, after some layers, in single; so does its teacher.
_PRECISIONS = (
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.float16, torch.float16),
)
_HALF_AS_EXACT = 2e-2  # bf16 has 8 significant bits, of which a layer and a mean leave about six


def is_least_when_equal(trial: Trial) -> None:
    """No target is better met than by itself."""
    if not trial.given.meets_itself:
        return
    equal = trial.given.equal()
    least = trial.value(equal)
    for distance in (1e-2, 1.0, 10.0):
        torch.default_generator.manual_seed(0)
        noise = tuple(each + distance * torch.randn_like(each) for each in equal.student)
        other = trial.value(replace(equal, what="", student=noise))
        holds = bool(least <= other + 1e-6)
        trial.require(holds, trial.given, f"is {least.item()} where both sides are equal, but {other.item()} apart")


def takes_any_batch(trial: Trial) -> None:
    """Built on one batch, it takes a batch of one, and one that is larger."""
    trial.learned(trial.given.rows("a batch of one", torch.tensor([1])))
    trial.learned(trial.given.rows("a batch of seven", torch.arange(7) % len(trial.given.labels)))


def takes_any_memory(trial: Trial) -> None:
    """The value is that of the numbers, however they lie in memory; channels are last where a tap moves them."""
    plain = trial.value(trial.given)
    for what, laid_out in (("memory that is not contiguous", _strided), ("memory with the channels last", _moved)):
        value = trial.learned(trial.given.changed(what, laid_out))
        close = torch.allclose(plain, value, rtol=1e-5, atol=1e-6)
        trial.require(close, trial.given, f"is {value.item()} on {what}, and {plain.item()} on the same")


def takes_sides_without_spread(trial: Trial) -> None:
    """Finite, with a finite gradient, where a norm, a deviation or a distance is zero."""
    flat = {
        "channels without spread": lambda each: each[:, :, *[slice(1)] * (each.ndim - 2)].expand_as(each).clone(),
        "samples that are the same": lambda each: each[:1].expand_as(each).clone(),
        "zeros": torch.zeros_like,
        "ones": torch.ones_like,
    }
    if trial.given.meets_itself:
        trial.learned(trial.given.equal())
    for (what, change), sides in product(flat.items(), ("student", "target", "student target")):
        trial.learned(trial.given.changed(f"{what} ({sides.replace(' ', ' and ')})", change, sides))


def takes_saturated_logits(trial: Trial) -> None:
    """Finite, with a finite gradient, on logits that are sure, whether they are right or wrong; also in half."""
    given = trial.given.changed("", lambda each: each.sign() * _SATURATED)
    sides = [given, given.changed("", torch.neg, "target")]
    for each in (*sides, *([given.equal()] if given.meets_itself else ())):
        trial.learned(each.changed(f"logits of +-{_SATURATED:g}", torch.clone))
        for half in (torch.bfloat16, torch.float16):  # whose gradients may be beyond what fp16 holds
            what = f"logits of +-{_SATURATED:g} in {_said(half)}"
            trial.value(each.changed(what, partial(Tensor.to, dtype=half)), autocast=half)


def takes_empty_classes(trial: Trial) -> None:
    """Finite, with a finite gradient, where a class is nobody's or everybody's, if it asks for labels."""
    if "labels" not in asked_by(trial.make_loss()):
        return
    labels = trial.given.labels
    if trial.facts.task == "multiclass":
        empty = {"a class that is everybody's": torch.zeros_like(labels)}
    else:
        mixed = labels.clone()
        mixed[:, 0], mixed[:, -1] = 0, 1
        empty = {
            "a label that is nobody's, and one that is everybody's": mixed,
            "labels that are all 0": torch.zeros_like(labels),
            "labels that are all 1": torch.ones_like(labels),
        }
    for what, given in empty.items():
        trial.learned(replace(trial.given.changed(what, torch.clone), labels=given))


def takes_any_precision(trial: Trial) -> None:
    """The same to 2 % under autocast in bf16 and fp16, and to 0.1 % in float64."""
    for half, ours, theirs in _PRECISIONS:
        what = f"{_said(half)} autocast ({_said(ours)} and {_said(theirs)})"
        given = trial.given.changed(what, partial(Tensor.to, dtype=ours), "student")
        given = given.changed(what, partial(Tensor.to, dtype=theirs), "target")
        value = trial.learned(given, autocast=half)
        full = trial.value(given.changed("", Tensor.float))
        close = torch.allclose(value.float(), full, rtol=_HALF_AS_EXACT, atol=1e-3)
        trial.require(close, given, f"is {value.item()}, but {full.item()} in float32 on the same; compute it there")
    plain = trial.value(trial.given)
    double = trial.learned(trial.given.changed("float64", Tensor.double), _doubled(trial.built()))
    close = torch.allclose(plain.double(), double.double(), rtol=1e-3, atol=1e-5)
    trial.require(close, trial.given, f"is {plain.item()}, but {double.item()} in float64; mind what cancels")


def _doubled(loss: Loss) -> Loss:
    return loss.double() if isinstance(loss, torch.nn.Module) else loss


def _strided(tensor: Tensor) -> Tensor:
    """Return the same numbers with a stride of two in every dimension."""
    wide = tensor
    for dimension in range(tensor.ndim):
        wide = wide.repeat_interleave(2, dimension)
    return wide[(slice(None, None, 2),) * tensor.ndim]


def _moved(tensor: Tensor) -> Tensor:
    """Return (batch, channels, ...) that lies in memory as (batch, ..., channels)."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _said(kind: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(kind, "fp32")
