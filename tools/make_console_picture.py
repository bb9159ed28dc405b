"""Draw docs/images/console.svg: the terminal during a real run of examples/lrhnet_smlkd.py, in about two minutes.

    python tools/make_console_picture.py [--epochs 12] [--out FILE]

The run ends in its last stage, where the picture is taken.
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path

from rich.console import Console

import kdkit
from kdkit.engine.console import ConsoleCallback
from kdkit.engine.live_view.progress import RunProgress
from kdkit.engine.live_view.view import RunView
from kdkit.plugins.events import EpochEnded, RunStarted, StageStarted, StepEnded
from kdkit.utils.console import PrintableConsole

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "console.svg"
LINES = 4  # of epochs above the view


class Photographer:
    """Takes the picture in the middle of an epoch of the student, in two thirds of its epochs, and ends the run."""

    def __init__(self, console: Console, out: Path) -> None:
        self.console = console
        self.out = out
        self.progress = RunProgress()
        self.epochs = 0

    @kdkit.hookimpl
    def run_started(self, event: RunStarted) -> None:
        """Begin the progress."""
        self.progress.start(event, time.monotonic())

    @kdkit.hookimpl
    def stage_started(self, event: StageStarted) -> None:
        """Begin a stage."""
        self.epochs = event.epochs
        self.progress.start_stage(event, time.monotonic())

    @kdkit.hookimpl
    def step_ended(self, event: StepEnded) -> None:
        """Advance by a step, and take the picture."""
        self.progress.step(event)
        self.progress.read_step(event)
        self.progress.samples_per_second(time.monotonic())
        stage = self.progress.current
        last = 2 * self.epochs // 3
        if event.stage == "student" and stage is not None and stage.batch == max(1, 2 * stage.batches // 3):
            if event.epoch == max(0, last - LINES):
                self.console.export_text()  # forget what was printed until now
            if event.epoch == last:
                self.console.print(RunView(self.progress, time.monotonic), "")
                self.out.write_text(_without_web_fonts(self.console.export_svg(title="kdkit run lrhnet_smlkd.py")))
                sys.exit()

    @kdkit.hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        """End an epoch."""
        self.progress.end_epoch(event, time.monotonic())


def _without_web_fonts(svg: str) -> str:
    """Return the picture with the fonts of the reader, since rich loads those of a server."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    """Run the example, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    from lrhnet_smlkd import recipe

    console = PrintableConsole(
        record=True, file=io.StringIO(), force_terminal=True, width=127, height=40, highlight=False
    )
    callbacks = [ConsoleCallback(console), Photographer(console, arguments.out)]
    kdkit.run(
        lambda: recipe(epochs=arguments.epochs, records=640),
        device="cpu",
        progress=False,
        baseline=True,
        callbacks=callbacks,
    )


if __name__ == "__main__":
    main()
