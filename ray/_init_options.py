"""Every argument of `ray.init`: what it may be, and what the node and the driver are told. Pure.

Runs in `ray.init`, and in `ray start`, whose options are these arguments under names of their own.

`parse` turns what a user gave, in either vocabulary, into an InitOptions, or raises an error that names the argument.
It starts nothing; of the environment it reads the settings (docs/config.md).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Callable

from ray import _aliases
from ray._options import (
    Check,
    boolean,
    mapping,
    memory,
    nearest,
    not_built,
    optional,
    resource_map,
    runtime_env,
    text,
    units,
    whole,
    wrong,
)
from ray._protocol.ids import NODE_NUMBER_BYTES, new_tag
from ray.job_config import JobConfig

_LABEL_RULE = "up to 63 letters, digits, '-', '_' and '.', with a letter or digit first and last"
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_LABEL_NAME = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def _address(option: str, value: Any) -> str | None:
    from ray._launch import address

    if value is None:
        return None
    if not isinstance(value, str):
        raise wrong(TypeError, option, value, address.FORMS)
    address.check(option, value)
    return value


def _dashboard(option: str, value: Any) -> bool:
    if value in (None, False):
        return False
    boolean(option, value)
    raise not_built(option, value, "the dashboard")


def _job_config(option: str, value: Any) -> JobConfig:
    if value is None:
        return JobConfig()
    if isinstance(value, Mapping):
        return JobConfig(**value)
    if not isinstance(value, JobConfig):
        raise wrong(TypeError, option, value, "a ray.job_config.JobConfig")
    return value


def _logging_config(option: str, value: Any) -> Any:
    """A ray.LoggingConfig, or None. RAY_LOGGING_CONFIG_ENCODING stands for one that says no more than that."""
    encoding = os.environ.get("RAY_LOGGING_CONFIG_ENCODING")
    if value is None and not encoding:
        return None
    from ray._logging_config import LoggingConfig

    if value is None:
        return LoggingConfig(encoding=str(encoding))
    if not isinstance(value, LoggingConfig):
        raise wrong(TypeError, option, value, "a ray.LoggingConfig, such as ray.LoggingConfig(encoding='JSON')")
    return value


def _logging_level(option: str, value: Any) -> int:
    import logging

    expected = "a level of the logging module, such as 'info' or logging.INFO"
    if isinstance(value, str):
        number = logging.getLevelName(value.upper())
        if not isinstance(number, int):
            raise wrong(ValueError, option, value, expected)
        return number
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(TypeError, option, value, expected)
    return value


def _driver_mode(option: str, value: Any) -> int:
    modes = (_aliases.SCRIPT_MODE, _aliases.PYTHON_MODE, _aliases.SILENT_MODE)
    if isinstance(value, bool) or value not in modes:
        raise wrong(ValueError, option, value, "ray.SCRIPT_MODE, ray.PYTHON_MODE or ray.SILENT_MODE")
    return int(value)


def _labels(option: str, value: Any) -> dict[str, str]:
    """Names and values as Ray's (and Kubernetes') labels: a prefix before a slash is part of the name."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(TypeError, option, value, "a dict of strings by string, such as {'zone': 'a'}")
    for name, text_ in value.items():
        if not isinstance(name, str) or not isinstance(text_, str):
            raise TypeError(f"{option}: labels are strings by string, not {name!r}: {text_!r}")
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(f"{option}: {name!r} can't be the name of a label: {_LABEL_RULE}, not empty")
        if name.startswith("ray.io/"):
            raise ValueError(f"{option}: {name!r}: names that begin with 'ray.io/' are given by ray itself")
        if not _LABEL_VALUE.fullmatch(text_):
            raise ValueError(f"{option}: {text_!r} can't be the value of label {name!r}: {_LABEL_RULE}")
    return dict(value)


def _temp_dir(option: str, value: Any) -> str:
    folder: str = os.fspath(value) if hasattr(value, "__fspath__") else text(option, value)
    if not os.path.isabs(folder):
        raise wrong(ValueError, option, value, "an absolute path")
    return folder


