"""The entry point of the command line, and the group of all commands, including those of plugins."""

import errno
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from kdkit import __version__
from kdkit.cli.bench import bench
from kdkit.cli.cache import cache
from kdkit.cli.check import check, evaluate
from kdkit.cli.doctor import doctor
from kdkit.cli.export import export
from kdkit.cli.group import CommandGroup, completion
from kdkit.cli.list import list_
from kdkit.cli.new import new
from kdkit.cli.results import card, classes, report
from kdkit.cli.run import rerun, run
from kdkit.cli.sweep import sweep
from kdkit.errors import KdkitError, PluginWarning, RemoteRankError, Terminated, shortened, shows_tracebacks
from kdkit.plugins.manager import installed
from kdkit.utils.printable import LINE_CHARACTERS, echo, is_first_process, printable

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk is full, or a quota or limit of this user is reached

# Commands import most modules when they are called, because these import torch. That takes seconds, and `kdkit --help`
# does not need it.

# Under torchrun, only the first process runs these commands, because they do not divide their work among ranks.
_ALONE = ("bench", "cache", "card", "check", "classes", "completion", "doctor", "export", "list", "new", "report")


def main() -> None:
    """Run the command line and exit with its exit code."""
    # Unexpected warnings and errors may contain names from data, with control characters.
    format_warning = warnings.formatwarning

    def format_printable(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        # The file and line of a warning of kdkit do not help its user.
        is_line = issubclass(category, PluginWarning) or filename.startswith(_PACKAGE)
        text = f"warning: {message}\n" if is_line else format_warning(message, category, filename, lineno, line)
        return printable(text, keep=LINE_CHARACTERS)

    warnings.formatwarning = format_printable
    sys.excepthook = lambda *error: echo("".join(traceback.format_exception(*error)).rstrip("\n"), err=True)
    code = call(sys.argv[1:])
    if "triton" not in sys.modules:  # from triton 3.9 on, it prints which of its objects are not freed
        gc.freeze()  # otherwise Python searches all objects of torch for cycles as it exits, which takes about a second
    sys.exit(code)


def call(args: list[str]) -> int:
    """Run the command line with these arguments and return its exit code.

    The exit code is 2 for a KdkitError, which is printed without a traceback unless KDKIT_TRACEBACK is set, 130 for
    Ctrl-C, and 143 for SIGTERM. Under torchrun, a process that leaves the command to the first one returns 0.
    """
    is_alone = not args or args[0] in _ALONE or args[0].startswith("-") or "--help" in args
    if is_alone and not is_first_process():
        return 0
    try:
        with nullcontext() if is_alone else _process_group():
            add_plugin_commands()
            try:
                code = cli.main(args, prog_name="kdkit", standalone_mode=False)
            except click.Abort as error:  # click's error for Ctrl-C, which the process group must not report
                raise KeyboardInterrupt from error
            return code if isinstance(code, int) else 0
    except RemoteRankError:  # the process that had the error prints it
        return 2
    except KdkitError as error:
        # A note names, for example, the callback that ended the run. Tracebacks of child processes are left out.
        notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
        return _fail(error, "\n".join([str(error), *notes]))
    except OSError as error:
        if error.errno in _NO_SPACE:  # for example, in `kdkit list > FILE`; an error of print has no file name
            _drop_unwritable_output()
            return _fail(error, f"the output cannot be written: {error.strerror}; free some space, or use another disk")
        # The path in an argument is too long, for example, or in a folder that this user may not enter.
        if not error.filename or not any(str(error.filename) in arg for arg in args):
            raise
        return _fail(error, f"{shortened(str(error.filename))} cannot be read: {error.strerror}; pass another path")
    except click.ClickException as error:
        message = io.StringIO()  # click would print control characters in an argument, such as a file name
        error.show(message)
        echo(message.getvalue().rstrip("\n"), err=True)
        return error.exit_code
    except (KeyboardInterrupt, Terminated) as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # another signal would print a traceback when Python exits
        if is_first_process():
            echo("stopped", err=True)
        return 143 if isinstance(error, Terminated) else 130  # 128 + the number of the signal, as in shells


def _fail(error: Exception, message: str) -> int:
    """Print the message of an error, after its traceback if KDKIT_TRACEBACK is set, and return its exit code."""
    if shows_tracebacks():
        echo("".join(traceback.format_exception(error)), err=True)
    echo(f"error: {message}", err=True)
    return 2


def _drop_unwritable_output() -> None:
    """Drop buffered output that cannot be written; otherwise Python would print an error when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _process_group() -> AbstractContextManager[None]:
    """Return torchrun's process group as a context, so that only one process prints an error that several raise."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    from kdkit.engine.distributed.process_group import joined

    return joined()


def add_plugin_commands() -> None:
    """Load the plugins and add their commands. If a plugin fails, print a warning and leave out its commands."""
    with warnings.catch_warnings(record=True) as caught:
        # Other warnings, such as deprecations in packages that a plugin imports, keep their filters.
        warnings.simplefilter("always", PluginWarning)
        plugins = installed()
        for plugin, call_hook in plugins.implementations("register_commands"):
            before = dict(cli.commands)
            with plugins.errors_of(plugin, "add its commands"):
                call_hook(cli)
            replaced = [name for name, command in before.items() if cli.commands.get(name) is not command]
            if replaced:  # a script must not run another plugin's command
                cli.commands.update({name: before[name] for name in replaced})
                warnings.warn(
                    f"plugin {plugin!r} adds the command {', '.join(replaced)}, which exists; the earlier one is kept",
                    PluginWarning,
                    stacklevel=2,
                )
    for warning in caught:
        is_line = issubclass(warning.category, PluginWarning)
        source = "" if is_line else f"{warning.filename}, line {warning.lineno}: "
        echo(f"warning: {source}{warning.message}", err=True)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="kdkit")
def cli() -> None:
    """Knowledge distillation in PyTorch: check, run and compare recipes.

        kdkit new recipe lrhnet
        kdkit run lrhnet.py

    `kdkit COMMAND --help` lists the options of a command, and `kdkit run FILE --help` also those of a recipe.
    """


for command in (
    *(run, rerun, check, evaluate, sweep),
    *(classes, report, card, export),
    *(new, list_, doctor, completion, cache, bench),
):
    cli.add_command(command)
