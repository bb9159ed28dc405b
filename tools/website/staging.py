"""Write the folder that the site is built from: the pages of docs/, and pages about the files that they link to.

A page links to a file outside docs/, such as ../examples/hinton.py, by its path, so that the link works on a code host.
In the site such a file is a page too, and the link leads there.
"""

import ast
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.website import places
from tools.website.links import with_links, with_pictures

ASSETS = Path(__file__).parent / "assets"
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml"}


def stage(
    folder: Path,
    generated: Mapping[str, str] | None = None,
    finish: Callable[[str, Path], str] = lambda text, path: text,
) -> list[Path]:
    """Write all pages to a folder, which is emptied, and return them as paths in it.

    generated: texts of pages by path, in addition to those of docs/, or instead of one of them. finish: changes the
    text of a page of docs/, by its path. Raises DataError for a link to a file that is not part of the site.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # Pages are replaced below; pictures and tables stay. The page of docs/demo is built by a tool of its own.
    shutil.copytree(places.DOCS, folder, ignore=lambda parent, _: ["demo"] if Path(parent) == places.DOCS else [])
    shutil.copytree(ASSETS, folder / "assets" / "kdkit")
    # Files and folders that get a page. A page about one may link to further ones, which are appended.
    waiting = [places.ROOT / "CHANGELOG.md", places.ROOT / "CONTRIBUTING.md", places.ROOT / "benchmarks" / "README.md"]
    waiting = [path for path in [places.EXAMPLES, *waiting] if path.exists()]
    readme = places.ROOT / "README.md"
    for page in [readme, *sorted(places.DOCS.rglob("*.md"))]:
        name = Path(places.page_of(page))
        # A word for the tests of the docs, with which the block would not be code in the site.
        text = page.read_text("utf-8").replace("```python notest\n", "```python\n")
        text = with_links(text, page, waiting.append)
        _write(folder / name, finish(with_pictures(text, places.DOCS / name), name))
    finished = {readme}
    while waiting:
        path = waiting.pop()
        if path not in finished:
            finished.add(path)
            _write(folder / places.page_of(path), with_links(source_page(path), path, waiting.append))
    for page_name, text in (generated or {}).items():
        _write(folder / page_name, text)
    return sorted(path.relative_to(folder) for path in folder.rglob("*.md"))


def source_page(path: Path) -> str:
    """Return the page about a file or folder outside docs/, whose links lead from its own place."""
    name = path.relative_to(places.ROOT).as_posix()
    if path.suffix == ".md":
        return path.read_text("utf-8")
    if path.is_dir():
        return _folder_page(path, name)
    text = path.read_text("utf-8")
    # Four tildes, since docstrings have blocks in backticks.
    return f"# `{name}`\n\n{_summary(path)}\n\n~~~~{_LANGUAGES.get(path.suffix, 'text')}\n{text}~~~~\n"


def _folder_page(folder: Path, name: str) -> str:
    """Return a table of the files in a folder, with the first line of the docstring of each."""
    title, purpose = f"# `{name}`", _summary(folder / "__init__.py")
    if folder == places.EXAMPLES:
        title = "# Examples"
        purpose = (
            "Recipes are run by `kdkit run examples/NAME.py`, other programs by `python examples/NAME.py`. "
            "`kdkit new recipe` copies the ones that an installed kdkit brings along."
        )
    rows = []
    for path in sorted(folder.iterdir()):
        has_page = path.suffix in {".py", ".toml", ".md"} or (path.is_dir() and any(path.rglob("*.py")))
        if has_page and not path.name.startswith((".", "_")) and path.name != "runs":
            summary = _summary(path / "__init__.py" if path.is_dir() else path).replace("|", "\\|")
            rows.append(f"| [`{path.name}`]({path.name}) | {summary} |")
    return "\n".join([title, "", purpose, "", "| file | purpose |", "|---|---|", *rows]) + "\n"


def _summary(path: Path) -> str:
    """Return the first line of the docstring of a file; "" if it has none, or is no program."""
    if path.suffix != ".py" or not path.is_file():
        return ""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
