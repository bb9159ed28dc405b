"""Commands on a recipe file: the parameters of its recipe() become options of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kdkit.cli.group import with_blocks
from kdkit.cli.options import PATH
from kdkit.errors import KdkitError
from kdkit.plugins.parameters import Parameter
from kdkit.plugins.recipe_file import RecipeFile, read_recipe_file
from kdkit.plugins.recipe_outline import RecipeOutline, read_outline

_FILE = "kdkit.recipe_file"  # keys in click's `ctx.meta`
_ARGUMENTS = "kdkit.arguments"
_NONE = "none"  # the word for None


class RecipeCommand(click.Command):
    """A command with an argument FILE, whose recipe() parameters become options of the command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command_params = list(self.params)  # without the options of a recipe

    @property
    def recipe_params(self) -> list[click.Parameter]:
        """The options of the recipe that was parsed last."""
        return [param for param in self.params if param not in self.command_params]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the recipe file first, then parse the arguments with the options that it adds."""
        self.params = list(self.command_params)  # a test may call one command several times
        path = self._find_file(args)
        if path is not None and ctx.resilient_parsing:  # completion in a shell must not run the file
            outline = read_outline(Path(path))
            self.params += [] if outline is None else [self._make_option(option) for option in outline.parameters]
        elif path is not None:
            from kdkit.utils.console import Status  # late: `kdkit --help` does not need rich

            self._try_outline(ctx, args, path)
            with Status(enabled={"-q", "--quiet"}.isdisjoint(args)) as status:
                status.show(f"reading {path}")  # importing torch takes most of this time
                file = read_recipe_file(Path(path))
            ctx.meta[_FILE] = file
            rest = [arg for arg in args if arg != "--"]  # it precedes a file name that begins with a dash
            rest.remove(path)
            ctx.meta[_ARGUMENTS] = [str(file.path.resolve()), *rest]
            self._add_options(ctx, file)
        return super().parse_args(ctx, args)

    def _try_outline(self, ctx: click.Context, args: list[str], path: str) -> None:
        """Parse the arguments with the options that the text of the file shows, before it is imported.

        So `--help` and errors in options do not wait for torch, which recipe files import.
        """
        outline = read_outline(Path(path))
        if outline is None:
            return
        trial = click.Context(self, parent=ctx.parent, info_name=ctx.info_name)  # `ctx` is used for the final parse
        ctx.meta[_FILE] = outline  # shared by all contexts of a command
        self._add_options(ctx, outline)
        super().parse_args(trial, list(args))
        self.params = list(self.command_params)

    def _add_options(self, ctx: click.Context, file: RecipeFile | RecipeOutline) -> None:
        """Add the options of a recipe file. Raises KdkitError if one has the name of an option of a command."""
        self._require_free_names(ctx, file)
        self.params += [self._make_option(parameter) for parameter in file.parameters]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of the recipe before those of the command."""
        help_option = self.get_help_option(ctx)
        sections: dict[str, list[click.Parameter]] = {
            "Options of this recipe": self.recipe_params,
            "Options": [param for param in (*self.command_params, help_option) if isinstance(param, click.Option)],
        }
        for title, params in sections.items():
            rows = [row for param in params if (row := param.get_help_record(ctx)) is not None]  # None: hidden
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help text of the command, then the docstring of the recipe file."""
        super().format_help_text(ctx, formatter)
        file = ctx.meta.get(_FILE)
        if isinstance(file, RecipeFile | RecipeOutline) and file.description:
            formatter.write_paragraph()
            formatter.write(f"{file.path}:\n")
            with formatter.indentation():
                formatter.write_text(with_blocks(file.description))

    def _find_file(self, args: list[str]) -> str | None:
        """Return the argument that is the recipe file, before click knows all options; None if there is none."""
        options = [param for param in self.command_params if isinstance(param, click.Option)]
        with_value = {flag for option in options if not option.is_flag for flag in option.opts}
        positional, skip = [], False
        end = args.index("--") if "--" in args else len(args)  # nothing after it is an option
        for arg in args[:end]:
            if not skip and (arg == "-" or not arg.startswith("-")):
                positional.append(arg)
            skip = arg in with_value and not skip
        positional += args[end + 1 :]
        # A candidate may be the value of an option of the recipe, which is not known yet, so prefer existing files.
        candidates = [arg for arg in positional if arg.endswith(".py")] or positional
        existing = [arg for arg in candidates if Path(arg).is_file()]
        return next(iter(existing or candidates), None)

    def _require_free_names(self, ctx: click.Context, file: RecipeFile | RecipeOutline) -> None:
        """Raise KdkitError if a parameter of recipe() has the name of an option of any command on recipe files.

        All commands are considered, so that `kdkit run` does not reject a file that `kdkit check` accepts.
        """
        group = ctx.parent.command if ctx.parent is not None else None
        commands = group.commands.values() if isinstance(group, click.Group) else (self,)
        readers = [command for command in commands if isinstance(command, RecipeCommand)]
        params = [param for reader in readers for param in reader.command_params]
        taken = {flag.strip("-") for param in params for flag in param.opts} | {"help"}
        for parameter in file.parameters:
            if parameter.name.replace("_", "-") in taken:
                raise KdkitError(
                    f"{file.path}: parameter {parameter.name!r} of recipe() has the name of an option of "
                    f"{' or '.join(f'`kdkit {reader.name}`' for reader in readers)}; choose another name"
                )

    @staticmethod
    def _make_option(parameter: Parameter) -> click.Option:
        """Return the option for a parameter of recipe()."""
        name = parameter.name.replace("_", "-")
        flags = f"--{name}/--no-{name}" if parameter.type is bool else f"--{name}"
        default = {} if parameter.required else {"default": parameter.default}  # click treats None as a default
        return click.Option(
            [flags, parameter.name],
            type=_value_type(parameter),
            required=parameter.required,
            multiple=parameter.multiple,
            help=parameter.help or None,
            show_default=parameter.default is not None,
            **default,
        )


class RunCommand(RecipeCommand):
    """A command on a recipe file, or on the folder of a run to resume: `--resume FOLDER` instead of FILE."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace the folder of a run by its recorded arguments, followed by the other arguments."""
        if "--resume" in args and not ctx.resilient_parsing:
            position = args.index("--resume") + 1
            folder, rest = "".join(args[position : position + 1]), [*args[:position], *args[position + 1 :]]
            file = folder if folder.endswith(".py") else self._find_file(rest)
            # The value of an option of the recipe, which is not known yet, may look like a file.
            if file is None or (not file.endswith(".py") and folder and Path(folder).is_dir()):
                if not folder or folder.startswith("-"):
                    raise click.UsageError("--resume needs the folder of a run: kdkit run --resume FOLDER", ctx)
                from kdkit.cli.repeat import arguments_to_resume

                # If an option occurs twice, its last value counts.
                args = [*arguments_to_resume(Path(folder), trust="--trust" in rest), *rest, "--out", folder]
        return super().parse_args(ctx, args)


