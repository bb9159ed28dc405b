"""Compute the key of cached outputs: everything that a teacher's output for a sample depends on.

The table in `digest.py` shows which changes of a teacher's code and values lead to a new key.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from kdkit.data.dataset import Data, LoaderSplit
from kdkit.errors import CacheError, first_line
from kdkit.nets.net import Net
from kdkit.nets.taps import AttentionTap, ClassifierTap, HeadTap, Tap, TapLike
from kdkit.teachers.cache.digest import Digest
from kdkit.utils.devices import uses_tf32

FORMAT = 5  # the version of the files and the key; increase it whenever either changes
# Attributes of a Net that are already among the facts, or that its outputs do not depend on.
_NET_ATTRIBUTES = ("name", "module", "view", "element", "classes", "version", "trained", "recompute", "channels_last",
                   "device", "loaded", "_copies_inputs", "taken_element")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """The facts that outputs depend on, saved in an entry's meta.json, and the digest that names the entry."""

    facts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """A SHA-256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def compute_key(net: Net[Any], taps: Sequence[TapLike], *, data: Mapping[str, Any], settings: Mapping[str, Any]) -> Key:
    """Return the key of the outputs of a network that is open for a stage.

    data: see `facts_of_data`. settings: options of the run that outputs depend on, such as its precision.
    Raises CacheError with the reason if something cannot be keyed.
    """
    try:
        return Key(
            {
                "format": FORMAT,
                "net": _facts_of_net(net),
                "view": {"key": str(net.view.key), **Digest().add(net.view, "its view").facts()},
                "taps": [_facts_of_tap(net, tap) for tap in taps],
                "data": dict(data),
                "settings": {**settings, **_environment(str(settings.get("device", "cpu")))},
            }
        )
    except CacheError:
        raise
    except Exception as error:  # user-defined modules and views may raise anything from their attributes
        raise CacheError(f"its key cannot be computed ({type(error).__name__}: {first_line(error)})") from error


class DataIdentity(NamedTuple):
    """How samples are identified: by these facts about the data. None if they cannot be identified, with the reason."""

    facts: Mapping[str, Any] | None
    reason: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether any change of a training sample changes the facts: see `Data.train_digest`."""
        return self.facts is not None and self.facts["train_digest"] is not None

    def require(self) -> Mapping[str, Any]:
        """Return the facts. Raises CacheError with the reason if there are none."""
        if self.facts is None:
            raise CacheError(self.reason)
        return self.facts


def identify(data: Data) -> DataIdentity:
    """Return how the training samples are identified. May read all of them."""
    try:
        return DataIdentity(facts_of_data(data))
    except CacheError as error:
        return DataIdentity(None, str(error))
    except Exception as error:  # user-defined data may raise anything from its attributes
        return DataIdentity(None, f"the data cannot be identified ({type(error).__name__}: {first_line(error)})")


def facts_of_data(data: Data) -> dict[str, Any]:
    """Return the facts about the data that outputs depend on. Raises CacheError if samples cannot be identified."""
    if isinstance(data.train, LoaderSplit):
        raise CacheError("the data comes from a loader, whose samples have no ids")
    if data.batch_transform is not None:
        raise CacheError("batch_transform changes every batch as a whole, so no output is needed twice")
    if data.draws is None:
        raise CacheError(
            "the number of draws of the data is unknown (draws=None), so the same sample may never come twice; if a "
            "sample never changes, pass draws=1, as in TorchData(..., draws=1); for random augmentations, pass how "
            "many versions a sample has, such as draws=10"
        )
    ids = torch.as_tensor(data.train.ids)
    if len(torch.unique(ids)) < len(ids):
        raise CacheError("the ids of the training split are not unique")
    return {
        "fingerprint": str(data.fingerprint),
        "classes": list(data.classes),
        "train_digest": data.train_digest,
        "samples": len(ids),
        "draws": data.draws,
        "ids": Digest().add(ids.sort().values, "ids").hexdigest(),
        "augment": Digest().add(data.augment, "the data's augment").facts(),
    }


def _facts_of_net(net: Net[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "classes": None if net.classes is None else list(net.classes),
        "element": Digest().add(net.element, "its element").hexdigest(),
    }
    if net.channels_last:
        facts["channels_last"] = True
    attributes = {name: value for name, value in vars(net).items() if name not in _NET_ATTRIBUTES}
    if type(net) is not Net or attributes:  # a subclass may compute its outputs differently
        facts["subclass"] = Digest().add([type(net), attributes], type(net).__name__).facts()
    if not isinstance(net.module, nn.Module):  # a service: its version is all that can be compared
        return {"name": net.name, "callable": type(net.module).__qualname__, "version": net.version, **facts}
    name = type(net.module).__name__
    return {"module": name, "parameters": net.parameters, **Digest().add(net.module, name).facts(), **facts}


def _facts_of_tap(net: Net[Any], tap: TapLike) -> dict[str, Any]:
    kind = type(tap)
    if kind not in (Tap, AttentionTap, ClassifierTap, HeadTap):
        raise CacheError(
            f"a tap of it is a {kind.__name__}; only the outputs of Tap, AttentionTap, ClassifierTap and HeadTap can "
            "be cached"
        )
    paths = {id(module): name for name, module in net.network.named_modules()}
    path = paths.get(id(tap.module))
    if path is None:
        raise CacheError(f"a tap of it is on a {type(tap.module).__name__} that is not part of its module")
    facts: dict[str, Any] = {"tap": kind.__name__, "path": path}
    call = getattr(tap, "call", None)
    if call is not None:
        facts["call"] = call
    if not isinstance(tap, Tap):
        return facts
    element = Digest().add(tap.element, "the element of its tap").hexdigest()
    last = bool(tap.form.channels_last)  # known even if it is inferred: the dry run comes first
    facts.update({"at": tap.at, "element": element, "channels_last": last})
    if isinstance(tap, ClassifierTap):
        facts["classifier"] = Digest().add(tap.classifier, "the classifier of its tap").facts()
    return facts


def _environment(device: str) -> dict[str, Any]:
    """Return the versions and the numerical settings of torch that change the rounding of outputs."""
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    # Reading the older settings, such as allow_tf32, fails if user code has set these new ones.
    mkldnn: Any = torch.backends.mkldnn  # the type stubs lack `conv` and `matmul`
    owners: tuple[Any, ...] = (torch.backends, mkldnn.conv, mkldnn.matmul)
    precisions = [owner.fp32_precision for owner in owners]
    return {
        "kernels": [None if precision in ("none", "ieee") else precision for precision in precisions],  # both are exact
        "autocast": str(torch.get_autocast_dtype(device)) if autocast else None,
        "torch": torch.__version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "tf32": uses_tf32(),
        "dtype": str(torch.get_default_dtype()),
    }
