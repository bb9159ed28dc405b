"""What a recipe says of recorded answers: how they are kept, and how many are asked for again to be sure of them."""

from dataclasses import dataclass
from typing import Literal, get_args

from kdkit.errors import RecipeError

EntryInfo = Literal["fp16", "fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """How what frozen teachers say is kept; as it is by default, so that nothing but the asking is saved.

    dtype: "fp16" or "fp32", of outputs and features; None for what the teacher gives.
    top: keep the so many largest outputs of each sample and the mass of all others, which is spread over them evenly:
    the softmax at temperature 1 of the kept ones stays as it is. For one class per sample only.
    audit: the share of recorded answers that are asked for again while training, to stop a run whose teacher says
    something else now; 0 leaves it out. A forward pass of a teacher that costs three steps makes a step 0.15 % longer
    at the default.

    dtype and top move the figures of a run, and do so from its first epoch, whether answers are recorded or not.
    Raises RecipeError for values out of range.
    """

    dtype: EntryInfo | None = None
    top: int | None = None
    audit: float = 0.0005

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in get_args(EntryInfo):
            raise RecipeError(f"answers are kept as 'fp16', 'fp32' or, with None, as they are; got {self.dtype!r}")
        if self.top is not None and (isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1):
            raise RecipeError(f"top is how many outputs of each sample are kept, at least 1, or None; got {self.top!r}")
        if isinstance(self.audit, bool) or not isinstance(self.audit, float | int) or not 0 <= self.audit <= 1:
            raise RecipeError(f"audit is a share of the recorded answers, from 0 to 1; got {self.audit!r}")

    @property
    def form(self) -> str | None:
        """What of it moves figures, in words; None where nothing does."""
        if self.dtype is None and self.top is None:
            return None
        return f"dtype={self.dtype}, top={self.top}"