class SweepCommand(RecipeCommand):
    """A command whose recipe options take several values, with commas between them or by repeating the option.

    The value of an option is a tuple, which is empty if the option is missing.
    """

    @staticmethod
    def _make_option(parameter: Parameter) -> click.Option:
        """Return the option for a parameter of recipe()."""

        def convert(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[Any, ...]:
            """Return the values of all occurrences of the option."""
            convert_one = click.types.convert_type(_value_type(parameter))
            if parameter.multiple:  # recipe() takes a tuple, so each occurrence is a tuple
                word_lists = [_split_at_commas(text, option) for text in texts]
                return tuple(
                    _recipe_value(parameter, tuple(convert_one(word, option, ctx) for word in words))
                    for words in word_lists
                )
            words = _split_at_commas(texts[0], option) if len(texts) == 1 else texts
            return tuple(convert_one(word, option, ctx) for word in words)

        default = "" if parameter.default is None else f"[default: {parameter.default}]"
        return click.Option(
            [f"--{parameter.name.replace('_', '-')}", parameter.name],
            multiple=True,
            callback=convert,
            required=parameter.required,
            metavar="VALUE,..." if not parameter.choices else f"[{'|'.join(map(str, parameter.choices))}],...",
            help="  ".join(filter(None, [parameter.help, default])) or None,
        )


def _split_at_commas(text: str, option: click.Parameter) -> list[str]:
    """Return the words between the commas of a value. Raises BadParameter if one is empty."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise click.BadParameter(f"expected values separated by commas, such as 2,4,8; got {text!r}", param=option)
    return words


def file_of(ctx: click.Context) -> RecipeFile:
    """Return the recipe file that a RecipeCommand was called on."""
    file: RecipeFile = ctx.meta[_FILE]
    return file


def arguments_of(ctx: click.Context) -> list[str]:
    """Return the arguments of a RecipeCommand, with the path of its recipe file as the first one."""
    arguments: list[str] = ctx.meta[_ARGUMENTS]
    return arguments


def recipe_options(file: RecipeFile, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command that are parameters of recipe(), with values of the types that it takes."""
    return {parameter.name: _recipe_value(parameter, options[parameter.name]) for parameter in file.parameters}


def default_options(file: RecipeFile, ctx: click.Context) -> dict[str, Any]:
    """Return the default options that `kdkit run` passes to recipe(), without required ones."""
    values = {}
    for parameter in file.parameters:
        if not parameter.required:
            option = RecipeCommand._make_option(parameter)
            values[parameter.name] = _recipe_value(parameter, option.type_cast_value(ctx, option.get_default(ctx)))
    return values


def run_arguments(file: RecipeFile, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments that make `kdkit run` pass these options to recipe()."""
    arguments = []
    for parameter in file.parameters:
        if parameter.name not in options:
            continue
        value, name = options[parameter.name], parameter.name.replace("_", "-")
        for item in value if parameter.multiple and value is not None else (value,):
            if parameter.type is bool:
                arguments.append(f"--{name}" if item else f"--no-{name}")
            elif isinstance(item, Path) and not item.is_absolute():
                arguments.append(f"--{name}=./{item}")  # a file may be named `none`
            else:
                arguments.append(f"--{name}={_NONE if item is None else item}")
    return arguments


def _recipe_value(parameter: Parameter, value: Any) -> Any:
    """Return the value of an option of a command for recipe(). Raises UsageError if it mixes values and `none`."""
    if not parameter.multiple:
        return value
    if len(value) > 1 and None in value:
        raise click.UsageError(f"--{parameter.name.replace('_', '-')} takes either {_NONE} or values; got both")
    # click passes () for a missing option, but the default of recipe() may be None.
    return None if value == (None,) or (not value and parameter.default is None) else tuple(value)


def _value_type(parameter: Parameter) -> Any:
    """Return the type of one value of a parameter, as click takes it."""
    kind: Any = PATH if parameter.type is Path else parameter.type
    if parameter.choices:
        kind = click.Choice(parameter.choices)
    # A flag has no value, and one of the choices may be named `none`.
    if not parameter.optional or parameter.type is bool or _NONE in parameter.choices:
        return kind
    return _OptionalType(click.types.convert_type(kind))


class _OptionalType(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.3
    """Values of a type, and `none` for None."""

    def __init__(self, kind: "click.ParamType[Any]") -> None:
        self.kind, self.name = kind, kind.name

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the placeholder for the value in help texts."""
        return f"{self.kind.get_metavar(param, ctx) or self.name.upper()}|{_NONE}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return None for `none`, and otherwise the value of the type."""
        return None if value in (_NONE, "None") else self.kind.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the completions of the type."""
        return self.kind.shell_complete(ctx, param, incomplete)
