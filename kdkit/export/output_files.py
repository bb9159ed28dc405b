"""The files of an export: their names, and how they replace the files of an earlier export."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdkit.errors import KdkitError
from kdkit.export.base import Exporter
from kdkit.export.card import OUT, read_cards
from kdkit.export.options import ExportResult
from kdkit.plugins.manager import registry
from kdkit.utils.files import exists, output_errors, require_output, to_json, write_output

REJECTED, OLDER = ".rejected", ".older"  # in names, before the suffix


@dataclass(frozen=True, slots=True)
class OutputFile:
    """The file of an export, with its card next to it. path: its name if it passes its gates."""

    path: Path

    @property
    def card(self) -> Path:
        """The card of the file."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def rejected(self) -> "OutputFile":
        """The file that is written instead if it misses a gate."""
        return OutputFile(self.path.with_name(f"{self.path.stem}{REJECTED}{self.path.suffix}"))

    @property
    def older(self) -> "OutputFile":
        """The file of an earlier export, renamed when a later export is rejected."""
        return OutputFile(self.path.with_name(f"{self.path.stem}{OLDER}{self.path.suffix}"))

    def require_writable(self) -> None:
        """Raise KdkitError if the file or its card cannot be written, under any of its names."""
        for file in (self, self.rejected, self.older):
            require_output(file.path, OUT)
            require_output(file.card, OUT)

    def write(self, content: bytes, card: Mapping[str, Any]) -> ExportResult:
        """Write the file and its card, so that a file at `path` is always from the last export.

        If the export passed its gates, earlier files with the other names are deleted. Otherwise an earlier file at
        `path` becomes `older`, because a user could mistake it for the result of this export.
        """
        written, notices = (self if card["passed"] else self.rejected), [*card["notices"]]
        if written is not self and (exists(self.path) or exists(self.older.path)):
            notices.append(f"{self.older.path.name} is from an earlier export, and was named {self.path.name}")
        digest = hashlib.sha256(content).hexdigest()  # `read_cards` uses it to match the card and the file
        card = {**card, "file": written.path.name, "sha256": digest, "notices": notices}
        write_output(written.path, content, option=OUT)
        write_output(written.card, to_json(card, indent=1) + "\n", option=OUT)
        with output_errors(self.path, OUT):
            if written is self:
                for earlier in (self.rejected, self.older):
                    earlier.path.unlink(missing_ok=True)
                    earlier.card.unlink(missing_ok=True)
            elif exists(self.path):
                self.path.replace(self.older.path)
                self.older.card.unlink(missing_ok=True)
                if exists(self.card):
                    self.card.replace(self.older.card)
        return ExportResult(format=card["format"], path=written.path, passed=card["passed"], card=card)


def output_files(out: Path, net: str, exporters: Mapping[str, Exporter]) -> tuple[Path, dict[str, OutputFile]]:
    """Return the folder of all files, and the file of each format.

    out: a file, if there is one format, or a folder. Raises KdkitError if it names another kind of file.
    """
    if len(exporters) == 1:
        ((name, exporter),) = exporters.items()
        if out.suffix == exporter.suffix:
            return out.parent, {name: OutputFile(out)}
    if out.is_file() or out.suffix in {getattr(factory, "suffix", None) for factory in registry("exporters").values()}:
        expected = f"have the suffix {exporter.suffix}" if len(exporters) == 1 else "be a folder for the files"
        raise KdkitError(f"{out} names a file, but an export to {', '.join(exporters)} must {expected}; change --out")
    stem = file_stem(net)
    files = {name: OutputFile(out / f"{stem}{exporter.label}{exporter.suffix}") for name, exporter in exporters.items()}
    nets = {card["file"]: card["network"]["name"] for card in read_cards(out)}
    for file in files.values():
        if (exported := nets.get(file.path.name, net)) != net:  # for example, "my net" and "my-net"
            raise KdkitError(f"{file.path} is an export of net {exported!r}; choose another place: {OUT}")
    return out, files


def file_stem(net: str) -> str:
    """Return the file name of a net, without a suffix."""
    return net.replace(" ", "-")
