"""Say all that a teacher's answers depend on: where any of it is another, its answers are kept in another place."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.dataset import Data, LoaderSplit, optional_member
from kdkit.errors import CacheError, first_line
from kdkit.nets.net import Net
from kdkit.nets.taps import AttentionTap, Tap, TapLike
from kdkit.teachers.cache.digest import Digest

FORMAT = 2  # of the files and the key: goes up whenever they are written otherwise
_OF_NETS = ("name", "module", "view", "element", "classes", "version", "trained")


@dataclass(frozen=True, slots=True)
class Key:
    """What answers depend on, as a person can read it, and the digest of it that names their folder."""

    facts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A sha256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def key_of(net: Net[Any], taps: Sequence[TapLike], *, data: Mapping[str, Any], how: Mapping[str, Any]) -> Key:
    """Return the key of what a net says, while it is open for a stage.

    data: see `facts_of_data`. how: what else the figures depend on, as the precision of the run.
    Raises CacheError, whose text is the reason, where something cannot be told apart from what it was.
    """
    try:
        return Key(
            {
                "format": FORMAT,
                "net": _facts_of_net(net),
                "view": {"key": str(net.view.key), "digest": Digest().add(net.view, "what it sees").hexdigest()},
                "taps": [_facts_of_tap(net, tap) for tap in taps],
                "data": dict(data),
                "how": {**how, **_surroundings(str(how.get("device", "cpu")))},
            }
        )
    except CacheError:
        raise
    except Exception as error:  # a stranger's module or view may raise anything when it is looked at
        raise CacheError(f"it cannot be looked at ({type(error).__name__}: {first_line(error)})") from error


def facts_of_data(data: Data) -> dict[str, Any]:
    """Return what answers depend on in the data. Raises CacheError where its samples cannot be told apart."""
    if isinstance(data.train, LoaderSplit):
        raise CacheError("the data comes from a loader, whose samples have no ids")
    if data.draws is None:
        raise CacheError("the data's randomness is its own, so that no sample need come again")
    ids = torch.as_tensor(data.train.ids)
    if len(torch.unique(ids)) < len(ids):
        raise CacheError("the ids of the training split are not different from each other")
    return {
        "fingerprint": str(data.fingerprint),
        "classes": list(data.classes),
        "train_digest": optional_member(data, Data, "train_digest"),
        "samples": len(ids),
        "draws": data.draws,
        "ids": Digest().add(ids.sort().values, "ids").hexdigest(),
        "augment": Digest().add(optional_member(data, Data, "augment"), "the data's augment").hexdigest(),
    }


def _facts_of_net(net: Net[Any]) -> dict[str, Any]:
    facts = {
        "name": net.name,
        "kind": type(net.module).__qualname__,
        "classes": None if net.classes is None else list(net.classes),
        "element": Digest().add(net.element, "its element").hexdigest(),
    }
    own = {name: value for name, value in vars(net).items() if name not in _OF_NETS}
    if type(net) is not Net or own:
        facts["own"] = Digest().add(type(net), type(net).__name__).add(own, type(net).__name__).hexdigest()
    if not isinstance(net.module, nn.Module):
        return {**facts, "version": net.version}
    del facts["name"]  # of a module all that matters is known
    digest = Digest()
    for name, tensor in _tensors(net.module):
        digest.add(name, name).add(tensor, name)
    tensors = digest.hexdigest()
    digest.add(repr(net.module), "its repr").add(net.module, type(net.module).__name__)
    return {**facts, "parameters": net.parameters, "tensors": tensors, "all": digest.hexdigest()}


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and all buffers, also those that are in no state dict, and what a state dict has beside."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return [*named.items(), *((name, value) for name, value in module.state_dict().items() if name not in named)]


def _facts_of_tap(net: Net[Any], tap: TapLike) -> dict[str, Any]:
    kind = type(tap)
    if kind not in (Tap, AttentionTap):
        raise CacheError(f"a tap of it is a {kind.__name__}, of which kdkit does not know what it takes")
    path = next((name for name, module in net.network.named_modules() if module is tap.module), None)
    if path is None:
        raise CacheError(f"a tap of it sits on a {type(tap.module).__name__} that is no part of its module")
    if not isinstance(tap, Tap):
        return {"kind": kind.__name__, "path": path}
    element = tap.element if isinstance(tap.element, (int, str)) else None
    digest = Digest().add(tap.element, "the element of its tap").hexdigest()
    facts = {"path": path, "at": tap.at, "element": element, "element_digest": digest}
    return {"kind": kind.__name__, **facts, "channels_last": tap.channels_last}


def _surroundings(device: str) -> dict[str, Any]:
    """Return what figures depend on beside the net: versions, and how exactly matrices are multiplied."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    kernels = [
        getattr(getattr(torch.backends.mkldnn, name, None), "fp32_precision", None) for name in ("conv", "matmul")
    ]
    return {
        "kernels": [None if each in ("none", "ieee") else each for each in kernels],  # both are exact
        "autocast": str(torch.get_autocast_dtype(device)) if autocast else None,
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "convolutions": torch.backends.cudnn.allow_tf32,
        "dtype": str(torch.get_default_dtype()),
    }
