"""Build the site: `python -m tools.website`, after `pip install -e '.[docs]'`. The pages are in build/site.

Open build/site/index.html in a browser; no server is needed, and no network.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import yaml

from kdkit.errors import DataError
from tools.website import reference
from tools.website.checks import problems_of, problems_of_menu
from tools.website.places import DOCS, ROOT
from tools.website.staging import stage

CONFIG = ROOT / "mkdocs.yml"


def main() -> int:
    """Write the pages, check the menu, build the site and check it. Returns the exit status."""
    if importlib.util.find_spec("zensical") is None:
        print("the site is built by zensical, which is not installed: pip install -e '.[docs]'", file=sys.stderr)
        return 2
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    site = ROOT / config["site_dir"]
    try:
        pages = stage(ROOT / config["docs_dir"], reference.pages(), reference.link_names)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    problems = problems_of_menu(config["nav"], pages, DOCS)
    if not problems:
        # Strict: a link or an anchor that zensical does not find ends the build. It checks neither images nor the menu.
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(CONFIG)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return 1
        problems = problems_of(site)
    print(*problems, sep="\n", file=sys.stderr)
    if not problems:
        print(f"{len(pages)} pages in {Path(site).relative_to(ROOT)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
