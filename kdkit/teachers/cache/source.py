"""Find the source text of a function, the values that it refers to by name, and the package that it comes from."""

import ast
import builtins
import functools
import importlib
import importlib.metadata
import linecache
import os
import sys
import sysconfig
import types
from collections import ChainMap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from kdkit.errors import CacheError

# These look up values by names that are computed at run time, so the source text does not show which values they are.
DYNAMIC = {
    id(getattr(module, name)): name if module is builtins else f"{module.__name__}.{name}"
    for module, names in {
        os: ("environ", "environb", "getenv", "getenvb"),
        sys: ("modules",),
        importlib: ("import_module",),
        builtins: ("globals", "eval", "exec", "__import__"),
    }.items()
    for name in names
    if hasattr(module, name)  # Windows has no environb
}


def source_of(function: types.FunctionType, path: str) -> tuple[str, ast.stmt | ast.expr]:
    """Return the source and the syntax tree of a user-defined function. Raises CacheError if they cannot be found."""
    code = function.__code__
    linecache.checkcache(code.co_filename)  # the file may have changed since it was read
    lines = linecache.getlines(code.co_filename, function.__globals__)
    name = f"{path}: the source of {function.__qualname__}"
    functions, compiled = _parse("".join(lines))
    trees = functions.get((code.co_firstlineno, code.co_name), [])
    is_current = code in compiled and bool(trees)
    # Code run by `exec` is in the file "<string>". Since Python 3.13, the source of `python -c` is too.
    if not lines or (not is_current and code.co_filename.startswith("<")):
        raise CacheError(f"{name} cannot be read; define it in a file")
    if not is_current:
        raise CacheError(f"{name} is not the code that runs; if {code.co_filename} was edited, restart Python")
    if len(trees) > 1:
        raise CacheError(f"{name} is one of several lambdas that start on one line; put each on its own line")
    return "".join(lines[code.co_firstlineno - 1 : trees[0].end_lineno]), trees[0]


def references(function: types.FunctionType, tree: ast.AST, closure: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every global and closure variable that a function refers to.

    For an attribute of a user-defined module, the attribute is yielded. The module itself is yielded only if the
    function uses it as a value, as in `helper(module)`.
    """
    scope = ChainMap(closure, function.__globals__, vars(builtins))
    # The compiled code tells which names are globals: other names in the tree may be local variables.
    names = {name for code in _nested(function.__code__) for name in code.co_names} | closure.keys()
    done: set[int] = set()
    for node in ast.walk(tree):  # breadth first: `a.b.c` comes before its parts `a.b` and `a`
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imported_modules(node, function)
        attributes: list[str] = []
        root = node
        while isinstance(root, ast.Attribute) and id(root) not in done:
            done.add(id(root))
            attributes.insert(0, root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or id(root) in done or root.id not in names or root.id == "__name__":
            continue
        done.add(id(root))
        dotted, value = root.id, scope.get(root.id)
        while attributes and isinstance(value, types.ModuleType):
            name = attributes.pop(0)
            if not is_user_module(value) and id(vars(value).get(name)) not in DYNAMIC:
                break  # an installed package is keyed by its version
            submodule = sys.modules.get(f"{value.__name__}.{name}")  # may not be an attribute of its package
            dotted, value = f"{dotted}.{name}", getattr(value, name, submodule)
        yield dotted, value


def is_user_module(value: Any) -> TypeGuard[types.ModuleType]:
    """Whether a value is a module that is not part of an installed package."""
    return isinstance(value, types.ModuleType) and package_of(value.__name__) is None


@functools.cache
def package_of(module: str) -> str | None:
    """Return the name and version of the package that has a module, or of Python; None if it is user-defined."""
    top = module.partition(".")[0]
    loaded = [sys.modules[name] for name in (module, top) if name in sys.modules]  # a recipe file may not be there
    files = [loaded_module.__file__ for loaded_module in loaded if getattr(loaded_module, "__file__", None)]
    if files:
        return package_of_file(str(files[0]))
    return _python() if loaded and top in sys.stdlib_module_names and top != "__main__" else None  # written in C


@functools.cache
def package_of_file(file: str) -> str | None:
    """Return the name and version of the package that has a file, or of Python; None if it is user-defined."""
    parts = Path(file).parts
    folder = next((name for name in ("site-packages", "dist-packages") if name in parts), None)
    if folder is None:
        if package := _package_on_path(Path(file)):
            return package
        standard = file.startswith("<frozen ") or Path(sysconfig.get_path("stdlib")) in Path(file).parents
        return _python() if standard else None
    top = parts[parts.index(folder) + 1].partition(".")[0]
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:  # the package and its modules have different names
        return f"{top} {Path(file).stat().st_size} {Path(file).stat().st_mtime_ns}"


def _package_on_path(file: Path) -> str | None:
    """Return the installed package of a file in another folder of `sys.path`, as of `pip install --target`.

    An editable package is user code: its metadata is not in the folder of its files.
    """
    for folder in file.parents:
        if str(folder) in sys.path:
            return _packages_in(folder).get(file.relative_to(folder).parts[0].partition(".")[0])
    return None


@functools.cache
def _packages_in(folder: Path) -> dict[str, str]:
    """Return the name and version of the packages that were installed into a folder, by top-level module."""
    packages = {}
    for metadata in folder.glob("*.dist-info"):
        distribution = importlib.metadata.Distribution.at(metadata)
        tops = {file.parts[0].partition(".")[0] for file in distribution.files or () if file.suffix != ".pth"}
        packages.update(dict.fromkeys(tops, f"{distribution.name} {distribution.version}"))
    return packages


def _python() -> str:
    return f"python {sys.version_info.major}.{sys.version_info.minor}"


@functools.lru_cache(maxsize=64)
def _parse(text: str) -> tuple[dict[tuple[int, str], list[ast.stmt | ast.expr]], set[types.CodeType]]:
    """Return the functions of a file by first line and name, and all code objects that the text compiles to."""
    functions: dict[tuple[int, str], list[ast.stmt | ast.expr]] = {}
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a notebook, or a page with code blocks
        return {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(part.lineno for part in (*node.decorator_list, node))  # the first line of the code object
            functions.setdefault((first, node.name), []).append(node)
        elif isinstance(node, ast.Lambda):
            functions.setdefault((node.lineno, "<lambda>"), []).append(node)
    return functions, set(_nested(compile(tree, "", "exec", dont_inherit=True)))


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _imported_modules(node: ast.Import | ast.ImportFrom, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the modules that an `import` inside a function loads. Raises CacheError if they are user-defined."""
    if isinstance(node, ast.ImportFrom):
        names = ["." * node.level + (node.module or "")]
    else:
        names = [alias.name for alias in node.names]
    for name in names:
        # Names that are bound inside a function are not followed, so the modules with DYNAMIC members are refused too.
        if name.partition(".")[0] in ("", "os", "sys", "importlib", "builtins") or package_of(name) is None:
            raise CacheError(
                f"{function.__qualname__} imports {name} inside a function; import it at the top of the file"
            )
        yield name, sys.modules.get(name)
