"""Every error that a program using ray can catch.

    RayError
      RayTaskError                 user code raised; also an instance of the class of what it raised
      RayActorError                an actor can't answer: ActorDiedError, ActorUnavailableError
      ...                          something died, was lost, is full, or took too long

No I/O and nothing of ray is imported: every process, the driver first of all, loads this file. An error says what
happened, what usually causes it, what to try, and the ids to search the logs for. Each can be pickled whatever its
constructor takes, because what is stored is its fields; so a subclass needs no `__reduce__`.
"""

from __future__ import annotations

import sys
from weakref import WeakValueDictionary

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing, which takes longer than all of this file
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar


def _rebuild(cls: type[RayError], args: tuple[Any, ...], fields: dict[str, Any]) -> RayError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    error.__cause__ = fields.get("cause")
    return error


class RayError(Exception):
    """The base of all errors that come from ray.

    Args:
        message: what happened, in this case; the class has words of its own if it is missing.
        facts: ids, process ids, exit codes (see FACTS of the class); become attributes, None where not given. bytes
            read as hex.
    """

    HAPPENED: ClassVar[str] = "An error occurred in ray."
    CAUSES: ClassVar[str] = ""
    TRY: ClassVar[str] = ""
    FACTS: ClassVar[tuple[str, ...]] = ()

    cause: BaseException | None

    def __init__(self, message: object = None, /, *, cause: BaseException | None = None, **facts: Any) -> None:
        text = self.HAPPENED if message is None else str(message)
        super().__init__(text)
        self.args: tuple[Any, ...] = (text,)  # OSError, of which the timeouts are subclasses too, would leave it empty
        self.cause = cause
        self.__cause__ = cause
        for name in facts:
            if name not in self.FACTS:
                raise TypeError(f"{type(self).__name__} has no fact {name!r}; it has {', '.join(self.FACTS) or 'none'}")
        for name in self.FACTS:
            fact = facts.get(name)
            self.__dict__[name] = fact.hex() if isinstance(fact, (bytes, bytearray, memoryview)) else fact

    def __getattr__(self, name: str) -> Any:
        # Only for facts of errors made without __init__; attributes that exist don't come here.
        if name in type(self).FACTS or name == "cause":
            return None
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        parts = [str(self.args[0]) if self.args else self.HAPPENED]
        facts = [f"{name}={self.__dict__[name]}" for name in self.FACTS if self.__dict__.get(name) is not None]
        if facts:
            parts.append(f"  ids: {', '.join(facts)}")
        if self.cause is not None:
            # One line of it: the whole is printed above this error, as its __cause__.
            parts.append(f"  caused by: {_one_line(self.cause)}")
        if self.CAUSES:
            parts.append(f"  likely causes: {self.CAUSES}")
        if self.TRY:
            parts.append(f"  what to try: {self.TRY}")
        return "\n".join(parts)


def _one_line(error: BaseException) -> str:
    if isinstance(error, RayTaskError):  # its first line says where, its last what (but for remarks in brackets)
        lines = [line for line in error.traceback_str.strip().splitlines() if not line.startswith("(")]
        return lines[-1] if lines else type(error).__name__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# ---- user code raised ------------------------------------------------------------------------------------------------


