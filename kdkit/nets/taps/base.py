"""Capture a tensor of a layer while a network runs, without changing the layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from kdkit.errors import RecipeError
from kdkit.nets.elements import Element, pick_tensor, validate_element
from kdkit.nets.net import Net
from kdkit.nets.taps.layout import FeatureForm
from kdkit.utils.reprs import describe_options
from kdkit.utils.validation import validate_count, validate_switches

Capture = Callable[[Any], None]
RemoveHook = Callable[[], None]


@runtime_checkable
class TapLike(Protocol):
    """The interface of a tap: `Tap`, `AttentionTap` or a user-defined class."""

    @property
    def module(self) -> nn.Module:
        """The module whose tensor is captured."""
        ...

    def attach(self, capture: Capture) -> RemoveHook:
        """Call `capture` with the tensor each time the module runs, until the returned function is called."""
        ...


@dataclass(frozen=True, slots=True)
class Tap:
    """The output or the input of a module, as (batch, channels, ...).

    at: "output" or "input". For an activation layer, the input is the pre-activation.
    element: selects one tensor if there are several, by index, key or function. None takes the default output, as for a
    `Net`, or the only tensor, which for a transformer block is the hidden state.
    channels_last: whether the tensor is (batch, ..., channels), like the tokens of a transformer; the channels are then
    moved to the second dimension. If None, it is inferred in the first forward pass from the widths of the module's
    layers. The plan of a recipe shows it, with a notice if it is uncertain.

    call: which run of the module is captured if it runs several times in a forward pass, such as a layer whose weights
    several depths share: 0 is the first, None the last. Raises RecipeError in a forward pass with fewer runs.
    """

    module: nn.Module
    at: Literal["output", "input"] = "output"
    element: Element = None
    channels_last: bool | None = None
    call: int | None = None
    form: FeatureForm = field(init=False, compare=False, repr=False)  # decided in the first pass

    def __post_init__(self) -> None:
        if isinstance(self.module, str):
            raise RecipeError(
                f"a tap takes a module, not its name: Tap(net.module.get_submodule({self.module!r})); got a str"
            )
        if not isinstance(self.module, nn.Module):
            raise RecipeError(
                f"a tap takes a module, such as Tap(net.module.layer3); got a {type(self.module).__name__}"
            )
        if self.at not in ("output", "input"):
            raise RecipeError(f"at=... of a tap must be 'output' or 'input'; got {self.at!r}")
        validate_element(self.element)
        validate_count("call", self.call, least=0, optional=True)
        if self.channels_last is not None:
            validate_switches(channels_last=self.channels_last)
        object.__setattr__(self, "form", FeatureForm(self.module, self.element, self.channels_last))

    def __repr__(self) -> str:
        # A module's own repr lists all its layers.
        options = [type(self.module).__name__, *describe_options(self, "at", "element", "channels_last", "call")]
        return f"{type(self).__name__}({', '.join(options)})"

    def locate(self, nets: Sequence[Net[Any]]) -> None:
        """Find the network that the module belongs to, for messages and for `channels_last`."""
        self.form.locate(self.module, nets)

    def attach(self, capture: Capture) -> RemoveHook:
        """Register a forward hook on the module."""
        hook = _TapHook(self, capture)
        if self.at == "input":
            return self.module.register_forward_pre_hook(hook.capture_input, with_kwargs=True).remove
        return self.module.register_forward_hook(hook.capture_output).remove

    def _feature(self, value: Any) -> Tensor:
        """Return the captured tensor, (batch, channels, ...), from an input or output of the module."""
        form = self.form
        # Otherwise a teacher's main output would be compared instead of the one of an auxiliary head.
        if self.at == "output" and isinstance(value, Tensor) and self.element and isinstance(self.element, int | str):
            raise RecipeError(
                f"the output of {form.layer} is one tensor {tuple(value.shape)}, without an element {self.element!r}; "
                "in eval mode, in which teachers always run, some networks return less than in training: tap the layer "
                "inside that computes the element, or leave out element="
            )
        tensor = pick_tensor(value, self.element, f"the {self.at} of {form.layer}")
        if not form.is_decided:
            form.decide(value, tensor)
        # The dimensions of a nested tensor cannot be moved; OpenTaps rejects it with a hint.
        return tensor.movedim(-1, 1) if form.channels_last and not tensor.is_nested else tensor


def moves_channels(tap: object) -> bool:
    """Return whether a tap moves the last dimension to the second, because it was inferred to have the channels."""
    return isinstance(tap, Tap) and tap.channels_last is None and bool(tap.form.channels_last)


@dataclass(slots=True)
class _TapHook:
    """The hook of a tap: an object, not a closure, so that a network with open taps can be copied and pickled."""

    tap: Tap
    capture: Capture

    def capture_input(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Capture the input of the module."""
        element = self.tap.element
        values = args or tuple(kwargs.values())  # an input may be passed by keyword only
        if isinstance(element, str) and element in kwargs:
            self._capture_element(kwargs)
        else:
            self._capture_element(values[0] if len(values) == 1 and not isinstance(element, int) else values)

    def capture_output(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Capture the output of the module."""
        self._capture_element(output)

    def _capture_element(self, value: Any) -> None:
        # Nothing is captured in validation, where a network may return something without the element.
        if getattr(self.capture, "is_open", True):
            self.capture(self.tap._feature(value))