def _folder(option: str, value: Any) -> str:
    folder: str = os.fspath(value) if hasattr(value, "__fspath__") else text(option, value)
    if not os.path.isdir(folder):
        raise wrong(ValueError, option, value, "a folder that exists")
    return folder


def _hook(option: str, value: Any) -> str:
    hook: str = text(option, value)
    module, colon, function = hook.partition(":")
    if not colon or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise wrong(ValueError, option, value, "'module:function'")
    return hook


def _storage(option: str, value: Any) -> str:
    """The folder of a path, or of a file:// URI."""
    given: str = os.fspath(value) if hasattr(value, "__fspath__") else text(option, value)
    scheme, colon, rest = given.partition("://")
    if colon and scheme != "file":
        raise not_built(option, given, f"storage behind {scheme}://")
    folder = rest if colon else given
    if not os.path.isabs(folder):
        raise wrong(ValueError, option, given, "an absolute path, or file:// and one")
    if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise wrong(ValueError, option, given, "a folder that exists, and in which files can be written")
    return folder


def _port(option: str, value: Any) -> int:
    number: int = whole(0, "a port number")(option, value)
    if number > 65535:
        raise wrong(ValueError, option, value, "a port number, at most 65535")
    return number


# name: (default, check). None asks for the default wherever that is None.
ARGUMENTS: dict[str, tuple[Any, Check]] = {
    "address": (None, _address),
    "num_cpus": (None, optional(whole(0, "a whole number >= 0"))),
    "num_gpus": (None, optional(whole(0, "a whole number >= 0"))),
    "resources": (None, resource_map),
    "labels": (None, _labels),
    "object_store_memory": (None, optional(memory)),
    "local_mode": (False, boolean),
    "ignore_reinit_error": (False, boolean),
    "include_dashboard": (None, _dashboard),
    "dashboard_host": ("127.0.0.1", optional(lambda o, v: v if v == "" else text(o, v))),
    "dashboard_port": (None, optional(_port)),
    "job_config": (None, _job_config),
    "configure_logging": (True, boolean),
    "logging_level": ("info", _logging_level),
    "logging_format": (None, optional(text)),
    "logging_config": (None, _logging_config),
    "log_to_driver": (True, boolean),
    "namespace": (None, optional(text)),
    "runtime_env": (None, runtime_env),
    "storage": (None, optional(_storage)),
    "huge_pages": (False, boolean),
    "plasma_directory": (None, optional(_folder)),
    "object_spilling_directory": (None, optional(_folder)),
    "num_redis_shards": (None, optional(whole(1, "a whole number >= 1"))),
    "num_workers": (None, optional(whole(0, "a whole number >= 0"))),
    "driver_mode": (_aliases.SCRIPT_MODE, _driver_mode),
    "redirect_output": (False, boolean),
    "object_id_seed": (None, optional(whole(0, "a whole number >= 0"))),
    "_enable_object_reconstruction": (None, optional(boolean)),  # None: as the setting says
    "_redis_max_memory": (None, optional(memory)),
    "_node_ip_address": (None, optional(text)),
    "_driver_object_store_memory": (None, optional(memory)),
    "_memory": (None, optional(memory)),
    "_redis_password": (None, optional(text)),
    "_temp_dir": (None, optional(_temp_dir)),
    "_metrics_export_port": (None, optional(_port)),
    "_system_config": (None, optional(mapping)),
    "_tracing_startup_hook": (None, optional(_hook)),
    "_node_name": (None, optional(text)),
}


# What a session is made of: it is said when that starts, and a driver that joins one comes too late with it.
OF_A_SESSION = (
    *(
        "num_cpus",
        "num_gpus",
        "resources",
        "labels",
        "object_store_memory",
        "_memory",
        "plasma_directory",
        "object_spilling_directory",
        "huge_pages",
    ),
    *("num_redis_shards", "_redis_max_memory", "num_workers", "storage", "_system_config", "_node_name"),
    *("_enable_object_reconstruction", "_metrics_export_port", "_tracing_startup_hook", "num_custom_resource"),
)