class RayTaskError(RayError):
    """A task or actor method raised. What `ray.get` raises is also an instance of the class of that exception.

    Args:
        function_name: for example "f" or "Counter.increment".
        traceback_str: the remote traceback, without a heading: the user's frames, then the exception.
        cause: the exception itself; None if it could not be pickled (traceback_str then says why).
        pid, ip: the process that ran it.  actor_repr, actor_id: the actor, if it was one.
    """

    FACTS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException | None,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
    ) -> None:
        super().__init__(traceback_str, cause=cause)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.proctitle = proctitle
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.actor_id = actor_id

    def fields(self, cause: BaseException | None) -> tuple[Any, ...]:
        """The constructor's arguments with another cause, and whether self is a dual: what pickling stores."""
        return (
            self.function_name,
            self.traceback_str,
            cause,
            self.proctitle,
            self.pid,
            self.ip,
            self.actor_repr,
            self.actor_id,
            type(self) is not RayTaskError,
        )

    def __reduce__(self) -> Any:
        cause = self.cause
        if cause is not None:
            import cloudpickle

            # There and back: another pickler than ray's makes the copy by calling its constructor, which may not take
            # args.
            if not is_picklable_with(lambda error: cloudpickle.loads(cloudpickle.dumps(error)), cause):
                cause = None
        return rebuild_task_error, self.fields(cause)

    def __str__(self) -> str:
        where = [f"pid={self.pid}"] if self.pid is not None else []
        if self.ip is not None:
            where.append(f"ip={self.ip}")
        if self.actor_repr is not None:
            where.append(f"actor={self.actor_repr}")
        place = f" ({', '.join(where)})" if where else ""
        return f"ray::{self.function_name}(){place}\n{self.traceback_str}".rstrip("\n")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.function_name!r}, {_one_line(self)!r})"

    def as_instanceof_cause(self) -> RayTaskError:
        """The same error, as an instance of the class of its cause as well.

        Returns self where there is no such class: the cause is missing, is none of `Exception` (SystemExit would end
        whoever meets it), or is of a class that can't be inherited from together with this one.
        """
        if self.cause is None or not isinstance(self.cause, Exception):
            return self
        try:
            return self.make_dual_exception_instance()
        except (
            Exception
        ) as error:  # a metaclass, an __init_subclass__, a layout: the plain error says all but the class
            self.__dict__["no_dual"] = f"{type(error).__name__}: {error}"
            return self

    def make_dual_exception_instance(self) -> RayTaskError:
        """An instance of make_dual_exception_type() with the fields of both."""
        cause = self.cause
        assert cause is not None
        dual: RayTaskError = new_exception(self.make_dual_exception_type(), cause.args)
        dual.__dict__.update(self.__dict__)
        BaseException.__dict__["__cause__"].__set__(dual, cause)  # a frozen dataclass may forbid the plain assignment
        _copy_native_fields(cause, dual)
        return dual

    def make_dual_exception_type(self) -> type[RayTaskError]:
        """The class `RayTaskError(X)`, a subclass of RayTaskError and of X, the class of the cause."""
        cls = type(self.cause)
        dual = _dual_types.get(cls)
        if dual is None:
            name = f"RayTaskError({cls.__name__})"
            namespace = {
                "__module__": __name__,
                "__qualname__": name,
                "__init__": _dual_init,
                "__getattr__": _dual_getattr,
            }
            dual = _dual_types[cls] = type(name, (RayTaskError, cls), namespace)
        return dual


# One class per class of cause, as long as somebody uses it.
_dual_types: WeakValueDictionary[type, type[RayTaskError]] = WeakValueDictionary()


def _dual_init(self: RayTaskError, *args: object, **kwargs: object) -> None:
    raise TypeError(f"{type(self).__name__} comes out of RayTaskError.as_instanceof_cause() only")


