"""Tests of `kdkit new`: the recipes and the plugin that it writes, which are the examples of the repository."""

import subprocess

import pytest

from kdkit import hookimpl
from kdkit.cli.new import PLUGIN, recipe_templates
from kdkit.errors import PluginError
from kdkit.plugins.manager import Plugins, installed
from tests.helpers.command_line import ROOT, environment
from tests.helpers.environments import fresh_environment, install

EXAMPLES = {
    "digits": "hinton",
    "images": "images",
    "own_data": "own_data",
    "segmentation": "segmentation",
    "text_classifier": "text_classifier",
    "lrhnet": "lrhnet_smlkd",
    "ecg_records": "ecg_records",
}


def files_in(folder):
    """Return the texts of the files below a folder by their paths."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files if ".egg-info" not in str(path)}


def test_every_template_is_an_example():
    templates = recipe_templates(installed())
    assert set(templates) == set(EXAMPLES)
    for name, path in templates.items():
        # To mend: copy the example to the template.
        assert path.read_text() == (ROOT / "examples" / f"{EXAMPLES[name]}.py").read_text()


# The imports of timm and transformers take seconds.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("images", "text_classifier"))) for name in EXAMPLES],
)
@pytest.mark.usefixtures("noise_instead_of_ecgs")
def test_a_recipe_of_a_template_has_commands_of_its_own_name_and_its_check_finds_no_problem(name, kdkit_here, tmp_path):
    written = kdkit_here("new", "recipe", name)
    assert (written.code, written.out) == (0, f"{name}.py is written; run it: kdkit run {name}.py\n")
    text = (tmp_path / f"{name}.py").read_text()
    assert f"kdkit run {name}.py" in text
    assert "examples/" not in text
    checked = kdkit_here("check", f"{name}.py")
    assert checked.code == 0, checked.err
    assert "no problems found" in checked.out


def test_a_name_that_is_no_template_is_a_recipe_for_own_data(kdkit_here, tmp_path):
    assert kdkit_here("new", "recipe", "mine").code == 0
    assert "kdkit run mine.py" in (tmp_path / "mine.py").read_text()
    for name in ("my_data", "my_digits", "digits2"):  # similar to names of templates, and no typing errors
        assert kdkit_here("new", "recipe", name).code == 0
        assert "def read_samples" in (tmp_path / f"{name}.py").read_text()
    (tmp_path / "folder").mkdir()
    assert kdkit_here("new", "recipe", "digits", "folder/first.py").code == 0
    assert "kdkit run folder/first.py" in (tmp_path / "folder" / "first.py").read_text()
    assert kdkit_here("new", "recipe", "digits", "my digits.py").out.endswith("run it: kdkit run 'my digits.py'\n")
    assert kdkit_here("new", "recipe", "digits.py").code == 0
    assert "kdkit run digits.py" in (tmp_path / "digits.py").read_text()
    assert "def read_samples" not in (tmp_path / "digits.py").read_text()
    assert [line.split()[0] for line in kdkit_here("new", "recipe").out.splitlines()] == sorted(EXAMPLES)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["recipe", "lrhnt"], "did you mean 'lrhnet'?"),
        (["recipe", "mine"], "mine.py exists; name another file"),
        (["recipe", "digits", "nowhere/mine.py"], "nowhere is not a folder"),
        (["plugin", "torch"], "a package 'torch' already exists"),
        (["plugin", "json"], "a package 'json' already exists"),
        (["plugin", "__main__"], "a package '__main__' already exists"),
        (["plugin", "Big-Name"], "lower-case letters, digits and _; got 'Big-Name'; kdkit new plugin big_name"),
        (["plugin", "class"], "got 'class'"),
        (["plugin", "full"], "full exists and is not empty"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_overwritten(args, words, kdkit_here, tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = files_in(tmp_path)
    result = kdkit_here("new", *args)
    assert result.code == 2
    assert words in result.err
    assert files_in(tmp_path) == before


def test_a_plugin_registers_templates_under_new_names(tmp_path):
    (tmp_path / "mine.py").write_text("")

    class Mine:
        def __init__(self, name, path):
            self.name, self.path = name, path

        @hookimpl
        def register_templates(self, register):
            register(self.name, self.path)

    plugins = Plugins()
    plugins.add(Mine("mine", tmp_path / "mine.py"), "first")
    assert recipe_templates(plugins) == {"mine": tmp_path / "mine.py"}
    for name, path, words in (("mine", "mine.py", "which exists"), ("yours", "yours.py", "yours.py, not a file")):
        extended = plugins.extended([])
        extended.add(Mine(name, tmp_path / path), "second")
        with pytest.raises(PluginError, match=f"plugin 'second' registers .*{name}.*{words}"):
            recipe_templates(extended)


def test_the_plugin_template_of_the_examples_is_what_is_written(kdkit_here, tmp_path):
    # To mend: copy kdkit/templates/plugin to examples/plugin-template.
    assert files_in(ROOT / "examples" / "plugin-template") == files_in(PLUGIN)
    assert kdkit_here("new", "plugin", "my_plugin").code == 0
    assert files_in(tmp_path / "my_plugin") == files_in(PLUGIN)


def test_a_new_plugin_has_its_own_name_everywhere(kdkit_here, tmp_path):
    written = kdkit_here("new", "plugin", "blue_loss")
    assert written.code == 0, written.err
    files = files_in(tmp_path / "blue_loss")
    assert "blue_loss/plugin.py" in files
    assert "tests/test_blue_loss.py" in files
    assert not [name for name, text in files.items() if "my_plugin" in text or "my-plugin" in text]


@pytest.mark.slow
def test_a_new_plugin_can_be_installed_and_passes_its_tests(kdkit_here, tmp_path):
    assert kdkit_here("new", "plugin", "blue_loss").code == 0
    python = fresh_environment(tmp_path)
    install(python, tmp_path / "blue_loss")
    pytest_of_plugin = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(
        pytest_of_plugin, cwd=tmp_path / "blue_loss", env=environment(), capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    listed = subprocess.run(
        [python, "-m", "kdkit", "list"], env=environment(), capture_output=True, text=True, check=True, timeout=300
    )
    rows = [line.split()[:2] for line in listed.stdout.splitlines()]
    for entry in ("blue_loss_loss", "blue_loss_schedule", "blue_loss_metric", "blue_loss_data"):
        assert [entry, "blue_loss"] in rows
