"""Where the files of the repository are in the site."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
# Outside docs/, the files of these folders may be linked to, and the pages next to the README.
SOURCES = ("examples", "benchmarks", "reproductions", "tests", "tools", "kdkit", "kdkit_ecg")


def page_of(path: Path) -> str:
    """Return the page of the site that shows a file or folder of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path == ROOT / "README.md":
        return "index.md"
    name = path.relative_to(ROOT)
    if path.is_dir():
        return f"{name.as_posix()}/index.md"
    if path.name == "README.md":  # a code host shows it as that of its folder
        return name.with_name("index.md").as_posix()
    return f"{name.stem.lower()}.md" if path.suffix == ".md" else f"{name.as_posix()}.md"


def is_in_site(path: Path) -> bool:
    """Return whether the site has a page for this file or folder, if a page links to it."""
    if not path.exists() or not path.is_relative_to(ROOT):
        return False
    is_page = path.parent == ROOT and path.suffix == ".md"
    return is_page or path.is_relative_to(DOCS) or path.relative_to(ROOT).parts[0] in SOURCES