def _dual_getattr(self: RayTaskError, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    cause = self.__dict__.get("cause")
    if cause is None:
        raise AttributeError(name)
    return getattr(cause, name)


def new_exception(cls: Any, args: tuple[Any, ...]) -> Any:
    """An exception of class cls with these args, made without running any `__init__` or `__new__` written in Python.

    The nearest class written in C sets up its own part of the object: nobody else can.
    """
    native: Any = next(base for base in cls.__mro__ if not base.__flags__ & (1 << 9) and "__new__" in base.__dict__)
    group = getattr(sys.modules["builtins"], "BaseExceptionGroup", None)
    try:
        error = native.__new__(cls, *args)
        if native not in (BaseException, Exception, group):
            native.__init__(error, *args)
    except (TypeError, ValueError):  # args that aren't that class's own; an exception group can do without nothing
        # The class whose layout cls has; the nearest one may be another (MemoryError's __new__ refuses such a class).
        layout: Any = cls
        while layout.__flags__ & (1 << 9):
            layout = layout.__base__
        error = layout.__new__(cls)
    if group is None or not isinstance(error, group):
        BaseException.__dict__["args"].__set__(error, args)
    return error


def _copy_native_fields(source: BaseException, target: BaseException) -> None:
    # errno, filename, code, value, __slots__: not in __dict__, and as attributes of the class they hide __getattr__.
    for base in type(source).__mro__:
        if base in (BaseException, object):
            continue
        for name, attribute in base.__dict__.items():
            if type(attribute).__name__ in ("member_descriptor", "getset_descriptor") and not name.startswith("__"):
                try:
                    setattr(target, name, getattr(source, name))
                except (
                    AttributeError,
                    TypeError,
                ):  # not set in source, or read-only: then __new__ has set it from args
                    continue


def is_picklable_with(dump: Callable[[Any], object], value: object) -> bool:
    """Whether dump(value) works."""
    try:
        dump(value)
    except Exception:  # a user's __reduce__ may raise anything, and whatever it is, the answer is no
        return False
    return True


def rebuild_task_error(*fields: Any) -> RayTaskError:
    """Unpickles a RayTaskError from RayTaskError.fields()."""
    error = RayTaskError(*fields[:-1])
    return error.as_instanceof_cause() if fields[-1] else error


class CrossLanguageError(RayError):
    """A task in another language raised; the text is what that language said."""

    HAPPENED: ClassVar[str] = "A task written in another language raised an exception."


class UnserializableException(RayError):
    """Stands for an exception that could not be unpickled here."""

    HAPPENED: ClassVar[str] = "The exception of a task could not be unpickled in this process."
    CAUSES: ClassVar[str] = (
        "its class is in a module that can't be imported here; its constructor takes other arguments than it stores"
    )
    TRY: ClassVar[str] = "import its module here; give the exception class a __reduce__ method"


class TaskCancelledError(RayError):
    """The task was cancelled before it had finished."""

    HAPPENED: ClassVar[str] = "The task was cancelled."
    CAUSES: ClassVar[str] = (
        "ray.cancel() was called with its ref; the task that submitted it was cancelled with recursive=True"
    )
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "function_name")


class TaskTimeoutError(RayError, TimeoutError):
    """The task ran longer than it was allowed to."""

    HAPPENED: ClassVar[str] = "The task ran longer than its timeout."
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "function_name", "timeout_s")


# ---- waiting ---------------------------------------------------------------------------------------------------------


class GetTimeoutError(RayError, TimeoutError):
    """`ray.get(refs, timeout=...)` ended before all of the objects were there."""

    HAPPENED: ClassVar[str] = "Not all objects were ready before the timeout."
    TRY: ClassVar[str] = "a longer timeout; ray.wait(), which returns what is ready"
    FACTS: ClassVar[tuple[str, ...]] = ("timeout_s", "waiting_for")


RayTimeoutError = GetTimeoutError  # its older name


class PlasmaObjectNotAvailable(RayError):
    """The object is not in this node's store, or not within the time given."""

    HAPPENED: ClassVar[str] = "The object was not in the local object store in time."
    FACTS: ClassVar[tuple[str, ...]] = ("object_id",)


class PendingCallsLimitExceeded(RayError):
    """The actor handle already has max_pending_calls calls waiting."""

    HAPPENED: ClassVar[str] = "Too many calls are waiting on this actor handle."
    CAUSES: ClassVar[str] = "calls are submitted faster than the actor can answer them"
    TRY: ClassVar[str] = "wait for some results before submitting more; a larger max_pending_calls; more actors"
    FACTS: ClassVar[tuple[str, ...]] = ("actor_id", "pending", "limit")


# ---- processes that died ---------------------------------------------------------------------------------------------

_WHY_PROCESSES_DIE = (
    "the machine ran out of memory and the kernel killed it (dmesg says so); a crash in a C extension; it "
    "called os._exit(); somebody killed it"
)


