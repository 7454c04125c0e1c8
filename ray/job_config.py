"""The public noun JobConfig: what a driver says about its job when it starts. A plain value."""

from __future__ import annotations

from typing import Any

from ray import _options


class JobConfig:
    """Given as `ray.init(job_config=...)`.

    Args:
        ray_namespace: where the job's named actors live; `ray.init(namespace=)` wins over it.
        metadata: strings by string, shown with the job.
        runtime_env: of the job's tasks and actors; `ray.init(runtime_env=)` wins over it.
        default_actor_lifetime="detached", code_search_path, jvm_options: not built yet; leave them out.
    """

    def __init__(
        self,
        jvm_options: list[str] | None = None,
        code_search_path: list[str] | None = None,
        runtime_env: dict[str, Any] | None = None,
        _client_job: bool = False,
        metadata: dict[str, str] | None = None,
        ray_namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
        _py_driver_sys_path: list[str] | None = None,
    ) -> None:
        _options.later("calling Java")("JobConfig: jvm_options", jvm_options)
        _options.later("loading code by path")("JobConfig: code_search_path", code_search_path)
        self.runtime_env: Any = None
        self.set_runtime_env(runtime_env)
        _options.later("detached by default", "non_detached")(
            "JobConfig: default_actor_lifetime", default_actor_lifetime
        )
        self.metadata: dict[str, str] = {}
        for key, value in (metadata or {}).items():
            self.set_metadata(key, value)
        self.ray_namespace: str | None = None
        if ray_namespace is not None:
            self.set_ray_namespace(ray_namespace)
        self.py_driver_sys_path: list[str] = list(_py_driver_sys_path or [])

    def set_metadata(self, key: str, value: str) -> None:
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"JobConfig: metadata is strings by string, not {key!r}: {value!r}")
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: dict[str, Any] | None, validate: bool = False) -> None:
        """Checked at once, whatever validate says."""
        self.runtime_env = _options.runtime_env("JobConfig: runtime_env", runtime_env)

    def set_ray_namespace(self, ray_namespace: str) -> None:
        self.ray_namespace = _options.text("JobConfig: ray_namespace", ray_namespace)

    def __repr__(self) -> str:
        return f"JobConfig(ray_namespace={self.ray_namespace!r}, metadata={self.metadata!r})"
