"""Data without its test records, so that what is tuned on it has not seen them."""

from kdkit import Data, LoaderSplit, Split, Task


class Untested(Data):
    """The same data without its test split: scores are those of the records that epochs are chosen on."""

    test: None = None

    def __init__(self, data: Data) -> None:
        self._data = data

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the label columns."""
        return self._data.classes

    @property
    def task(self) -> Task:
        """What the labels are."""
        return self._data.task

    @property
    def draws(self) -> int | None:
        """How many augmentations each sample has."""
        return self._data.draws

    @property
    def fingerprint(self) -> str:
        """That of the data, and that it is untested."""
        return f"{self._data.fingerprint}, untested"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader of the figures must know."""
        return (
            *self._data.notices,
            "no net is asked about the test split: scores are of the selection split",
        )

    @property
    def train(self) -> Split | LoaderSplit:
        """What is learned from."""
        return self._data.train

    @property
    def validation(self) -> Split | LoaderSplit:
        """What epochs are chosen on, and reported on too."""
        return self._data.validation
