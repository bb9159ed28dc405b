"""Resume or repeat a run from its folder alone, with the recorded recipe file and arguments."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from kdkit.cli.recipe_command import RecipeCommand, file_of, recipe_options
from kdkit.engine.storage.run_files import RECORD
from kdkit.engine.storage.run_folder import how_to_resume, read_record
from kdkit.errors import RunFolderError, shortened
from kdkit.nets.weights import runs_in
from kdkit.plugins.recipe_file import RecipeFile
from kdkit.utils.files import write_output
from kdkit.utils.printable import echo, is_first_process
from kdkit.utils.read_json import items
from kdkit.utils.sealed import explain_unreadable_file, json_parts, read_sealed_json
from kdkit.utils.signing import is_signed, sign

COMMAND = "command.json"  # in a folder of several runs that one command started
_COPY = "recipe.py"  # the copy of the recipe file in the run folder
_OF_RESUMING = {"--resume": 0, "--force": 0, "--trust": 0}  # options that hold for one command, as in `without_options`


def command_record(file: Path, arguments: list[str]) -> dict[str, Any]:
    """Return the record of a `kdkit run`, signed, so that the run can be repeated without `--trust`.

    arguments: of `kdkit run`, starting with the recipe file.
    """
    command = {
        "arguments": arguments,
        "folder": str(Path.cwd()),
        "recipe_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    return {**command, "signature": sign(_signed_text(command))}


def save_command(folder: Path, command: Mapping[str, Any], recipe: bytes) -> None:
    """Record the command of several runs in their folder, with a copy of the recipe file, so that it can be resumed.

    It replaces an earlier command, which may have other seeds. recipe: the content of its file. Raises KdkitError if
    they cannot be written.
    """
    write_output(folder / _COPY, recipe, option="--out FOLDER")
    write_output(folder / COMMAND, *json_parts({"command": dict(command)}), option="--out FOLDER")


def without_options(arguments: list[str], options: Mapping[str, int]) -> list[str]:
    """Return the arguments of a command without some options. options: removed, with the number of their values."""
    remaining: list[str] = []
    skipped = 0
    for argument in arguments:
        if skipped:
            skipped -= 1
        elif argument.split("=", 1)[0] not in options:
            remaining.append(argument)
        elif "=" not in argument:
            skipped = options[argument]
    return remaining


def arguments_to_resume(run: Path, *, trust: bool) -> list[str]:
    """Return the recorded arguments of a run, or of several runs of one command; see `recorded_arguments`."""
    if not any(_is_file(run / file) for file in (COMMAND, RECORD)) and runs_in(run):  # of a sweep
        raise RunFolderError(
            f"{run} holds several runs; start the command or script that wrote them again, which skips finished runs "
            "and resumes the others; a run that a command started can also be resumed alone: kdkit run --resume "
            f"{shlex.quote(str(run / runs_in(run)[0]))}"
        )
    return recorded_arguments(run, trust=trust)


def recorded_arguments(run: Path, *, trust: bool) -> list[str]:
    """Return the arguments of the `kdkit run` that wrote a run folder, and print the path of its recipe file.

    They are without `--resume`, `--force` and `--trust`, which hold for a single command.
    trust: accept a recipe file that has changed, is a copy, or was not recorded by this user on this machine. If False,
    such a file raises RunFolderError. Also raises RunFolderError if the run was not started by `kdkit run`, or was
    started in another folder.
    """
    if _is_file(run / COMMAND):  # a folder of several runs
        with explain_unreadable_file(run / COMMAND, "start the command that wrote these runs again"):
            record = read_sealed_json(run / COMMAND)
    else:
        record = read_record(run)
    command = record.get("command")
    if not isinstance(command, Mapping):
        raise RunFolderError(
            f"the run in {run} was started from Python, so it can be repeated only there; to resume it: "
            f"{how_to_resume(run, record)}"
        )
    texts = [command.get("folder"), command.get("recipe_sha256"), *items(command, "arguments")]
    if len(texts) < 3 or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise RunFolderError(
            f"{run / RECORD} does not hold the command that started the run, but {shortened(command, most=200)}; "
            "resume it with its recipe file: kdkit run FILE --out FOLDER --resume"
        )
    file, *arguments = texts[2:]
    recipe, reason = Path(file), ""
    if not _is_file(recipe):
        recipe, reason = run / _COPY, f"it is a copy in the run folder, and {file} is no longer there"
    elif not is_signed(_signed_text(command), command.get("signature")):  # first: an untrusted path is not read
        reason = "this run was not started by you on this machine"
        if command.get("signature") is None:
            reason += ", or it is not signed, because no key could be saved in ~/.local/state/kdkit (XDG_STATE_HOME)"
    elif hashlib.sha256(recipe.read_bytes()).hexdigest() != command["recipe_sha256"]:
        reason = "it has changed since the run was started"
    elif str(Path.cwd()) != command["folder"]:
        raise RunFolderError(
            f"the run in {run} was started in the folder {command['folder']}, and its recipe may look for files "
            "there; start this command in that folder"
        )
    if reason and not trust:
        raise RunFolderError(
            f"the run in {run} would execute the recipe file {recipe}, but {reason}; read the file, and add --trust if "
            "you trust it"
        )
    if is_first_process():
        echo(f"recipe file: {recipe}", err=True)
    return [str(recipe), *without_options(arguments, _OF_RESUMING)]


def recorded_recipe(
    run: Path, ctx: click.Context, options: Sequence[str] = (), *, trust: bool
) -> tuple[RecipeFile, dict[str, Any], int]:
    """Return a run's recipe file, the options of its recipe(), and its seed; see `recorded_arguments`.

    ctx: the context of any command. options: its arguments that are options of the recipe, and override the recorded
    ones. Raises NoSuchOption for others.
    """
    if not isinstance(read_record(run).get("command"), Mapping):
        raise RunFolderError(
            f"the run in {run} was started from Python; export it there: kdkit.export_net(recipe, {str(run)!r})"
        )
    arguments = recorded_arguments(run, trust=trust)
    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    run_command = root.commands["run"]
    assert isinstance(run_command, RecipeCommand)
    names, unknown = [text.partition("=")[0] for text in options], None
    try:
        started = run_command.make_context(str(ctx.command_path), [*arguments, *options])
    except click.NoSuchOption as error:
        unknown = error.option_name
        if unknown not in names:
            raise RunFolderError(
                f"the run in {run} was started with {unknown}, but {arguments[0]} has no such option now"
            ) from error
    flags = [flag for param in run_command.recipe_params for flag in (*param.opts, *param.secondary_opts)]
    # An option of `kdkit run`, such as another seed, would not be one of this command.
    unknown = unknown or next((name for name in names if name.startswith("--") and name not in flags), None)
    if unknown is not None:
        own = [flag for param in ctx.command.params for flag in param.opts]
        raise click.NoSuchOption(unknown, possibilities=get_close_matches(unknown, [*flags, *own]), ctx=ctx)
    file = file_of(started)
    return file, recipe_options(file, started.params), int(started.params["seed"])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example, the name is too long, or the user may not enter the folder
        return False


def _signed_text(command: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in command.items() if key != "signature"}, sort_keys=True)
