"""Check the pages of the built site: their links, what they load, and the menu."""

import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The attributes by which a page loads something; a link is followed by a click only.
_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


def problems_of(site: Path) -> list[str]:
    """Return the dead links of a site, and what its pages load from the network, a line each."""
    pages = {path: _Page.read(path) for path in sorted(site.rglob("*.html"))}
    problems = [problem for path, page in pages.items() for problem in _problems_of_page(site, path, page, pages)]
    for sheet in sorted(site.rglob("*.css")):
        if re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text("utf-8")):
            problems.append(f"{sheet.relative_to(site)} loads from the network")
    return problems


def problems_of_menu(nav: object, pages: Sequence[Path], docs: Path) -> list[str]:
    """Return the entries of the menu without a page, and the pages of the docs and the reference without an entry.

    Pages about files of the repository need none, since other pages link to them.
    """
    entries = list(_entries(nav))
    existing = {page.as_posix() for page in pages}
    written = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    written |= {page for page in existing if page.startswith("reference/")}
    return [
        *(f"mkdocs.yml: no page {entry}; write it, or remove the line" for entry in entries if entry not in existing),
        *(f"{page} is not in the menu; add it to nav in mkdocs.yml" for page in sorted(written - {*entries})),
        *(f"mkdocs.yml: {entry} is in the menu twice" for entry in sorted({*entries}) if entries.count(entry) > 1),
    ]


class _Page(HTMLParser):
    """The targets of a page's links, what it loads, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> "_Page":
        page = cls()
        page.feed(path.read_text("utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect", "modulepreload"):
            self.loaded.append(values.get("href", ""))
        elif tag in _LOADING and _LOADING[tag] in values:
            self.loaded.append(values[_LOADING[tag]])


def _problems_of_page(site: Path, path: Path, page: _Page, pages: dict[Path, _Page]) -> Iterator[str]:
    name = path.relative_to(site)
    for target in [*page.links, *page.loaded]:
        parts = urlsplit(target)
        if parts.scheme == "data":
            continue
        if parts.scheme or parts.netloc:
            if target in page.loaded:
                yield f"{name} loads {target} from the network"
            continue
        # 404.html is shown for addresses in any folder, so its links begin at the root of the site.
        base = site if parts.path.startswith("/") else path.parent
        linked = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
        linked = linked / "index.html" if linked.is_dir() else linked
        if not linked.is_file():
            yield f"{name} has a dead link: {target}"
        elif parts.fragment and linked in pages and unquote(parts.fragment) not in pages[linked].anchors:
            yield f"{name} links to an anchor that does not exist: {target}"


def _entries(nav: object) -> Iterator[str]:
    """Yield the pages of a menu, which is a list of pages, and of dicts from a title to a page or to a menu."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for value in nav.values():
            yield from _entries(value)
    elif isinstance(nav, list):
        for value in nav:
            yield from _entries(value)
