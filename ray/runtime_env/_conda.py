"""conda: an environment that exists, by its name, or one made from a specification. In the builder process.

Its interpreter is another program than the driver's, so its workers are exec'ed. They import `ray`, and what ray
itself needs, from where the driver has it, behind everything of the environment's own: nothing of it need be in the
environment, but its Python must have the same version up to the second number.
"""

from __future__ import annotations

import json
import os
import sys

from . import _parts
from ._tools import BuildError, Site, need


def conda(site: Site) -> None:
    given = site.env["conda"]
    program = os.environ.get("CONDA_EXE") or need("conda", "conda", "mamba", "micromamba")
    if isinstance(given, str):
        prefix = _prefix_of(site, program, given)
    else:

        def make(folder: str) -> None:
            specification = f"{folder}/environment.yml"
            with open(specification, "w", encoding="utf-8") as file:
                # JSON is YAML too
                file.write(given.get("environment_yaml") or json.dumps(_with_python(given), indent=1))
            site.run([program, "env", "create", "--yes", "--file", specification, "--prefix", f"{folder}/env"])

        prefix = site.part(_parts.part("conda", given), make) + "/env"
    python = f"{prefix}/bin/python"
    version = site.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version.splitlines()[-1:] != [ours]:
        raise BuildError(
            f"the conda environment {prefix} has Python {version}, and the driver {ours}: objects can't be exchanged "
            f"between them; name python={ours} among its dependencies"
        )
    site.context.update(python=[python], exec=True)
    site.context["bin"].insert(0, f"{prefix}/bin")
    site.context["env_vars"]["CONDA_PREFIX"] = prefix


def _with_python(given: dict[str, object]) -> dict[str, object]:
    """The specification, with the driver's Python in it unless it names one."""
    dependencies = given.get("dependencies") or []
    assert isinstance(dependencies, list)
    if any(isinstance(one, str) and one.split("=")[0].strip("<>! ") == "python" for one in dependencies):
        return given
    return {**given, "dependencies": [f"python={'.'.join(map(str, sys.version_info[:3]))}", *dependencies]}


def _prefix_of(site: Site, program: str, name: str) -> str:
    if os.path.isabs(name) and os.path.isdir(name):
        return name
    listed = site.run([program, "env", "list", "--json"])
    try:
        prefixes = json.loads(listed)["envs"]
    except (ValueError, KeyError, TypeError):
        raise BuildError(f"`{program} env list --json` did not list environments, but wrote:\n{listed}") from None
    for prefix in prefixes:
        if os.path.basename(prefix) == name or (name == "base" and prefix == prefixes[0]):
            return str(prefix)
    names = ", ".join(os.path.basename(prefix) for prefix in prefixes) or "none"
    raise BuildError(f"there is no conda environment {name!r} on this node; there are: {names}")
