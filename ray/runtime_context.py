"""The public noun RuntimeContext: where the code that asks is running. Holds nothing, asks the engine each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray._protocol.resources import UNITS
from ray.types import ActorID, JobID, NodeID, TaskID, WorkerID

if TYPE_CHECKING:
    from ray.runtime_env import RuntimeEnv


class RuntimeContext:
    """What `ray.get_runtime_context()` returns. Each property asks anew, so one object may be kept."""

    def get(self) -> dict[str, Any]:
        """All that is known, as a dict; ids as id objects."""
        return {
            "job_id": self.job_id,
            "node_id": self.node_id,
            "worker_id": self.worker_id,
            "task_id": self.task_id,
            "actor_id": self.actor_id,
            "namespace": self.namespace,
        }

    # --- ids as objects ------------------------------------------------------------------------------------------

    @property
    def job_id(self) -> JobID:
        return JobID(self._context()["job_id"])

    @property
    def node_id(self) -> NodeID:
        return NodeID(self._context()["node_id"])

    @property
    def worker_id(self) -> WorkerID:
        return WorkerID(self._context()["worker_tag"])

    @property
    def task_id(self) -> TaskID | None:
        """Of the task that asks; None in a driver."""
        task_id = self._context()["task_id"]
        return TaskID(task_id) if task_id else None

    @property
    def actor_id(self) -> ActorID | None:
        """Of the actor that asks; None outside actors."""
        actor_id = self._context()["actor_id"]
        return ActorID(actor_id) if actor_id else None

    # --- ids as text ---------------------------------------------------------------------------------------------

    def get_job_id(self) -> str:
        return self.job_id.hex()

    def get_node_id(self) -> str:
        return self.node_id.hex()

    def get_worker_id(self) -> str:
        return self.worker_id.hex()

    def get_task_id(self) -> str | None:
        task_id = self.task_id
        return task_id.hex() if task_id else None

    def get_actor_id(self) -> str | None:
        actor_id = self.actor_id
        return actor_id.hex() if actor_id else None

    def get_actor_name(self) -> str | None:
        """The name= of the actor that asks, "" if it has none; None outside actors."""
        own = self._engine().own_actor()
        return None if own is None else str(own[2])

    # --- the rest ------------------------------------------------------------------------------------------------

    @property
    def namespace(self) -> str:
        from ray import _driver

        return _driver.namespace()

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor has been restarted.

        Raises: RuntimeError: outside an actor.
        """
        context = self._context()
        if not context["actor_id"]:
            raise RuntimeError("was_current_actor_reconstructed: this is not an actor")
        return bool(context.get("incarnation", 0))

    @property
    def current_actor(self) -> Any:
        """A handle of the actor that asks. It keeps the actor alive where it is passed on to others, not while the
        actor has it.

        Raises: RuntimeError: outside an actor.
        """
        from ray import actor

        handle = actor.itself()
        if handle is None:
            raise RuntimeError("current_actor: this is not an actor")
        return handle

    def get_task_name(self) -> str | None:
        name = self._context().get("task_name")
        return None if name is None else str(name)

    def get_task_function_name(self) -> str | None:
        return self.get_task_name()

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task or actor holds, by resource."""
        held = self._context().get("resources") or {}
        return {name: units / UNITS for name, units in held.items()}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": [str(i) for i in self._context().get("gpu_ids") or []]}

    def get_resource_ids(self) -> dict[str, list[str]]:
        return self.get_accelerator_ids()

    def get_runtime_env_string(self) -> str:
        """The runtime environment that this process lives in, as JSON; in a driver, the one of its tasks."""
        return str(self._context().get("runtime_env") or "{}")

    @property
    def runtime_env(self) -> RuntimeEnv:
        """The same as a ray.runtime_env.RuntimeEnv; what was packed is named by its URI."""
        from ray.runtime_env import RuntimeEnv

        return RuntimeEnv.deserialize(self.get_runtime_env_string())

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what this task submits goes into its placement group, unless it says otherwise."""
        place = self._context()["place"]
        return place is not None and bool(place[3])

    def get_placement_group_id(self) -> str | None:
        """Of the placement group that the caller runs in; None: in none."""
        place = self._context()["place"]
        return None if place is None else bytes(place[1]).hex()

    @property
    def gcs_address(self) -> str:
        return str(self._engine().session_dir)

    def _engine(self) -> Any:
        from ray import api

        return api.engine()

    def _context(self) -> dict[str, Any]:
        context: dict[str, Any] = self._engine().context()
        return context

    def __repr__(self) -> str:
        return f"RuntimeContext({self.get()!r})"


def get_runtime_context() -> RuntimeContext:
    """The RuntimeContext of the driver, task or actor that calls."""
    return RuntimeContext()


def get_gpu_ids() -> list[int]:
    """Ids of the GPUs that the running task or actor may use: a list like [] or [1] or [2, 5, 6]. In a driver: []."""
    return list(RuntimeContext()._context().get("gpu_ids") or [])
