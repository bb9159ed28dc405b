"""Count the multiply-adds of a network with torch's FlopCounterMode."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.backends import cudnn, mha, mkldnn

from kdkit.data.batch import Batch
from kdkit.nets.net import Net
from kdkit.utils.modules import eval_mode, preserve_buffers, uncompiled
from kdkit.utils.randomness import preserve_rng_state


def multiply_adds(net: Net[Any], batch: Batch) -> int | None:
    """Return the multiply-adds of a forward pass for one sample, in eval mode, or None if they cannot be counted.

    Matrix products, convolutions and attention are counted, which are nearly all of the work of most networks.
    """
    if not isinstance(net.module, nn.Module):
        return None
    for count in (1, len(batch)):  # some networks do not take a batch of one sample
        try:
            return _operations(net, batch.rows(torch.arange(count))) // (2 * count) or None
        except Exception:  # some tensor subclasses do not support the counter
            continue
    return None


def _operations(net: Net[Any], batch: Batch) -> int:
    """Return the floating-point operations of a forward pass; a multiply-add counts as two."""
    # Imported late: a run needs neither, and the import takes a tenth of a second.
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with ExitStack() as stack:
        # The counter does not know fused kernels for a whole layer, so layers run operation by operation.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        if any(isinstance(part, nn.RNNBase) for part in net.network.modules()):
            # Only the flag that is needed: torch's context managers set all flags, and warn about some.
            backends: tuple[Any, ...] = (mkldnn, cudnn)
            for backend in backends:
                stack.callback(setattr, backend, "enabled", backend.enabled)
                backend.enabled = False
        stack.enter_context(uncompiled())  # compiled code is opaque to the counter
        stack.enter_context(preserve_rng_state(cuda=batch.labels.is_cuda))
        stack.enter_context(preserve_buffers([net.network]))
        stack.enter_context(eval_mode(net.network))
        stack.enter_context(torch.no_grad())
        with FlopCounterMode(display=False) as counter:
            net(batch)
    return int(counter.get_total_flops())
