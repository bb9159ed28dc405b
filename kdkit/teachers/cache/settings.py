"""The settings of a recipe for cached teacher outputs: their precision, their size, and how many are audited."""

from dataclasses import dataclass
from typing import Literal

from kdkit.utils.validation import validate_choice, validate_counts, validate_share

StoredDtype = Literal["fp16", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """How outputs of frozen teachers are stored. By default, they are stored exactly as the teacher returns them.

    dtype: "fp16" or "fp32" for outputs and features; None for the teacher's dtype.
    top: store only the `top` largest logits of each sample, pixel or token, and the total probability mass of all other
    classes, which is spread over them evenly. The softmax of the stored classes at temperature 1 does not change. For
    multiclass data only.
    audit: the share of cached outputs that are recomputed during training. The run stops if they differ from the
    teacher's outputs. 0 disables the audit. If a forward pass of the teacher takes as long as three training steps, the
    default makes a step 0.15 % longer.

    dtype and top change the losses of a run from its first epoch, even if no outputs are cached.
    Raises RecipeError for values out of range.
    """

    dtype: StoredDtype | None = None
    top: int | None = None
    audit: float = 0.0005

    def __post_init__(self) -> None:
        validate_choice("dtype", self.dtype, StoredDtype, optional=True)
        validate_counts(self, "top", optional=True)
        validate_share("audit", self.audit)

    @property
    def form(self) -> str | None:
        """The settings that change losses, as text; None if all have their defaults."""
        if self.dtype is None and self.top is None:
            return None
        return f"dtype={self.dtype}, top={self.top}"
