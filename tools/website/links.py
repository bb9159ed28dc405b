"""Find and change the links of pages, but not what only looks like one in code."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from kdkit.errors import DataError
from tools.website import places

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[`~]*\s*?$", re.MULTILINE | re.DOTALL)  # a block of code
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)  # in a line, between as many backticks on both sides
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_PICTURE = re.compile(r"!\[([^\]]*)\]\((\S+)-light\.(\w+)\)")


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of the links and images of a page."""
    for part, is_code in _parts(text):
        if not is_code:
            yield from (match[2] for match in _LINK.finditer(part))


def with_links(text: str, path: Path, needed: Callable[[Path], object]) -> str:
    """Return a page with links to pages of the site. `needed` is called with each file outside docs/ that is linked.

    path: of the file or folder that the page shows, from which its links lead. Raises DataError if a link leads to a
    file that does not exist, or to one that is not part of the site.
    """
    here = Path(places.page_of(path)).parent
    base = path if path.is_dir() else path.parent

    def changed(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):  # on the same page, or an address
            return match[0]
        linked = (base / target).resolve()
        if not places.is_in_site(linked):
            raise DataError(
                f"{path.relative_to(places.ROOT)} links to {match[2]}, which must be a file of the repository in docs/ "
                f"or one of {', '.join(places.SOURCES)}; mend the link"
            )
        if not linked.is_relative_to(places.DOCS):
            needed(linked)
        elif path.is_relative_to(places.DOCS):  # the folders of docs/ are those of the site
            return match[0]
        relative = "../" * len(here.parts) + places.page_of(linked)
        return f"{match[1]}{relative}{'#' + anchor if anchor else ''}{match[3]}"

    return "".join(part if is_code else _LINK.sub(changed, part) for part, is_code in _parts(text))


def with_pictures(text: str, page: Path) -> str:
    """Return a page with both forms of each picture that has a light and a dark one; the theme shows one of them."""

    def both(match: re.Match[str]) -> str:
        if not (page.parent / f"{match[2]}-dark.{match[3]}").is_file():
            return match[0]
        return "".join(f"![{match[1]}]({match[2]}-{theme}.{match[3]}#only-{theme})" for theme in ("light", "dark"))

    return _PICTURE.sub(both, text)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a page in order, and whether each is code."""
    end = 0
    for fence in _FENCE.finditer(text):
        yield from _split(_CODE, text[end : fence.start()])
        yield fence[0], True
        end = fence.end()
    yield from _split(_CODE, text[end:])


def _split(code: re.Pattern[str], text: str) -> Iterator[tuple[str, bool]]:
    end = 0
    for match in code.finditer(text):
        yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield text[end:], False
