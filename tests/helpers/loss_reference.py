"""Compare a loss with a reference in double precision: its value, and its gradient at the student.

The functions at the end are parts of references, written with loops.
"""

import math

import torch


def assert_equals_reference(loss, reference, student, target, **kwargs):
    """Compare in float64 and in float32. Both are called as loss(student, target, **kwargs)."""
    student, target = student.double(), target.double()
    expected, expected_gradient = _with_gradient(reference, student, target, kwargs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        module = loss.to(dtype) if isinstance(loss, torch.nn.Module) else loss
        value, gradient = _with_gradient(module, student.to(dtype), target.to(dtype), kwargs)
        torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
        scale = expected_gradient.abs().max().item()
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=max(scale, 1e-3) * tolerance * 10)


def _with_gradient(loss, student, target, kwargs):
    student = student.clone().requires_grad_()
    value = loss(student, target, **kwargs)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def softmax(row):
    """Return the probabilities of a list of logits."""
    exponentials = [math.exp(number) for number in row]
    return [number / sum(exponentials) for number in exponentials]


def kl(p, q):
    """Return the divergence of two lists of probabilities, KL(p || q)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