class InitOptions:
    """The arguments of `ray.init`, checked, one attribute each."""

    def __init__(self, values: dict[str, Any], given: Mapping[str, str]) -> None:
        """given: the names of the arguments that were given, each with the name under which it was."""
        self.values = values
        self.given = given
        # Of the job: named actors live in it. Nobody else's, unless it was given.
        self.job_runtime_env = ""  # JSON, once `prepare` has run
        self.job_namespace: str = values["namespace"] or values["job_config"].ray_namespace or os.urandom(16).hex()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def runs_inline(self) -> bool:
        return bool(self.local_mode or self.driver_mode == _aliases.PYTHON_MODE)

    @property
    def prints_of_workers(self) -> bool:
        return bool(self.log_to_driver and not self.redirect_output and self.driver_mode != _aliases.SILENT_MODE)

    def refuse_for_joining(self, folder: str) -> None:
        """Raises: ValueError: something was given that only makes sense when a session starts."""
        late = [written for name, written in self.given.items() if name in OF_A_SESSION]
        if late:
            raise ValueError(
                f"ray.init: {', '.join(name + '=' for name in late)} can only be given when a session starts, and this "
                f"one runs already, in {folder}: leave {'it' if len(late) == 1 else 'them'} out to join it (`ray "
                "start` takes the same), or give address='local' to start another session"
            )

    def resources(self) -> dict[str, int]:
        """What the user said the node has, in units; what is not in here the node finds out itself."""
        given = {name: units(amount) for name, amount in self.values["resources"].items()}
        for name, option in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "_memory")):
            if self.values[option] is not None:
                given[name] = units(self.values[option])
        return given

    def warnings(self) -> list[str]:
        """What was given and has no effect, said as a person should hear it."""
        from ray._config import TABLE

        known = [row.name for row in TABLE]
        said = [
            f"_system_config: {name!r} is no setting here, and has no effect{nearest(str(name), known)} "
            "(docs/config.md has all)"
            for name in self.values["_system_config"] or {}
            if name not in known
        ]
        if self.values["_driver_object_store_memory"] is not None:
            said.append(
                "_driver_object_store_memory has no effect: the driver shares the object store; object_store_memory is "
                "the size of all of it"
            )
        return said

    def driver_tag(self) -> bytes:
        """What the ids of all that the driver makes begin with: random, or the same in each run with object_id_seed."""
        seed = self.values["object_id_seed"]
        if seed is None:
            return new_tag()
        import hashlib

        number = new_tag()[:NODE_NUMBER_BYTES]
        return number + hashlib.sha256(f"ray object_id_seed {seed}".encode()).digest()[:12]

    def worker_variables(self) -> dict[str, str]:
        """What the environment of the job's workers has beside the node's own."""
        config = self.values["logging_config"]
        if config is None:
            return {}
        from ray._logging_config import VARIABLE

        return {VARIABLE: config.dumps()}

    def settings(self) -> dict[str, Any]:
        """Overrides of ray._config: the environment's, then those of _system_config that are settings."""
        from ray._config import TABLE, Settings

        known = {row.name for row in TABLE}
        given = {name: value for name, value in (self.values["_system_config"] or {}).items() if name in known}
        if self.num_workers is not None:
            given.setdefault("prestart_workers", self.num_workers)
        if self.values["_enable_object_reconstruction"] is not None:
            given["object_reconstruction"] = self.values["_enable_object_reconstruction"]
        if self.values["object_spilling_directory"] is not None:
            given["object_spilling_directory"] = self.values["object_spilling_directory"]
        if self.values["_tracing_startup_hook"] is not None:
            given["tracing_startup_hook"] = self.values["_tracing_startup_hook"]
        return Settings(given, os.environ).overrides()

    def prepare(self, session_dir: str) -> str:
        """Packs what the job's runtime environment names into the session's folder.

        Returns: the environment as JSON; "": none.
        Raises: ValueError: something that it names is not there, or too large.
        """
        env = self.values["runtime_env"] or self.job_config.runtime_env
        if env:
            from ray._config import Settings
            from ray.runtime_env import _prepare

            bytes_max = Settings(self.settings()).runtime_env_package_bytes_max
            self.job_runtime_env = _prepare.effective(env, "", session_dir, bytes_max)
        return self.job_runtime_env

    def node_config(self) -> dict[str, Any]:
        """What ray._launch.node_process.start_node is given."""
        config = {
            "resources": self.resources(),
            "settings": self.settings(),
            "job": {
                "sys_path": list(sys.path),
                "cwd": os.getcwd(),
                "env": self.worker_variables(),
                "namespace": self.job_namespace,
                "runtime_env": self.job_runtime_env,
            },
            "huge_pages": self.huge_pages,
        }
        for key, option in (
            ("object_store_memory", "object_store_memory"),
            ("plasma_directory", "plasma_directory"),
            ("num_redis_shards", "num_redis_shards"),
            ("redis_password", "_redis_password"),
            ("redis_max_memory", "_redis_max_memory"),
            ("node_ip", "_node_ip_address"),
            ("node_name", "_node_name"),
            ("labels", "labels"),
            ("metrics_export_port", "_metrics_export_port"),
            ("storage", "storage"),
        ):
            if self.values[option] is not None:
                config[key] = self.values[option]
        return config

    def driver_info(self) -> dict[str, Any]:
        """What the driver says of itself when it registers."""
        main = sys.modules.get("__main__")
        return {
            "kind": "driver",
            "tag": self.driver_tag(),
            "pid": os.getpid(),
            "entrypoint": " ".join(sys.argv) or getattr(main, "__file__", None) or "python",
            "sys_path": list(sys.path),
            "cwd": os.getcwd(),
            "env": self.worker_variables(),
            "namespace": self.job_namespace,
            "log_to_driver": self.prints_of_workers,
            "runtime_env": "",  # known once `prepare` has run
            "metadata": self.job_config.metadata,
        }