class WorkerCrashedError(RayError):
    """The worker died while it was running the task, and the task has no retries left."""

    HAPPENED: ClassVar[str] = "The worker process died while it was running the task."
    CAUSES: ClassVar[str] = _WHY_PROCESSES_DIE
    TRY: ClassVar[str] = (
        "the worker's log in the session folder; max_retries, if the task may run again; fewer tasks at a time"
    )
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "function_name", "pid", "exit_code", "signal", "node_id", "attempts")


class NodeDiedError(RayError):
    """The node died."""

    HAPPENED: ClassVar[str] = "A node died, and with it the task that ran or the object that lay there."
    CAUSES: ClassVar[str] = "the machine or its network failed; its ray processes were killed"
    FACTS: ClassVar[tuple[str, ...]] = ("node_id", "ip", "task_id", "object_id")


class LocalRayletDiedError(RayError):
    """This machine's node process, which schedules tasks and starts workers, died."""

    HAPPENED: ClassVar[str] = "The node process (local scheduler) of this machine died."
    CAUSES: ClassVar[str] = _WHY_PROCESSES_DIE
    TRY: ClassVar[str] = "ray.shutdown() and ray.init() again; the logs in the session folder"
    FACTS: ClassVar[tuple[str, ...]] = ("node_id", "pid", "session_dir")


class RayActorError(RayError):
    """An actor can't answer. Either it is dead (ActorDiedError), or it may come back (ActorUnavailableError)."""

    HAPPENED: ClassVar[str] = "The actor could not answer this call."
    FACTS: ClassVar[tuple[str, ...]] = (
        "actor_id",
        "class_name",
        "name",
        "pid",
        "exit_code",
        "signal",
        "node_id",
        "actor_init_failed",
        "preempted",
    )


class ActorDiedError(RayActorError):
    """The actor is dead and won't come back. `cause` is what its `__init__` raised, if that was it."""

    HAPPENED: ClassVar[str] = "The actor died and will not be restarted."
    CAUSES: ClassVar[str] = (
        f"its __init__ raised; {_WHY_PROCESSES_DIE}; ray.kill(), or its last handle went out of scope"
    )
    TRY: ClassVar[str] = (
        "the worker's log in the session folder; max_restarts to have it restarted; max_task_retries to repeat calls"
    )


class ActorUnavailableError(RayActorError):
    """The actor can't be reached now; it may be restarting. The call may or may not have run."""

    HAPPENED: ClassVar[str] = "The actor can't be reached at the moment. The call may or may not have run."
    CAUSES: ClassVar[str] = "the actor is restarting; the connection to it broke"
    TRY: ClassVar[str] = "call again; max_task_retries, if the method may run twice"


class AsyncioActorExit(RayError):
    """Raised inside an asyncio actor to end it: what `ray.actor.exit_actor()` raises there."""

    HAPPENED: ClassVar[str] = "The actor exits."


# ---- scheduling ------------------------------------------------------------------------------------------------------


class TaskUnschedulableError(RayError):
    """The task can't be placed on any node, ever."""

    HAPPENED: ClassVar[str] = "The task can't be scheduled."
    CAUSES: ClassVar[str] = "the node that it was bound to is gone; no node has the resources that it asks for"
    TRY: ClassVar[str] = "ray.cluster_resources(); a smaller request; soft=True in its scheduling strategy"
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "function_name", "resources")


class ActorUnschedulableError(RayError):
    """The actor can't be placed on any node, ever."""

    HAPPENED: ClassVar[str] = "The actor can't be scheduled."
    CAUSES: ClassVar[str] = TaskUnschedulableError.CAUSES
    TRY: ClassVar[str] = TaskUnschedulableError.TRY
    FACTS: ClassVar[tuple[str, ...]] = ("actor_id", "class_name", "resources")


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed."""

    HAPPENED: ClassVar[str] = "The placement group that the task was to run in has been removed."
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "placement_group_id")


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor was removed."""

    HAPPENED: ClassVar[str] = "The placement group that the actor was to run in has been removed."
    FACTS: ClassVar[tuple[str, ...]] = ("actor_id", "placement_group_id")


