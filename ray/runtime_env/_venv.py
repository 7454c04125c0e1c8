"""pip and uv: packages in a virtual environment that sees what the driver's own interpreter has. In the builder
process.

The worker is not started by that environment's interpreter, which is the same program: it puts the environment's
site-packages first on its own path after the fork (`_enter.py`), and so starts as fast as any other.
"""

from __future__ import annotations

import shutil
import site as interpreter_site
import sys
from typing import Any

from . import _parts
from ._tools import BuildError, Site


def pip(site: Site) -> None:
    given = site.env["pip"]

    def make(folder: str) -> None:
        python = _make_venv(site, folder)
        if given.get("pip_version"):
            site.run(_pip(python, "install", "--disable-pip-version-check", "pip" + given["pip_version"]))
            command = [python, "-m", "pip"]
        else:
            command = _pip(python)
        requirements = _requirements(folder, given)
        options = given.get("pip_install_options", ["--disable-pip-version-check", "--no-cache-dir"])
        site.run([*command, "install", "--no-input", "-r", requirements, *options], _variables(site))
        if given.get("pip_check"):
            site.run([*command, "check", "--disable-pip-version-check"])

    _use(site, site.part(_parts.packages("pip", site.env), make))


def uv(site: Site) -> None:
    given = site.env["uv"]

    def make(folder: str) -> None:
        python = _make_venv(site, folder)
        command = _uv(site, python, given.get("uv_version"))
        requirements = _requirements(folder, given)
        options = given.get("uv_pip_install_options", ["--no-cache"])
        site.run([*command, "pip", "install", "--python", python, "-r", requirements, *options], _variables(site))
        if given.get("uv_check"):
            site.run([*command, "pip", "check", "--python", python])

    _use(site, site.part(_parts.packages("uv", site.env), make))


def _uv(site: Site, python: str, version: str | None) -> list[str]:
    """The one that is installed, unless a version is asked for: that one is put into the environment itself."""
    found = shutil.which("uv")
    if found and not version:
        return [found]
    site.run(_pip(python, "install", "--disable-pip-version-check", "uv" + (version or "")))
    return [python, "-m", "uv"]


def _make_venv(site: Site, folder: str) -> str:
    """Returns its interpreter. Made at its final place: scripts in it name that."""
    site.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder])
    own = _site_packages(folder)
    # "System" is the interpreter that ours was made from; if ours is itself a virtual environment, that one counts too.
    if sys.prefix != sys.base_prefix:
        with open(f"{own}/_ray_parent.pth", "w") as file:
            file.writelines(f"import site; site.addsitedir({path!r})\n" for path in interpreter_site.getsitepackages())
    return f"{folder}/bin/python"


def _site_packages(folder: str) -> str:
    return f"{folder}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


def _pip(python: str, *arguments: str) -> list[str]:
    """Our interpreter's pip, working on another's packages: installing pip into each environment takes seconds."""
    import importlib.util

    if importlib.util.find_spec("pip") is None:
        raise BuildError(f"there is no pip in {sys.executable}: install it there (python -m ensurepip), or use conda")
    return [sys.executable, "-m", "pip", "--python", python, *arguments]


def _requirements(folder: str, given: dict[str, Any]) -> str:
    path = f"{folder}/requirements.txt"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in given["packages"])
    return path


def _variables(site: Site) -> dict[str, str]:
    return {_parts.WORKING_DIR_VARIABLE: site.context["cwd"]} if site.context["cwd"] else {}


def _use(site: Site, folder: str) -> None:
    site.context["site"] = _site_packages(folder)
    site.context["bin"].insert(0, f"{folder}/bin")
    site.context["env_vars"]["VIRTUAL_ENV"] = folder
    site.context["python"] = [f"{folder}/bin/python"]
