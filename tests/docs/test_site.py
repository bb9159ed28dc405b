"""The site of the docs: its pages, its menu, its reference, and what its build refuses."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml

from kdkit.errors import DataError
from tests.helpers.command_line import ROOT
from tools.website import places, reference
from tools.website.checks import problems_of, problems_of_menu
from tools.website.links import links_of
from tools.website.places import DOCS, page_of
from tools.website.staging import stage

NAV = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]


@pytest.fixture(scope="module")
def written():
    """The pages of the reference by path."""
    return reference.pages()


@pytest.fixture(scope="module")
def folder(written, tmp_path_factory):
    """A folder with all pages."""
    path = tmp_path_factory.mktemp("site") / "docs"
    stage(path, written, reference.link_names)
    return path


def test_each_page_of_the_docs_is_in_the_menu_once(folder):
    pages = [path.relative_to(folder) for path in folder.rglob("*.md")]
    assert problems_of_menu(NAV, pages, DOCS) == []


def test_entries_without_pages_and_pages_without_entries_are_problems(folder):
    pages = [path.relative_to(folder) for path in folder.rglob("*.md")]
    nav = [{"Start": [*NAV[0]["Start"], "nothing.md", {"Data": "data.md"}]}, *NAV[1:]]
    assert problems_of_menu(nav, pages, DOCS) == [
        "mkdocs.yml: no page nothing.md; write it, or remove the line",
        "mkdocs.yml: data.md is in the menu twice",
    ]
    problems = problems_of_menu(NAV[1:], pages, DOCS)
    assert "concepts.md is not in the menu; add it to nav in mkdocs.yml" in problems


def test_links_lead_to_pages_of_the_site(folder):
    count = 0
    for path in folder.rglob("*.md"):
        for link in links_of(path.read_text("utf-8")):
            target = link.partition("#")[0]
            if target and not re.match(r"\w+:", target):
                assert (path.parent / target).is_file(), (path.relative_to(folder), link)
                count += 1
    assert count > 400


def test_blocks_of_code_have_no_word_after_their_language(folder):
    for path in folder.rglob("*.md"):  # others are no blocks in the site
        openings = re.findall(r"^```\w+(.*)$", path.read_text("utf-8"), flags=re.MULTILINE)
        assert all(re.fullmatch(r'( title="[^"]*")?', rest) for rest in openings), path.relative_to(folder)


def test_the_page_of_the_demo_is_built_by_its_own_tool(folder):
    assert (DOCS / "demo" / "index.html").is_file()
    assert (folder / "demo.md").is_file()
    assert not (folder / "demo").exists()  # it has neither a network nor a runtime


def test_files_outside_of_the_docs_are_pages_that_show_them(folder):
    text = (folder / "examples" / "hinton.py.md").read_text("utf-8")
    assert (ROOT / "examples" / "hinton.py").read_text("utf-8") in text
    assert "(examples/http_teacher.py.md)" in (folder / "teachers.md").read_text("utf-8")
    assert "benchmarks/index.md#every-loss-on-digits" in (folder / "losses.md").read_text("utf-8")
    assert page_of(ROOT / "README.md") == "index.md"
    assert page_of(ROOT / "examples") == "examples/index.md"


@pytest.mark.parametrize("link", ["../nothing.py", "../../outside.md", "../pyproject.toml", "no-page.md"])
def test_a_link_to_no_file_of_the_site_is_refused(link, tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    docs.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "README.md").touch()
    (docs / "page.md").write_text(f"`[code](not-a-link.md)` and [text]({link})")
    monkeypatch.setattr(places, "ROOT", tmp_path)
    monkeypatch.setattr(places, "DOCS", docs)
    with pytest.raises(DataError, match="mend the link"):
        stage(tmp_path / "build")


def test_the_reference_has_each_public_name(written):
    losses = (DOCS / "losses.md").read_text("utf-8")
    for module_name in reference.api.MODULES:
        module, page = importlib.import_module(module_name), written[f"reference/{module_name}.md"]
        for name in reference.api.public_names(module):
            assert f"\n## {name} {{ #{module_name}.{name} }}\n" in page
            is_listed = f"](reference/{module_name}.md#{module_name}.{name})" in written["api.md"]
            assert is_listed or f"`{name}`" in losses


def test_names_in_tables_are_links_to_the_reference(folder):
    link = "[`SoftTargets`](reference/kdkit.losses.md#kdkit.losses.SoftTargets)"
    assert f"\n| `soft_targets`<br>{link} |" in (folder / "losses.md").read_text("utf-8")
    assert "| `nothing` | `Net` |" in reference.link_names("\n| `nothing` | `Net` |\n", Path("page.md"))
    in_folder = reference.link_names("\n| `Net` | text |\n", Path("results/page.md"))
    assert in_folder == "\n| [`Net`](../reference/kdkit.md#kdkit.Net) | text |\n"


def test_each_public_name_and_member_has_a_docstring():
    for module_name in reference.api.MODULES:
        module = importlib.import_module(module_name)
        for name in reference.api.public_names(module):
            value = getattr(module, name)
            if inspect.isclass(value):
                assert vars(value).get("__doc__"), name
                assert not value.__doc__.startswith(f"{name}("), name  # the signature, as of a dataclass without one
                for member, definition in reference.api.members_of(value).items():
                    assert inspect.getdoc(getattr(definition, "__func__", definition)), f"{name}.{member}"
            elif inspect.isroutine(value):
                assert value.__doc__, name


def test_an_entry_has_signature_parameters_and_fields(written):
    page = written["reference/kdkit.losses.md"]
    entry = page[page.index("## CRD {") : page.index("## CTKD {")]
    assert "    negatives: int = 16384,\n" in entry
    assert "\n`memory_limit`\n:   in MB, for both memories" in entry
    assert "\nFormula\n:   `-1/N · Σ" in entry
    assert "\nSource\n:   Tian et al. 2020" in entry
    assert "[arXiv:1910.10699](https://arxiv.org/abs/1910.10699)" in entry
    net = written["reference/kdkit.md"]
    assert "\n`view`\n:   turns a batch into" in net
    assert "(batch, classes, \\*positions)" in net
    assert "parameters: int\n```\n\nThe number of elements of all parameters" in net  # a property
    assert "```python\nwith kdkit.tap(student.layer3) as feature:\n" in net  # code
    assert "[CheckError](kdkit.errors.md#kdkit.errors.CheckError)" in net
    projectors = written["reference/kdkit.losses.projectors.md"]
    assert "</div>\n\nRaises [RecipeError](kdkit.md#kdkit.RecipeError) for shapes that do not fit." in projectors
    assert "[`Data`](kdkit.md#kdkit.Data)" in written["reference/kdkit.plugins.hooks.md"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="gone.html">text</a>', "index.html has a dead link: gone.html"),
        ('<a href="other.html#gone">text</a>', "index.html links to an anchor that does not exist: other.html#gone"),
        ('<a href="#gone">text</a>', "index.html links to an anchor that does not exist: #gone"),
        ('<img src="gone.png">', "index.html has a dead link: gone.png"),
        ('<script src="https://cdn.example/a.js"></script>', "index.html loads https://cdn.example/a.js"),
        ('<link rel="stylesheet" href="//fonts.example/a.css">', "index.html loads //fonts.example/a.css"),
    ],
)
def test_the_check_of_the_built_site_finds(body, problem, tmp_path):
    (tmp_path / "other.html").write_text('<h1 id="top">Title</h1><a href="https://arxiv.org">may be followed</a>')
    (tmp_path / "index.html").write_text(f'<a href="other.html#top">text</a>{body}')
    (found,) = problems_of(tmp_path)
    assert found.startswith(problem)


def test_the_check_of_the_built_site_finds_styles_that_load_from_the_network(tmp_path):
    (tmp_path / "site.css").write_text("a { background: url('https://cdn.example/a.png') }")
    assert problems_of(tmp_path) == ["site.css loads from the network"]
