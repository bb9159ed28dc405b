"""Recipe files that plugins bring along, as starting points for those of users."""

from pathlib import Path

from kdkit.errors import PluginError
from kdkit.plugins.manager import Plugins

FOLDER = Path(__file__).parents[1] / "templates"  # those of kdkit
PLUGIN = FOLDER / "plugin"


def recipe_templates(plugins: Plugins) -> dict[str, Path]:
    """Return the recipe templates of all plugins by name; one that is registered twice, or missing, is a warning."""
    templates: dict[str, Path] = {}
    for implementation in plugins.hook.register_templates.get_hookimpls():

        def register(name: str, path: Path, plugin: str = implementation.plugin_name) -> None:
            if name in templates:
                raise PluginError(f"plugin {plugin!r} registers a template {name!r}, which exists; choose another name")
            if not Path(path).is_file():
                raise PluginError(f"plugin {plugin!r} registers the template {name!r} as {path}, which is no file")
            templates[name] = Path(path)

        with plugins.errors_of(implementation.plugin_name, "register its templates"):
            implementation.function(*([register] if implementation.argnames else []))
    return dict(sorted(templates.items()))
