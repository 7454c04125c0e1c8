"""Every field of a runtime environment: what it may be, and its canonical form. Pure, but that lists of requirements
are read from their file; runs where the user writes the environment, so that a wrong one is an error there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[str, Any], Any]

SCHEMES = ("gcs", "file", "http", "https")  # of packages; gcs is this session's own store of them
LATER_SCHEMES = ("s3", "gs", "azure", "abfss", "hdfs")
ARCHIVES = (".zip", ".whl")


def wrong(kind: type[Exception], field: str, given: Any, expected: str) -> Exception:
    return kind(f"runtime_env: {field}={given!r}: expected {expected}")


def _text(field: str, value: Any, expected: str) -> str:
    if not isinstance(value, str):
        raise wrong(TypeError, field, value, expected)
    if not value.strip() or "\0" in value:
        raise wrong(ValueError, field, value, f"{expected}, not an empty one")
    return value


def _texts(field: str, value: Any, expected: str) -> list[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise wrong(TypeError, field, value, expected)
    return [_text(f"{field}[{i}]", one, "a string") for i, one in enumerate(value)]


def scheme_of(text: str) -> str:
    """'file' for 'file:///a.zip'; '' for a path."""
    scheme, mark, _ = text.partition("://")
    return scheme.lower() if mark else ""


def _uri(field: str, value: str) -> None:
    """Raises unless value, which has a scheme, names an archive that can be fetched."""
    scheme = scheme_of(value)
    if scheme in LATER_SCHEMES:
        raise NotImplementedError(
            f"runtime_env: {field}={value!r}: fetching from {scheme}:// is not built yet in this version of ray; "
            "use file:// or https://"
        )
    if scheme not in SCHEMES:
        raise wrong(ValueError, field, value, f"a path, or a URI that begins with {', '.join(SCHEMES)}://")
    if not value.lower().endswith(ARCHIVES):
        raise wrong(ValueError, field, value, "a URI that ends in .zip (for py_modules also .whl)")


def working_dir(field: str, value: Any) -> str:
    expected = "a folder, a .zip file, or the URI of one, as a string"
    text = _text(field, os.fspath(value) if hasattr(value, "__fspath__") else value, expected)
    if scheme_of(text):
        _uri(field, text)
    return text


def py_modules(field: str, value: Any) -> list[Any]:
    expected = "a list of modules: each a folder, a .py file, a .whl, the URI of an archive, or an imported module"
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise wrong(TypeError, field, value, expected)
    checked: list[Any] = []
    for i, one in enumerate(value):
        where = f"{field}[{i}]"
        if type(one).__name__ == "module":
            checked.append(_module_path(where, one))
            continue
        text = _text(where, os.fspath(one) if hasattr(one, "__fspath__") else one, expected)
        if scheme_of(text):
            _uri(where, text)
        checked.append(text)
    return checked


def _module_path(field: str, module: Any) -> str:
    """The folder of a package, the file of a module."""
    paths = list(getattr(module, "__path__", ()))
    if len(paths) > 1:
        raise ValueError(f"runtime_env: {field}: {module.__name__} is a namespace package with {len(paths)} folders")
    path = paths[0] if paths else getattr(module, "__file__", None)
    if not path or not (paths or path.endswith(".py")):
        raise ValueError(f"runtime_env: {field}: module {module.__name__} has no Python source that could be sent")
    return str(path)


def excludes(field: str, value: Any) -> list[str]:
    return _texts(field, value, "a list of patterns as in .gitignore")


def _requirements(field: str, path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip() and not line.lstrip().startswith("#")]
    except OSError as error:
        raise ValueError(
            f"runtime_env: {field}={path!r}: this requirements file can't be read: {error.strerror}"
        ) from None


def _packages(field: str, value: Any, optional: dict[str, tuple[type, str]]) -> dict[str, Any]:
    """pip and uv: a list, a requirements file, or a dict with a few options."""
    expected = f"a list of packages, a requirements file, or a dict with 'packages' and, if need be, {list(optional)}"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return {"packages": _requirements(field, _text(field, value, expected))}
    if isinstance(value, (list, tuple)):
        return {"packages": _texts(field, value, expected)}
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, expected)
    _known(field, value, ("packages", *optional))
    if "packages" not in value:
        raise wrong(ValueError, field, value, "a dict that has 'packages'")
    packages = value["packages"]
    if isinstance(packages, (str, os.PathLike)):
        checked: dict[str, Any] = {"packages": _requirements(f"{field}['packages']", os.fspath(packages))}
    else:
        checked = {"packages": _texts(f"{field}['packages']", packages, "a list of strings")}
    for option, (kind, shown) in optional.items():
        given = value.get(option)
        if given is None:
            continue
        where = f"{field}[{option!r}]"
        if kind is list:
            checked[option] = _texts(where, given, shown)
        elif not isinstance(given, kind):
            raise wrong(TypeError, where, given, shown)
        else:
            checked[option] = given
    return checked


def pip(field: str, value: Any) -> dict[str, Any]:
    options: dict[str, tuple[type, str]] = {
        "pip_check": (bool, "True or False"),
        "pip_version": (str, "a version specifier, such as '==24.0'"),
        "pip_install_options": (list, "a list of options of `pip install`"),
    }
    checked = _packages(field, value, options)
    checked.setdefault("pip_check", False)
    return checked


def uv(field: str, value: Any) -> dict[str, Any]:
    options: dict[str, tuple[type, str]] = {
        "uv_check": (bool, "True or False"),
        "uv_version": (str, "a version specifier, such as '==0.4.0'"),
        "uv_pip_install_options": (list, "a list of options of `uv pip install`"),
    }
    checked = _packages(field, value, options)
    checked.setdefault("uv_check", False)
    return checked


def conda(field: str, value: Any) -> Any:
    expected = (
        "the name of a conda environment, the path of an environment .yaml file, or such a file's content as a dict"
    )
    if isinstance(value, Mapping):
        if not value:
            raise wrong(ValueError, field, value, expected)
        return dict(value)
    text = _text(field, os.fspath(value) if hasattr(value, "__fspath__") else value, expected)
    if text.endswith((".yml", ".yaml")) and not os.path.isfile(text):
        raise ValueError(f"runtime_env: {field}={text!r}: there is no such file; {expected} would do")
    return text


def container(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, "a dict with 'image' and, if need be, 'worker_path', 'run_options'")
    _known(field, value, ("image", "worker_path", "run_options"))
    if "image" not in value:
        raise wrong(ValueError, field, value, "a dict that has 'image'")
    checked: dict[str, Any] = {"image": _text(f"{field}['image']", value["image"], "the name of an image")}
    if value.get("worker_path") is not None:
        checked["worker_path"] = _text(f"{field}['worker_path']", value["worker_path"], "a path inside the image")
    if value.get("run_options") is not None:
        where = f"{field}['run_options']"
        checked["run_options"] = _texts(where, value["run_options"], "a list of options of `podman run`")
    return checked


def image_uri(field: str, value: Any) -> str:
    return _text(field, value, "the name of an image")


def env_vars(field: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, "a dict of strings by string, such as {'OMP_NUM_THREADS': '4'}")
    for name, one in value.items():
        if not isinstance(name, str) or not isinstance(one, str):
            raise wrong(TypeError, f"{field}[{name!r}]", one, "a string for each name, which is a string too")
        if not name or "=" in name or "\0" in name + one:
            raise wrong(ValueError, f"{field}[{name!r}]", one, "a name without '=', and no NUL in either")
    return dict(value)


def worker_process_setup_hook(field: str, value: Any) -> Any:
    if isinstance(value, str):
        text = _text(field, value, "'module.function' or a function")
        if "." not in text:
            raise wrong(ValueError, field, value, "'module.function' or a function")
        return text
    if not callable(value):
        raise wrong(TypeError, field, value, "'module.function' or a function")
    return value


def nsight(field: str, value: Any) -> Any:
    if value == "default":
        return value
    if isinstance(value, str):
        raise wrong(ValueError, field, value, "'default' or a dict of options of `nsys profile`")
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, "'default' or a dict of options of `nsys profile`")
    for name, one in value.items():
        if not isinstance(name, str) or not isinstance(one, str):
            raise wrong(TypeError, f"{field}[{name!r}]", one, "a string for each option, which is a string too")
    return dict(value)


def mpi(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, "a dict with 'worker_entry' and, if need be, 'args'")
    _known(field, value, ("args", "worker_entry"))
    if "worker_entry" not in value:
        raise wrong(ValueError, field, value, "a dict that has 'worker_entry', what every rank but 0 runs")
    entry = _text(f"{field}['worker_entry']", value["worker_entry"], "'module.function'")
    if "." not in entry:
        raise wrong(ValueError, f"{field}['worker_entry']", entry, "'module.function'")
    return {"worker_entry": entry, "args": _texts(f"{field}['args']", value.get("args") or [], "a list of strings")}


def py_executable(field: str, value: Any) -> str:
    return _text(field, value, "the command that starts Python, such as '/usr/bin/python3.11'")


def config(field: str, value: Any) -> Any:
    from .runtime_env import RuntimeEnvConfig

    if isinstance(value, RuntimeEnvConfig):
        return value
    if not isinstance(value, Mapping):
        raise wrong(TypeError, field, value, "a dict or a RuntimeEnvConfig")
    _known(field, value, tuple(RuntimeEnvConfig.DEFAULTS))
    return RuntimeEnvConfig(**value)


def _later(what: str) -> Check:
    def check(field: str, value: Any) -> Any:
        if not value:
            return None
        raise NotImplementedError(
            f"runtime_env: {field}={value!r}: {what} is not built yet in this version of ray; leave {field} out"
        )

    return check


FIELDS: dict[str, Check] = {
    "working_dir": working_dir,
    "py_modules": py_modules,
    "excludes": excludes,
    "pip": pip,
    "uv": uv,
    "conda": conda,
    "container": container,
    "image_uri": image_uri,
    "env_vars": env_vars,
    "worker_process_setup_hook": worker_process_setup_hook,
    "nsight": nsight,
    "mpi": mpi,
    "py_executable": py_executable,
    "config": config,
    "java_jars": _later("calling Java"),
    "rocprof_sys": _later("profiling with rocprof-sys"),
}
ALIASES = {"_nsight": "nsight", "_rocprof_sys": "rocprof_sys"}
INSTALLERS = ("pip", "uv", "conda")  # each decides which packages there are: one at a time
_IMAGES = ("container", "image_uri")
_BESIDE_AN_IMAGE = ("config", "env_vars")


def together(env: Mapping[str, Any]) -> None:
    """Refuses fields that make no sense beside each other."""
    installers = [name for name in INSTALLERS if env.get(name) is not None]
    if len(installers) > 1:
        raise ValueError(
            f"runtime_env: {' and '.join(installers)} can't be given together: each decides which packages there are. "
            "With conda, name pip's packages inside the conda specification"
        )
    for image in _IMAGES:
        others = sorted(name for name in env if name not in (image, *_BESIDE_AN_IMAGE))
        if env.get(image) is not None and others:
            raise ValueError(
                f"runtime_env: {image} can't be used together with {', '.join(others)}: what is in the image rules; "
                f"only {' and '.join(_BESIDE_AN_IMAGE)} may stand beside it"
            )
    if env.get("py_executable") is not None and env.get("conda") is not None:
        raise ValueError("runtime_env: py_executable and conda can't be given together: both choose the interpreter")


def _known(field: str, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in value:
        if name not in names:
            raise ValueError(f"runtime_env: {field}: unknown entry {name!r}{nearest(name, names)}")


def nearest(name: Any, known: Any) -> str:
    import difflib  # an error is about to be raised: only then is it worth importing

    found = difflib.get_close_matches(str(name), list(known), 1, 0.6)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(known)}"
