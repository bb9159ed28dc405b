"""A command on a recipe file, whose recipe() parameters become options of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kdkit.errors import KdkitError
from kdkit.plugins.recipe_file import Parameter, RecipeFile, read_recipe_file

_FILE = "kdkit.recipe_file"


class RecipeCommand(click.Command):
    """A command on a recipe file, whose recipe() parameters become options of the command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own = list(self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the file first, then everything with the options that it brings."""
        self.params = list(self._own)
        path = self._file(args)
        if path is not None:
            file = read_recipe_file(Path(path))
            ctx.meta[_FILE] = file
            self.params += [_option(each) for each in self._brought(ctx, file)]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the recipe's options before the command's."""
        brought = [each for each in self.params if each not in self._own]
        for title, params in (("Options of this recipe", brought), ("Options", [*self._own, *self._help(ctx)])):
            rows = [row for each in params if (row := each.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Say what the command does, then what the recipe file says of itself."""
        super().format_help_text(ctx, formatter)
        file = ctx.meta.get(_FILE)
        if isinstance(file, RecipeFile) and file.text:
            formatter.write_paragraph()
            formatter.write(f"{file.path}:\n")
            with formatter.indentation():
                for line in file.text.splitlines():
                    formatter.write(f"  {line}\n" if line else "\n")

    def _help(self, ctx: click.Context) -> list[click.Parameter]:
        option = self.get_help_option(ctx)
        return [] if option is None else [option]

    def _file(self, args: list[str]) -> str | None:
        valued = {
            name for each in self._own if isinstance(each, click.Option) and not each.is_flag for name in each.opts
        }
        positional, skip = [], False
        for arg in args:
            if not skip and not arg.startswith("-"):
                positional.append(arg)
            skip = arg in valued and not skip
        files = [each for each in positional if each.endswith(".py")] or positional
        there = [each for each in files if Path(each).is_file()]  # of several, one may be the value of an option
        return next(iter(there or files), None)

    def _brought(self, ctx: click.Context, file: RecipeFile) -> tuple[Parameter, ...]:
        group = ctx.parent.command if ctx.parent is not None else None
        commands = group.commands.values() if isinstance(group, click.Group) else (self,)
        readers = [each for each in commands if isinstance(each, RecipeCommand)]
        taken = {each.strip("-") for reader in readers for one in reader._own for each in one.opts} | {"help"}
        for each in file.parameters:
            if each.name.replace("_", "-") in taken:
                raise KdkitError(
                    f"{file.path}: parameter {each.name!r} of recipe() has the name of an option of "
                    f"{' or '.join(f'`kdkit {reader.name}`' for reader in readers)}; choose another"
                )
        return file.parameters


def file_of(ctx: click.Context) -> RecipeFile:
    """Return the recipe file that a command was called on."""
    file: RecipeFile = ctx.meta[_FILE]
    return file


def chosen(file: RecipeFile, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command that are the recipe's, with values of the types that recipe() takes."""
    return {each.name: _value(each, options[each.name]) for each in file.parameters}


def _value(parameter: Parameter, value: Any) -> Any:
    if not parameter.several:
        return value
    return tuple(value) if value or parameter.default is not None else None  # click gives () for what is not there


def _option(parameter: Parameter) -> click.Option:
    name = parameter.name.replace("_", "-")
    flags = f"--{name}/--no-{name}" if parameter.type is bool else f"--{name}"
    kind: Any = parameter.type
    if parameter.choices:
        kind = click.Choice([str(each) for each in parameter.choices])
        if not isinstance(parameter.choices[0], str):
            kind = _Literal(parameter.choices)
    elif parameter.type is Path:
        kind = click.Path(path_type=Path)
    default = {} if parameter.required else {"default": parameter.default}  # to click, None is a default too
    return click.Option(
        [flags, parameter.name],
        type=kind,
        required=parameter.required,
        multiple=parameter.several,
        help=parameter.help or None,
        show_default=parameter.default is not None,
        **default,
    )


class _Literal(click.ParamType[Any]):
    """One of a few values that are no strings, such as the lead counts 12, 6 and 3."""

    name = "choice"

    def __init__(self, choices: tuple[Any, ...]) -> None:
        self.choices = {str(each): each for each in choices}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if str(value) not in self.choices:
            self.fail(f"{value!r} is not one of {', '.join(self.choices)}", param, ctx)
        return self.choices[str(value)]
