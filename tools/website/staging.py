"""Write the folder that the site is built from: the pages of docs/, and pages about the files that they link to.

A page links to a file outside docs/, such as ../examples/hinton.py, by its path, so that the link works on a code host.
In the site such a file is a page too, and the link leads there.
"""

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kdkit.errors import DataError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Outside docs/, the files of these folders may be linked to. The examples have a page with all of them.
SOURCES = ("examples", "benchmarks", "reproductions", "tests", "tools", "kdkit", "kdkit_ecg")
EXAMPLES = ROOT / "examples"

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[`~]*\s*?$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_PICTURE = re.compile(r"!\[([^\]]*)\]\((\S+)-light\.(\w+)\)")


def stage(folder: Path, generated: dict[str, str] | None = None) -> list[Path]:
    """Write all pages to a folder, which is emptied, and return those that were written, as paths in it.

    generated: texts of pages by path, in addition to those of docs/, or instead of one of them. Raises DataError if a
    link leads to a file that does not exist, or to one that is not part of the site.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, folder)
    shutil.copytree(Path(__file__).parent / "assets", folder / "assets" / "kdkit")
    # A queue, since a page about a file may link to further files.
    waiting: list[Path] = [ROOT / "README.md", EXAMPLES]
    finished: set[Path] = {ROOT / "README.md"}
    for page in sorted(DOCS.rglob("*.md")):
        text = _with_pictures(_with_links(page.read_text("utf-8"), page, waiting.append), page)
        _write(folder / page.relative_to(DOCS), text)
    waiting += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    while waiting:
        path = waiting.pop()
        if path not in finished:
            finished.add(path)
            _write(folder / page_of(path), _with_links(_source_page(path), path, waiting.append))
    for name, text in (generated or {}).items():
        _write(folder / name, text)
    return sorted(path.relative_to(folder) for path in folder.rglob("*.md"))


def page_of(path: Path) -> str:
    """Return the page of the site that shows a file or folder of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path == ROOT / "README.md":  # the page of the site that says the same
        return "index.md"
    name = path.relative_to(ROOT)
    if path.is_dir():
        return f"{name.as_posix()}/index.md"
    if path.name == "README.md":
        return name.with_name("index.md").as_posix()
    if path.suffix == ".md":
        return f"{name.stem.lower()}.md"
    return f"{name.as_posix()}.md"


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of the links and images of a page, without those in code."""
    for part, is_code in _parts(text):
        if not is_code:
            yield from (match[2] for match in _LINK.finditer(part))


def _with_links(text: str, path: Path, needed: Callable[[Path], object]) -> str:
    """Return a page with links to pages of the site. `needed` is called with each file outside docs/ that is linked."""
    here = Path(page_of(path)).parent
    base = path if path.is_dir() else path.parent

    def changed(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        linked = (base / target).resolve()
        if not linked.exists() or not _is_of_site(linked):
            raise DataError(
                f"{path.relative_to(ROOT)} links to {match[2]}, which must be a file of the repository in docs/ or one "
                f"of {', '.join(SOURCES)}; mend the link"
            )
        if path.is_relative_to(DOCS) and linked.is_relative_to(DOCS):
            return match[0]
        if not linked.is_relative_to(DOCS):
            needed(linked)
        page = Path(page_of(linked))
        relative = "../" * len(here.parts) + page.as_posix()
        return f"{match[1]}{relative}{'#' + anchor if anchor else ''}{match[3]}"

    return "".join(part if is_code else _LINK.sub(changed, part) for part, is_code in _parts(text))


def _with_pictures(text: str, page: Path) -> str:
    """Return a page with both forms of each picture that has a light and a dark one; the theme shows one of them."""

    def both(match: re.Match[str]) -> str:
        if not (page.parent / f"{match[2]}-dark.{match[3]}").is_file():
            return match[0]
        return "".join(f"![{match[1]}]({match[2]}-{theme}.{match[3]}#only-{theme})" for theme in ("light", "dark"))

    return _PICTURE.sub(both, text)


def _is_of_site(path: Path) -> bool:
    if not path.is_relative_to(ROOT):
        return False
    top = path.relative_to(ROOT).parts[0]
    return path.is_relative_to(DOCS) or top in SOURCES or (path.parent == ROOT and path.suffix == ".md")


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a page in order, and whether each is code."""
    end = 0
    for fence in _FENCE.finditer(text):
        yield from _inline_parts(text[end : fence.start()])
        yield fence[0], True
        end = fence.end()
    yield from _inline_parts(text[end:])


def _inline_parts(text: str) -> Iterator[tuple[str, bool]]:
    end = 0
    for code in _CODE.finditer(text):
        yield text[end : code.start()], False
        yield code[0], True
        end = code.end()
    yield text[end:], False


def _source_page(path: Path) -> str:
    """Return the page about a file or folder outside docs/, with links from its own place."""
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".md":
        return path.read_text("utf-8")
    if path.is_dir():
        title = "Examples" if path == EXAMPLES else f"`{name}`"
        rows = [_row(child, path) for child in sorted(path.iterdir()) if _is_shown(child)]
        return "\n".join([f"# {title}\n", _purpose(path), "| file | purpose |", "|---|---|", *rows]) + "\n"
    text = path.read_text("utf-8")
    language = {".py": "python", ".toml": "toml", ".yml": "yaml"}.get(path.suffix, "text")
    docstring = ast.get_docstring(ast.parse(text)) if path.suffix == ".py" else None
    summary = f"{docstring.splitlines()[0]}\n\n" if docstring else ""
    fence = "~~~~"
    return f"# `{name}`\n\n{summary}{fence}{language}\n{text}{fence}\n"


def _is_shown(path: Path) -> bool:
    if path.name.startswith((".", "_")) or path.name == "runs":
        return False
    return path.suffix in {".py", ".toml", ".md"} or (path.is_dir() and any(path.rglob("*.py")))


def _row(path: Path, folder: Path) -> str:
    return f"| [`{path.name}`]({path.relative_to(folder).as_posix()}) | {_summary(path)} |"


def _summary(path: Path) -> str:
    """Return the first line of the docstring of a file, or of the first file of a package."""
    files = [path] if path.suffix == ".py" else [path / "__init__.py"]
    text = files[0].read_text("utf-8") if files[0].is_file() else ""
    docstring = ast.get_docstring(ast.parse(text)) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


def _purpose(folder: Path) -> str:
    if folder == EXAMPLES:
        return (
            "Recipes are run by `kdkit run examples/NAME.py`, other programs by `python examples/NAME.py`.\n"
            "`kdkit new recipe` copies the ones that an installed kdkit brings along.\n"
        )
    return f"{_summary(folder)}\n" if _summary(folder) else ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