class ActorAlreadyExistsError(RayError, ValueError):
    """An actor of that name exists already in the namespace."""

    HAPPENED: ClassVar[str] = "An actor of this name exists already."
    TRY: ClassVar[str] = "ray.get_actor(name); get_if_exists=True; another name or namespace"
    FACTS: ClassVar[tuple[str, ...]] = ("name", "namespace", "actor_id")


class RuntimeEnvSetupError(RayError):
    """The runtime environment could not be built."""

    HAPPENED: ClassVar[str] = "The runtime environment could not be built."
    FACTS: ClassVar[tuple[str, ...]] = ("runtime_env", "node_id")


# ---- objects ---------------------------------------------------------------------------------------------------------


class ObjectLostError(RayError):
    """No copy of the object is left and it can't be computed again."""

    HAPPENED: ClassVar[str] = "The object is lost: no copy of it is left, and it can't be computed again."
    CAUSES: ClassVar[str] = (
        "the object store or the node that held it died; it was made by ray.put() or by an actor, which has no lineage"
    )
    TRY: ClassVar[str] = "make it with a task, which can run again; max_retries above 0 for that task"
    FACTS: ClassVar[tuple[str, ...]] = ("object_id", "owner", "call_site", "node_id")

    @property
    def object_ref_hex(self) -> str | None:
        """The object's id."""
        return self.__dict__.get("object_id")


class ObjectFetchTimedOutError(ObjectLostError):
    """The object's copy could not be fetched in time."""

    HAPPENED: ClassVar[str] = "The object could not be fetched from the node that holds it in time."
    CAUSES: ClassVar[str] = "the network or that node is overloaded; that node died a moment ago"
    TRY: ClassVar[str] = "again later"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was freed although somebody still refers to it: a mistake in ray."""

    HAPPENED: ClassVar[str] = "The object was freed while it was still referred to."
    CAUSES: ClassVar[str] = "a ref was pickled outside of ray; a mistake in ray: please report it"
    TRY: ClassVar[str] = "pass refs to tasks, actors and ray.put() only"


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand."""

    HAPPENED: ClassVar[str] = "The object was freed by an explicit call."
    CAUSES: ClassVar[str] = "ray.internal.free() was called for it"
    TRY: ClassVar[str] = "call free() later, or not at all"


