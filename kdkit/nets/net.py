"""A network with a name, and a view that selects its inputs."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdkit.data.batch import Batch, map_tensors, modifications, nested_tensors, to_device
from kdkit.errors import KdkitError, RecipeError, describe, describe_error, did_you_mean, first_line, shortened
from kdkit.nets.elements import Element, default_element, pick_tensor, validate_element
from kdkit.nets.views import Call, Inputs, View, as_view
from kdkit.nets.weights import LoadedWeights, load_weights
from kdkit.utils.devices import find_device
from kdkit.utils.modules import copy_with_module, eval_mode, uncompiled
from kdkit.utils.paths import user_path
from kdkit.utils.validation import is_whole_number, validate_name, validate_switches

# Parts of a preparation that do not change what a number in the inputs means, or that others have in detail.
_OF_SAMPLES = ("length", "steps", "version", "notices")

# The advice for a network of which `conflict_of_classes` returns a reason.
NAME_CLASSES = "pass the class of each output, by its name in the data, as Net(..., classes=[...])"

M = TypeVar("M", bound=Callable[..., Any], covariant=True)


class Net(Generic[M]):
    """A network that is a teacher, a student, or first a student and then a teacher.

    name: unique in a recipe. Folders, terms and table rows are named after it.
    module: an `nn.Module`. A teacher behind an API may be any callable, which then needs a `version`.
    view: turns a batch into the arguments of the module, such as `Inputs(only=("input_ids",))` or a function that
    returns the positional and the keyword arguments; all inputs if None.
    element: selects the outputs, (batch, classes) or (batch, classes, *positions), if the module returns several
    tensors: an index, a key or attribute, or a function. If None, the output named `logits`, `last_hidden_state` or
    `out` is taken, as models of transformers and torchvision name it, otherwise the only tensor. The plan shows which.
    channels_last: whether the outputs are (batch, *positions, classes), as in transformers; the classes are then moved
    to the second dimension. If None, this is inferred from the labels of the first batch, if they have positions.
    classes: the names of the outputs, if they or their order differ from the classes of the data. Terms compare shared
    classes only, in the order of the data; a vector over classes, such as the `weight` of a loss, has this order too.
    An integer n means the names "0" to "n - 1", for example 151936 for a padded vocabulary. The classes of a regression
    must be in the order of the data.
    weights: a .safetensors or torch file, a sharded index, or the folder of a run or of `save_pretrained`. They are
    loaded immediately. State dicts in checkpoints are found, and prefixes such as "module." are removed.
    weights_key: which weights to load if there are several: the path of an entry or a prefix of keys, such as
    "state_dict_ema" or "state_dict.student"; in a run folder, the name of the net there, if it differs.
    strict: whether all tensors must fit. False loads those that fit, and the net counts as trained only if all do.
    trained: whether the module already has trained weights, so that it may teach without being trained in a stage.
    version: for a plain callable, a text that changes whenever its outputs do; by default, its attribute `version`.
    recompute: the names of submodules, such as ["layer1", "blocks.3"], that recompute their activations in the backward
    pass during training (activation checkpointing). Training takes less memory and more time. Its results are the same
    if these modules draw random numbers from torch only.
    device: for a teacher on a device other than the run's, such as "cuda:1", or "cpu" if it does not fit on a GPU. In
    each step its inputs are copied to this device, and its outputs and features are copied back.
    loaded: the part of the file that was loaded, and the classes and inputs of the run that trained the weights.

    Raises RecipeError if the arguments do not fit together.
    """

    def __init__(
        self,
        name: str,
        module: M,
        *,
        view: View | Callable[[Batch], Call] | None = None,
        element: Element = None,
        channels_last: bool | None = None,
        classes: Sequence[str] | int | None = None,
        weights: str | Path | None = None,
        weights_key: str | None = None,
        strict: bool = True,
        trained: bool = False,
        version: str | None = None,
        recompute: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(name, nn.Module):
            raise RecipeError(f"a net takes its name first: Net('student', module); got a {type(name).__name__}")
        validate_name("net", name, "-_+ ")
        if not callable(module):
            advice = ""
            if hasattr(module, "predict"):
                advice = "; pass a function that returns what it predicts as a tensor"
            elif hasattr(module, "shape"):
                advice = (
                    "; put stored outputs among the inputs of the data, and pass "
                    f"Net({name!r}, lambda outputs: outputs, view=Inputs(only=('outputs',)), version='1')"
                )
            raise RecipeError(f"net {name!r} needs an nn.Module or a callable; got {type(module).__name__}{advice}")
        validate_switches(strict=strict, trained=trained)
        if channels_last is not None:
            validate_switches(channels_last=channels_last)
        validate_element(element)
        self.name = name
        self.module: M = module  # declared, because pyright infers the narrowed type
        self.view: View = Inputs() if view is None else as_view(view, name)
        self.element, self.channels_last = element, channels_last
        self.taken_element = element  # the default is filled in when the module first returns several tensors
        self.classes = None if classes is None else as_class_names(classes, f"net {name!r}")
        self.version = _version_of(module, name) if version is None else version
        # The device of an empty tensor has an index: "cuda" becomes "cuda:0".
        self.device = None if device is None else torch.empty(0, device=find_device(str(device))).device
        self._copies_inputs = False  # True after a first pass in which the module changed its inputs
        self._validate_recompute(recompute)
        self.recompute = tuple(recompute)
        # A plain callable cannot be trained, so it can only be a teacher.
        self.trained = trained or not isinstance(module, nn.Module)
        self.loaded = LoadedWeights("", complete=False)
        if weights is not None:
            self._load(weights, weights_key, strict=strict)
        elif weights_key is not None or not strict:
            raise RecipeError(
                f"weights_key and strict of net {name!r} choose what to load from weights=FILE, which is missing"
            )

    @property
    def network(self) -> nn.Module:
        """The module as an `nn.Module`. Raises RecipeError for a plain callable."""
        if not isinstance(self.module, nn.Module):
            raise RecipeError(f"net {self.name!r} is a plain callable: it can teach, but not be trained or tapped")
        return self.module

    @property
    def weights_note(self) -> str:
        """The part of the file of weights that was loaded, or "" for all of it; a notice of a run."""
        return self.loaded.note

    @property
    def recomputed(self) -> tuple[nn.Module, ...]:
        """The submodules that recompute their activations."""
        return tuple(self.network.get_submodule(name) for name in self.recompute)

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters, frozen ones included, without lazy ones; 0 for a plain callable."""
        parameters = self.module.parameters() if isinstance(self.module, nn.Module) else ()
        return sum(parameter.numel() for parameter in parameters if not is_lazy(parameter))

    @property
    def is_spread(self) -> bool:
        """Whether accelerate has spread the module over several devices or to disk; it then moves its own inputs."""
        devices = getattr(self.module, "hf_device_map", None) or {}
        return len({*devices.values()}) > 1

    @property
    def is_sharded(self) -> bool:
        """Whether `fully_shard` divided the weights among processes, which must then run the module together."""
        module = self.module
        parameters = module.parameters() if isinstance(module, nn.Module) else ()
        return any(type(parameter).__name__ == "DTensor" for parameter in parameters)  # its class is slow to import

    def __call__(self, batch: Batch) -> Tensor:
        """Return the outputs, (batch, classes) or (batch, classes, *positions)."""
        return self.outputs_of(self.module, batch)

    def move_to(self, device: torch.device) -> None:
        """Move the module to the device of a run, or to its own device if it has one.

        A module that is spread over devices stays there.
        """
        if isinstance(self.module, nn.Module) and not self.is_spread:
            self.module.to(self.device or device)

    def copy_network(self) -> nn.Module:
        """Return a copy of the network. Raises RecipeError if it cannot be copied."""
        try:
            return copy_with_module(self.network, self.network)
        except RecipeError as error:
            raise RecipeError(f"net {self.name!r} cannot be copied, but its average is a copy: {error}") from error
        except Exception as error:  # a user-defined module may hold objects that cannot be copied
            raise RecipeError(
                f"net {self.name!r} cannot be copied, but its average is a copy; do not store computed tensors, files "
                f"or locks in its modules ({type(error).__name__}: {first_line(error)})"
            ) from error

    def first_pass(self, batch: Batch) -> Tensor:
        """Return the outputs, and restore inputs that the network changes in place.

        From then on, such a network, for example with an in-place normalization, gets copies of its inputs, because
        other networks get the same batch. Compiled code is not run, so that taps see everything that the network does.
        """
        before = [(tensor, modifications(tensor), tensor.clone()) for tensor in nested_tensors(batch.inputs)]
        try:
            with uncompiled():
                return self(batch)
        finally:
            for tensor, count, values in before:
                if modifications(tensor) != count:
                    self._copies_inputs = True
                    with torch.no_grad():
                        tensor.copy_(values)

    def outputs_of(self, module: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the outputs of another module with the same interface, such as the EMA, as `__call__` does."""
        args, kwargs = self._arguments(batch)
        output = module(*args, **kwargs)
        if self.element is not None or not isinstance(output, Tensor):
            if self.taken_element is None:
                self.taken_element = default_element(output)
            output = pick_tensor(output, self.element, f"net {self.name!r}")
        if self.channels_last is not False and output.ndim > 2:
            output = self._with_classes_second(output, batch.labels)
        if isinstance(module, nn.Module) and self.device is None:
            return output
        # A service may drop rows. Without this check, a loss could broadcast the rest.
        if not isinstance(module, nn.Module) and (not output.ndim or len(output) != len(batch)):
            raise RecipeError(
                f"net {self.name!r} must return one row per sample, {len(batch)} for this batch; "
                f"got outputs of shape {tuple(output.shape)}"
            )
        return output.to(batch.labels.device)

    def __repr__(self) -> str:
        return f"Net({self.name!r}, {type(self.module).__name__})"

    def _load(self, weights: object, key: object, *, strict: bool) -> None:
        if not isinstance(weights, str | os.PathLike):
            raise RecipeError(
                f"weights of net {self.name!r} must be the path of a file or a folder; got a {type(weights).__name__}; "
                "load a state dict with module.load_state_dict(...), and pass trained=True"
            )
        if not isinstance(key, str | None):
            raise RecipeError(f"weights_key of net {self.name!r} must be a text such as 'student'; got {key!r}")
        if "://" in str(weights):
            raise RecipeError(
                f"weights of net {self.name!r} must be a file or a folder, but {weights} is an address; download it "
                "first, such as with torch.hub.download_url_to_file(URL, FILE)"
            )
        self.loaded = load_weights(self.network, user_path(weights), self.name, key=key, strict=strict)
        self.trained |= self.loaded.complete

    def _arguments(self, batch: Batch) -> Call:
        """Return the arguments of the module, on its device."""
        if self._copies_inputs:
            batch = replace(batch, inputs=map_tensors(batch.inputs, torch.clone))
        call = self.view(batch)
        if not isinstance(call, tuple) or len(call) != 2:
            got = f"a tuple of {len(call)}" if isinstance(call, tuple) else f"a {type(call).__name__}"
            raise RecipeError(
                f"the view of net {self.name!r} must return (args, kwargs), such as ((batch.inputs,), {{}}); got {got}"
            )
        if not isinstance(call[0], list | tuple) or not isinstance(call[1], Mapping):
            got = " and ".join(f"a {type(part).__name__}" for part in call)
            raise RecipeError(
                f"the view of net {self.name!r} must return a tuple of arguments and a dict of keywords, such as "
                f"((batch.inputs,), {{}}); got {got}"
            )
        if self.device is None:
            return call
        args, kwargs = to_device(call, self.device)
        return args, kwargs

    def _with_classes_second(self, output: Tensor, labels: Tensor) -> Tensor:
        if self.channels_last is None:
            # Only class indices by position have one dimension less than the outputs.
            if labels.is_floating_point() or output.ndim != labels.ndim + 1:
                return output
            is_second = output.shape[2:] == labels.shape[1:]
            is_last = output.shape[1:-1] == labels.shape[1:]
            if is_second and is_last:
                raise RecipeError(
                    f"net {self.name!r} has outputs {tuple(output.shape)} for labels {tuple(labels.shape)}, so the "
                    "classes may be the second or the last dimension; pass Net(..., channels_last=True) or False"
                )
            if not is_second and not is_last:
                return output
            self.channels_last = is_last  # for all batches: a later batch may have as many tokens as classes
        return output.movedim(-1, 1) if self.channels_last else output

    def _validate_recompute(self, recompute: object) -> None:
        if isinstance(recompute, str) or not isinstance(recompute, Sequence):
            raise RecipeError(f"recompute of net {self.name!r} must be a list of names; got {recompute!r}")
        names = [name for name, _ in self.network.named_modules(remove_duplicate=False) if name] if recompute else []
        for name in recompute:
            if name not in names:
                hint = did_you_mean(str(name), names)
                raise RecipeError(f"net {self.name!r} has no submodule {name!r} to recompute; {hint}")


@torch.no_grad()
def output_shape(net: Net[Any], batch: Batch) -> torch.Size:
    """Return the shape of the outputs of a network for a batch, (batch, outputs, *positions)."""
    with eval_mode(net.network):
        parameter = next(net.network.parameters(), None)
        output = net(batch if parameter is None else batch.to(parameter.device))
    return output.shape if output.ndim > 1 else torch.Size((len(output), 1))


def conflict_of_classes(net: Net[Any], classes: Sequence[str]) -> str:
    """Return why the outputs are not those of the classes of the data, as far as the weights show; otherwise ""."""
    trained, count = net.loaded.classes, len(classes)
    numbers = tuple(map(str, range(count)))  # classes without names
    if net.classes is not None or len(trained) != count or numbers in (trained, tuple(classes)):
        return ""
    for number, (name, of_data) in enumerate(zip(trained, classes, strict=True)):
        if name != of_data:
            return (
                f"output {number} of net {net.name!r} is the class {name!r} in the run that trained its weights, but "
                f"{of_data!r} in the data"
            )
    return ""


def preparation_of(net: Net[Any], preparation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how raw samples become the inputs of a net. preparation: of the data, see `Data.preparation`.

    Raises RecipeError if the view cannot describe its inputs, or the preparation is not JSON.
    """
    return described_inputs(net, preparation) if preparation else preparation


def described_inputs(net: Net[Any], preparation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the view of a net makes of a preparation, also of an empty one; unchanged if it describes nothing.

    Raises RecipeError if the view cannot describe its inputs, or the preparation is not JSON.
    """
    describe_view = getattr(net.view, "describe", None)  # optional, see `View`
    source = "the preparation of the data"
    described: Any = preparation
    if describe_view is not None:
        source = f"describe(preparation) of {net.view!r}"
        try:
            described = describe_view(preparation)
        except KdkitError:
            raise
        except Exception as error:  # a user-defined view may raise anything
            raise RecipeError(f"{source} raises {describe_error(error)}") from error
    if not isinstance(described, Mapping):
        raise RecipeError(f"{source} must be a mapping of JSON values; got {describe(described)}")
    try:
        json.dumps(dict(described))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source} must be a mapping of JSON values: {first_line(error)}") from error
    return described


def conflict_of_inputs(net: Net[Any], preparation: Mapping[str, Any]) -> str:
    """Return how the inputs differ from those in the run that trained the weights, as far as known; otherwise ""."""
    before = net.loaded.preparation
    now = json.loads(json.dumps(preparation_of(net, preparation), default=str)) if before else {}
    changed = [
        f"{key} {shortened(before[key], 60)}, now {shortened(now[key], 60)}"
        for key in before
        if key in now and before[key] != now[key] and key not in _OF_SAMPLES
    ]
    return f"the weights of net {net.name!r} were trained on other inputs: {'; '.join(changed)}" if changed else ""


def _version_of(module: object, net: str) -> str | None:
    """Return the version of a plain callable; None for an `nn.Module`, which has weights instead."""
    if isinstance(module, nn.Module):
        return None
    version: str | None = getattr(module, "version", None)
    if version is None:
        raise RecipeError(
            f"net {net!r} is a plain callable, whose weights kdkit cannot see; give it a version that changes whenever "
            f"its outputs do: Net({net!r}, function, version='1')"
        )
    return version


def as_class_names(classes: object, owner: str) -> tuple[str, ...]:
    """Return at least one class name, all distinct. An integer n means the names "0" to "n - 1".

    Raises RecipeError for anything else. owner: whose classes they are, such as "net 'student'".
    """
    if is_whole_number(classes) and classes > 0:
        return tuple(str(index) for index in range(classes))
    if (
        isinstance(classes, str)
        or not isinstance(classes, Sequence)
        or not all(isinstance(label, str) for label in classes)
    ):
        raise RecipeError(
            f"the classes of {owner} must be a list of names, such as ['cat', 'dog'], or their number; got "
            f"{shortened(classes, 80)}"
        )
    repeated = sorted(label for label, count in Counter(classes).items() if count > 1)
    if not classes:
        raise RecipeError(f"the classes of {owner} must be at least one name; got none")
    if repeated:
        raise RecipeError(f"the classes of {owner} must be distinct names; got {repeated} more than once")
    return tuple(classes)
