"""Where the releases are that `kdkit ecg fetch` knows."""

from collections.abc import Mapping
from types import MappingProxyType

# A published version never changes, so its list of sums can be held against what is there.
RELEASES: Mapping[str, str] = MappingProxyType(
    {
        "challenge-2020": "https://physionet.org/files/challenge-2020/1.0.2/",
        "challenge-2021": "https://physionet.org/files/challenge-2021/1.0.3/",
        "ptb-xl": "https://physionet.org/files/ptb-xl/1.0.3/",
    }
)
