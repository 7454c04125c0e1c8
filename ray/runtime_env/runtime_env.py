"""The public nouns RuntimeEnv and RuntimeEnvConfig: a runtime environment as a validated dict. Plain values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _fields


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is set up: a dict with a value for each of its fields.

    Args:
        setup_timeout_seconds: of building the environment; -1: no limit.
        eager_install: build the job's environment while `ray.init` returns, not when the first task needs it.
        log_files: kept for those who ask; nothing is done with it.
    Raises: TypeError, ValueError: naming the field.
    """

    DEFAULTS: dict[str, Any] = {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        where, expected = "config['setup_timeout_seconds']", "a whole number of seconds > 0, or -1 for no limit"
        if isinstance(setup_timeout_seconds, bool) or not isinstance(setup_timeout_seconds, int):
            raise _fields.wrong(TypeError, where, setup_timeout_seconds, expected)
        if setup_timeout_seconds <= 0 and setup_timeout_seconds != -1:
            raise _fields.wrong(ValueError, where, setup_timeout_seconds, expected)
        if not isinstance(eager_install, bool):
            raise _fields.wrong(TypeError, "config['eager_install']", eager_install, "True or False")
        files = [] if log_files is None else log_files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise _fields.wrong(TypeError, "config['log_files']", log_files, "a list of strings")
        super().__init__(
            setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=list(files)
        )

    @classmethod
    def default_config(cls) -> RuntimeEnvConfig:
        """What an environment without `config` gets."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of the same content."""
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """A runtime environment of a job, task or actor; usable wherever a dict of the same fields is.

    Args:
        working_dir: a folder, a .zip file, or the URI of one: where tasks run, and first on their `sys.path`.
        py_modules: folders, .py files, wheels, URIs of archives or imported modules, that tasks can import.
        excludes: patterns as in .gitignore of what is left out of working_dir and py_modules.
        pip: a list of packages, a requirements file, or {"packages", "pip_check", "pip_version",
            "pip_install_options"}.
        uv: the same, installed by uv: {"packages", "uv_check", "uv_version", "uv_pip_install_options"}.
        conda: an environment's name, its .yaml file, or that file's content as a dict.
        container: {"image", "run_options"}: workers run in that image.
        image_uri: the same, with nothing but the image.
        env_vars: environment variables; a value may refer to earlier ones, as in "${PATH}:/opt/bin".
        worker_process_setup_hook: a function, or its "module.name", called in each new worker before its first task.
        nsight: "default", or options of `nsys profile` by name: each worker is profiled.
        mpi: {"args", "worker_entry"}: each worker is rank 0 of an `mpirun`; the other ranks run worker_entry.
        py_executable: the command that starts Python in place of the driver's own.
        config: how it is set up, see RuntimeEnvConfig.
        _validate: False: take the fields as they are.
    Raises:
        TypeError, ValueError: a field that is unknown, wrong, or makes no sense beside another.
        NotImplementedError: a field or scheme of a version to come.
    """

    def __init__(
        self,
        *,
        py_modules: list[Any] | None = None,
        working_dir: str | None = None,
        pip: list[str] | str | dict[str, Any] | None = None,
        conda: dict[str, Any] | str | None = None,
        container: dict[str, Any] | None = None,
        env_vars: dict[str, str] | None = None,
        worker_process_setup_hook: Callable[[], Any] | str | None = None,
        nsight: dict[str, str] | str | None = None,
        config: dict[str, Any] | RuntimeEnvConfig | None = None,
        _validate: bool = True,
        mpi: dict[str, Any] | None = None,
        image_uri: str | None = None,
        uv: list[str] | str | dict[str, Any] | None = None,
        py_executable: str | None = None,
        excludes: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        given = {
            "py_modules": py_modules,
            "working_dir": working_dir,
            "pip": pip,
            "conda": conda,
            "container": container,
            "env_vars": env_vars,
            "worker_process_setup_hook": worker_process_setup_hook,
            "nsight": nsight,
            "config": config,
            "mpi": mpi,
            "image_uri": image_uri,
            "uv": uv,
            "py_executable": py_executable,
            "excludes": excludes,
            **kwargs,
        }
        for field, value in given.items():
            if value is None:
                continue
            if _validate:
                self[field] = value
            else:
                super().__setitem__(field, value)
        if _validate:
            _fields.together(self)

    # -- a dict whose values are checked ------------------------------------------------------------------------

    def __setitem__(self, field: str, value: Any) -> None:
        field = _fields.ALIASES.get(field, field)
        check = _fields.FIELDS.get(field)
        if check is None:
            raise ValueError(f"runtime_env: unknown field {field!r}{_fields.nearest(field, _fields.FIELDS)}")
        checked = check(field, value)
        if checked is not None:
            super().__setitem__(field, checked)

    def set(self, name: str, value: Any) -> None:
        """As `env[name] = value`."""
        self[name] = value

    def setdefault(self, field: str, default: Any = None) -> Any:
        """As dict.setdefault; the default is checked."""
        if field not in self and default is not None:
            self[field] = default
        return self.get(field)

    def update(self, *others: Any, **fields: Any) -> None:
        """As dict.update; what comes in is checked."""
        for field, value in dict(*others, **fields).items():
            self[field] = value

    @classmethod
    def fromkeys(cls, fields: Iterable[str], value: Any = None) -> RuntimeEnv:  # type: ignore[override]
        """An environment in which each of fields has value."""
        return cls(**dict.fromkeys(fields, value))

    def copy(self) -> RuntimeEnv:
        """A shallow copy."""
        return RuntimeEnv(_validate=False, **self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchecked, (dict(self),)

    # -- as text --------------------------------------------------------------------------------------------------

    def serialize(self) -> str:
        """JSON with sorted keys. Raises: TypeError: a setup hook that is a function has no text."""
        if callable(self.get("worker_process_setup_hook")):
            raise TypeError(
                "RuntimeEnv.serialize(): worker_process_setup_hook is a function; give 'module.name' instead"
            )
        return json.dumps(self, sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> RuntimeEnv:
        """What `serialize` made a text of."""
        return cls(_validate=False, **json.loads(serialized_runtime_env))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of the same content."""
        return {field: dict(value) if isinstance(value, dict) else value for field, value in self.items()}

    # -- fields ---------------------------------------------------------------------------------------------------

    def has_working_dir(self) -> bool:
        return self.get("working_dir") is not None

    def working_dir(self) -> str:
        return str(self.get("working_dir", ""))

    def working_dir_uri(self) -> str | None:
        return self.get("working_dir")

    def py_modules(self) -> list[str]:
        return list(self.get("py_modules", []))

    def py_modules_uris(self) -> list[str]:
        return self.py_modules()

    def plugin_uris(self) -> list[str]:
        """Always empty: there are no plugins."""
        return []

    def env_vars(self) -> dict[str, str]:
        return dict(self.get("env_vars", {}))

    def py_executable(self) -> str | None:
        return self.get("py_executable")

    def nsight(self) -> Any:
        return self.get("nsight")

    def mpi(self) -> Any:
        return self.get("mpi")

    def image_uri(self) -> str | None:
        return self.get("image_uri")

    def has_conda(self) -> bool:
        return self.get("conda") is not None

    def conda_env_name(self) -> str | None:
        return self["conda"] if isinstance(self.get("conda"), str) else None

    def conda_config(self) -> Any:
        return self["conda"] if isinstance(self.get("conda"), Mapping) else None

    def has_pip(self) -> bool:
        return self.get("pip") is not None

    def pip_config(self) -> dict[str, Any]:
        return dict(self.get("pip", {}))

    def has_uv(self) -> bool:
        return self.get("uv") is not None

    def uv_config(self) -> dict[str, Any]:
        return dict(self.get("uv", {}))

    def has_py_container(self) -> bool:
        return self.get("container") is not None

    def py_container_image(self) -> str | None:
        return self.get("container", {}).get("image")

    def py_container_worker_path(self) -> str | None:
        return self.get("container", {}).get("worker_path")

    def py_container_run_options(self) -> list[str]:
        return list(self.get("container", {}).get("run_options", []))


def _unchecked(fields: dict[str, Any]) -> RuntimeEnv:
    return RuntimeEnv(_validate=False, **fields)