class OwnerDiedError(ObjectLostError):
    """The process that made the object's ref died, and nobody else has it: it was not there yet, or was lost since."""

    HAPPENED: ClassVar[str] = "The process that owned the object died, and nobody else has it."
    CAUSES: ClassVar[str] = f"the task or actor that created the ref died; {_WHY_PROCESSES_DIE}; the driver ended"
    TRY: ClassVar[str] = (
        "create the ref in a process that lives as long as the object is needed (the driver, or an actor)"
    )


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost, and computing it again failed."""

    HAPPENED: ClassVar[str] = "The object was lost, and it could not be computed again."
    CAUSES: ClassVar[str] = "an object that it is computed from is lost too and has no lineage"


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The object was lost, and its task has no retries left."""

    HAPPENED: ClassVar[str] = "The object was lost, and the task that makes it has no retries left."
    CAUSES: ClassVar[str] = "nodes or workers died repeatedly"
    TRY: ClassVar[str] = "a larger max_retries for the task"


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The object was lost, and how it was computed has been forgotten to bound memory."""

    HAPPENED: ClassVar[str] = (
        "The object was lost, and the description of the task that makes it was dropped to bound memory."
    )
    CAUSES: ClassVar[str] = "the lineage kept by its owner is larger than its limit in bytes"
    TRY: ClassVar[str] = "a larger RAY_max_lineage_bytes"


class ObjectStoreFullError(RayError):
    """There is no room for the object in the object store, though it was waited for."""

    HAPPENED: ClassVar[str] = "The object store is full."
    CAUSES: ClassVar[str] = "objects still referred to fill it: a ref, or an array made from one, keeps its object"
    TRY: ClassVar[str] = (
        "drop refs and arrays that are no longer needed; ray.init(object_store_memory=...); smaller objects"
    )
    FACTS: ClassVar[tuple[str, ...]] = ("nbytes", "capacity", "object_id", "holders")


class OutOfDiskError(RayError):
    """The disk that objects are spilled to is full."""

    HAPPENED: ClassVar[str] = "The disk that objects are spilled to is full."
    TRY: ClassVar[str] = "free disk space; spill to another disk"
    FACTS: ClassVar[tuple[str, ...]] = ("path", "nbytes", "node_id")


class OutOfMemoryError(RayError):
    """The task or actor was ended because its node was running out of memory."""

    HAPPENED: ClassVar[str] = "The worker was ended because its machine was running out of memory."
    TRY: ClassVar[str] = (
        "fewer tasks at a time: num_cpus=, or memory= in ray.remote(); less memory per task; a larger machine"
    )
    FACTS: ClassVar[tuple[str, ...]] = ("task_id", "function_name", "pid", "node_id", "rss_bytes", "limit_bytes")


class ActorOutOfMemoryError(ActorDiedError, OutOfMemoryError):
    """The actor was ended because its node was running out of memory, and won't come back: an OutOfMemoryError, and an
    ActorDiedError like any other actor's death."""

    HAPPENED: ClassVar[str] = OutOfMemoryError.HAPPENED
    CAUSES: ClassVar[str] = ""
    TRY: ClassVar[str] = OutOfMemoryError.TRY + "; max_restarts to have it restarted"
    FACTS: ClassVar[tuple[str, ...]] = (*ActorDiedError.FACTS, "rss_bytes", "limit_bytes")


class ObjectRefStreamEndOfStreamError(RayError):
    """The generator task has no more objects."""

    HAPPENED: ClassVar[str] = "The stream of object refs has ended."


class OutOfBandObjectRefSerializationException(RayError):
    """A ref was pickled by something other than ray, which nobody would keep its object alive for."""

    HAPPENED: ClassVar[str] = "An ObjectRef was pickled outside of ray."
    CAUSES: ClassVar[str] = "pickle.dumps() or cloudpickle.dumps() was called on a value that contains a ref"
    TRY: ClassVar[str] = "pass the ref, or a value that contains it, to a task, an actor or ray.put()"


OufOfBandObjectRefSerializationException = OutOfBandObjectRefSerializationException  # as it is spelled elsewhere


# ---- ray itself ------------------------------------------------------------------------------------------------------


class RaySystemError(RayError):
    """Something went wrong in ray itself, or in what it stands on."""

    HAPPENED: ClassVar[str] = "An internal error occurred in ray."
    FACTS: ClassVar[tuple[str, ...]] = ("session_dir", "node_id")


class RayChannelError(RaySystemError):
    """A channel between processes failed."""

    HAPPENED: ClassVar[str] = "A channel between processes failed."


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """An operation on a channel took too long."""

    HAPPENED: ClassVar[str] = "An operation on a channel took longer than its timeout."


class RayCgraphCapacityExceeded(RaySystemError):
    """A compiled graph has as many executions under way as it can hold."""

    HAPPENED: ClassVar[str] = "The compiled graph has too many executions under way."
    TRY: ClassVar[str] = "get some results first"


RayAdagCapacityExceeded = RayCgraphCapacityExceeded  # its older name


class RayDirectTransportError(RaySystemError):
    """A tensor could not be moved between actors directly."""

    HAPPENED: ClassVar[str] = "A direct transfer between actors failed."


class AuthenticationError(RayError):
    """A connection was refused because the token was missing or wrong."""

    HAPPENED: ClassVar[str] = "The cluster refused the connection: its token is missing or wrong."
    TRY: ClassVar[str] = "the token in the session folder, or the one that the cluster was started with"
