"""The names by which programs tell a client's objects: behind `ray://` they are the same as everywhere."""

from ray.actor import ActorClass as ClientActorClass
from ray.actor import ActorHandle as ClientActorHandle
from ray.object_ref import ObjectRef as ClientObjectRef
from ray.remote_function import RemoteFunction as ClientRemoteFunc

__all__ = ["ClientActorClass", "ClientActorHandle", "ClientObjectRef", "ClientRemoteFunc"]
