"""CNN1d, the baseline of the LRH-Net paper: four plain convolutions, to measure the gain from the student's design."""

from torch import Tensor, nn
from torch.nn.functional import pad

from kdkit.utils.validation import validate_choice, validate_share
from kdkit_ecg.models.blocks import PERSON, PERSON_FEATURES, EcgNet, Preset, check_sizes, join_person

PADDING = 3
SHORTEST = 98  # samples; fewer leave too few positions for the last max pool


class CNN1d(EcgNet):
    """Four plain convolutions, for signals of any length; signals below 98 samples are padded with zeros at the end.

    width: channels of the first stage; the others have twice, twice and four times as many.
    preset: "paper" applies dropout to the logits, as the authors do; "corrected" to the input of the last layer.
    dropout: the probability in training.

    To tap: `stage1` to `stage4` (N, channels, time); `pool` (N, 4 width); (N, 10 + 4 width) as the input of `dropout`
    in "corrected", of `classifier` in "paper". A stage's pre-activation is the input of its `activation`.

    Raises RecipeError for a size below 1, a dropout outside [0, 1) or an unknown preset.
    Source: the baseline of Chauhan et al., 2022, arXiv:2204.08000.
    """

    def __init__(
        self,
        leads: int = 12,
        classes: int = 24,
        *,
        width: int = 128,
        preset: Preset = "corrected",
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        check_sizes(leads=leads, classes=classes, width=width)
        validate_share("dropout", dropout, below_one=True)
        validate_choice("preset", preset, Preset)
        self.drops_logits = preset == "paper"
        self.stage1 = Stage(leads, width, kernel=80, stride=8)
        self.stage2 = Stage(width, 2 * width, kernel=4)
        self.stage3 = Stage(2 * width, 2 * width, kernel=4)
        self.stage4 = Stage(2 * width, 4 * width, kernel=4)
        self.pool = MeanOverPairs()
        self.person = nn.Linear(PERSON, PERSON_FEATURES)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(PERSON_FEATURES + 4 * width, classes)

    def forward(self, signal: Tensor, person: Tensor) -> Tensor:
        """Map signal (N, leads, T), person (N, 5) -> logits (N, classes), for any T >= 1."""
        if signal.shape[-1] < SHORTEST:
            signal = pad(signal, (0, SHORTEST - signal.shape[-1]))
        features = self.stage4(self.stage3(self.stage2(self.stage1(signal))))
        joined = join_person(self.person(person), self.pool(features))  # (N, 10 + 4 width)
        logits: Tensor = (
            self.dropout(self.classifier(joined)) if self.drops_logits else self.classifier(self.dropout(joined))
        )
        return logits


class Stage(nn.Module):
    """Convolution, norm, max-pool and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        # No bias: the norm that follows would subtract it.
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, PADDING, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.max_pool = nn.MaxPool1d(4)
        self.activation = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, inputs, T) -> (N, outputs, floor((T + 6 - kernel + stride) / (4 stride)))."""
        out: Tensor = self.activation(self.max_pool(self.norm(self.conv(features))))
        return out


class MeanOverPairs(nn.Module):
    """Global average pool over whole pairs: if the number of positions is odd, the last one is left out.

    The authors average only the first pair, and therefore support 2,146 to 6,241 samples (2 or 3 positions). Within
    this range the result is the same; other lengths are supported as well.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Average (N, channels, T) -> (N, channels)."""
        length = features.shape[-1]
        return features[..., : max(1, length - length % 2)].mean(-1)
