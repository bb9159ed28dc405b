"""Data without its test split, so that hyperparameters can be tuned without test records."""

from kdkit import Data, LoaderSplit, Split, Task


class WithoutTestSplit(Data):
    """The same data without its test split: metrics are computed on the validation split."""

    test: None = None

    def __init__(self, data: Data) -> None:
        self._data = data

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the label columns."""
        return self._data.classes

    @property
    def task(self) -> Task:
        """The kind of labels."""
        return self._data.task

    @property
    def draws(self) -> int | None:
        """The number of augmented versions of each sample."""
        return self._data.draws

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the data, marked as being without a test split."""
        return f"{self._data.fingerprint}, without test split"

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of the data, and one about the missing test split."""
        return (
            *self._data.notices,
            "no test record is used: metrics are those of the validation split",
        )

    @property
    def train(self) -> Split | LoaderSplit:
        """The split to learn from."""
        return self._data.train

    @property
    def validation(self) -> Split | LoaderSplit:
        """The split to choose epochs on, and to compute metrics on."""
        return self._data.validation