def _asks_for_something(value: Any) -> bool:
    return not (value is None or value is False or (isinstance(value, Mapping) and not value))


def _as_argument(name: str) -> str:
    return f"ray.init: {name}"


def parse(given: Mapping[str, Any], named: Callable[[str], str] = _as_argument) -> InitOptions:
    """Checks what `ray.init` was given.

    Args: named: what an argument is called where the user gave it, for error messages.
    Raises: TypeError, ValueError: an argument that is unknown, wrong, or makes no sense beside another.
        NotImplementedError: one that a later version will bring.
    """
    # An argument left at its default was not given, whoever filled it in.
    given = {name: value for name, value in given.items() if name not in ARGUMENTS or value is not ARGUMENTS[name][0]}
    written = {_aliases.INIT.get(name) or name: name for name, value in given.items() if _asks_for_something(value)}
    given = _aliases.resolve(_aliases.INIT, given, "ray.init")
    if given.get("storage") is None and os.environ.get("RAY_STORAGE") and given.get("address") in (None, "local"):
        given["storage"] = os.environ["RAY_STORAGE"]
    values: dict[str, Any] = {}
    for name in given:
        if name not in ARGUMENTS:
            known = [*ARGUMENTS, *_aliases.INIT, "num_custom_resource"]
            raise TypeError(f"ray.init: unknown argument {name!r}{nearest(name, known)}")
    for name, (default, checker) in ARGUMENTS.items():
        values[name] = checker(named(name), given.get(name, default))
    options = InitOptions(values, written)
    if options.huge_pages and options.plasma_directory is None:
        raise ValueError(
            f"{named('huge_pages')}: it needs plasma_directory, the folder where a hugetlbfs is mounted, such as "
            "'/mnt/hugepages'"
        )
    if options.runs_inline and options.address not in (None, "local"):
        raise ValueError(
            f"{named('address')}={options.address!r}: with local_mode=True (or driver_mode=ray.PYTHON_MODE) everything "
            "runs in this process, and there is nothing to join: give one of the two"
        )
    settings = options.settings()  # a wrong _system_config or environment variable is an error here, not in the node
    if "object_spilling_config" in settings or "object_spilling_directory" in settings:
        from ray._node import spill_options

        spill_options.check(
            spill_options.directories(
                settings.get("object_spilling_config", ""), settings.get("object_spilling_directory", "")
            )
            or []
        )
    return options
