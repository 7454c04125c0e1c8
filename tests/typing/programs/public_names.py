"""One use of each public name of `ray`, for type checkers in their strict modes; nothing runs it."""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorClass, ActorHandle, ActorMethod, exit_actor
from ray.context import RayContext
from ray.dag import DAGNode, FunctionNode, InputNode, MultiOutputNode
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.experimental import TensorFlowVariables, get_object_locations
from ray.job_config import JobConfig
from ray.remote_function import RemoteFunction
from ray.runtime_context import RuntimeContext
from ray.runtime_env import RuntimeEnv
from ray.util import (
    ActorPool,
    RayExecutor,
    as_completed,
    get_node_ip_address,
    inspect_serializability,
    list_named_actors,
    map_unordered,
    placement_group,
    placement_group_table,
    register_serializer,
    remove_placement_group,
)
from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.multiprocessing import Pool
from ray.util.placement_group import PlacementGroup
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from ray.util.state import list_actors, list_tasks, summarize_tasks


@ray.remote
def double(x: int) -> int:
    return 2 * x


@ray.remote(num_cpus=0.5, max_retries=0)
def join(a: str, b: str = "") -> str:
    return a + b


@ray.remote
class Keeper:
    def __init__(self, start: int) -> None:
        self.n = start

    @ray.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.n, -self.n

    def leave(self) -> None:
        exit_actor()


def session() -> str:
    config: JobConfig = ray.JobConfig(ray_namespace="n", metadata={"a": "b"})
    logging_config = ray.LoggingConfig(encoding="JSON", log_level="INFO")
    context = ray.init(
        num_cpus=1, job_config=config, logging_config=logging_config, runtime_env=RuntimeEnv(env_vars={})
    )
    assert ray.is_initialized()
    assert isinstance(context, RayContext)
    address: str = context["address"]
    resources: dict[str, float] = ray.cluster_resources()
    free: dict[str, float] = ray.available_resources()
    events: Any = ray.timeline()
    print(ray.nodes(), resources, free, events, ray.__version__, ray.SCRIPT_MODE, ray.Language.PYTHON)
    ray.log.setup_logger("info")
    ray.shutdown()
    return address


def calls() -> list[int]:
    ref: ray.ObjectRef[int] = double.remote(2)
    put: ray.ObjectRef[str] = ray.put("a")
    ready, rest = ray.wait([ref], num_returns=1, timeout=1.0)
    one: int = ray.get(ref, timeout=1.0)
    many: list[int] = ray.get([ref, *ready, *rest])
    text: str = ray.get(join.options(num_cpus=1).remote(put))
    ray.cancel(ref, force=False)
    function: RemoteFunction[..., ray.ObjectRef[int]] = double
    print(one, text, function, ref.hex(), ray.ObjectID.nil(), ray.get_gpu_ids())
    return many


async def awaits() -> int:
    ready, _ = await ray.wait_async([double.remote(1)])
    return await ready[0]


def actors() -> None:
    keeper: ActorHandle[Any] = Keeper.remote(1)
    found: ActorHandle[Any] = ray.get_actor("name", namespace="n")
    plain: ActorMethod = keeper.both
    print(plain.remote(), plain.bind().execute(), found, list_named_actors())
    actor_class: ActorClass[Any] = Keeper.options(name="k", lifetime="detached")
    print(actor_class.remote(2))
    ray.kill(keeper, no_restart=True)


def here() -> list[ray.NodeID | ray.JobID | ray.WorkerID]:
    context: RuntimeContext = ray.get_runtime_context()
    task: ray.TaskID | None = context.task_id
    actor: ray.ActorID | None = context.actor_id
    print(task, actor, context.get_node_id())
    return [context.node_id, context.job_id, context.worker_id]


def errors() -> str:
    try:
        ray.get(double.remote(1))
    except GetTimeoutError:
        return "late"
    except RayTaskError as error:
        return str(error.cause)
    except (RayActorError, RayError) as error:
        return str(error)
    return ""


def graphs() -> list[Any]:
    with InputNode() as inp:
        node: FunctionNode[ray.ObjectRef[int]] = double.bind(inp)
        both = MultiOutputNode([node, double.bind(inp.x), double.bind(inp[0])])
    result: ray.ObjectRef[int] = node.execute(1)
    some: DAGNode[Any] = Keeper.bind(1).both.bind()
    print(ray.get(result), some.execute())
    return both.execute(1)


def libraries() -> None:
    pool: Any = ActorPool([Keeper.remote(1)])
    queue: Any = Queue(maxsize=2)
    try:
        queue.get(block=False)
    except Empty:
        print(pool, get_node_ip_address(), inspect_serializability(double))
    for value in as_completed([double.remote(1)]):
        print(value)
    for value in map_unordered(double, [1, 2]):
        print(value)
    with Pool(2) as processes, RayExecutor() as executor:
        print(processes.map(abs, [1]), executor.submit(abs, 1).result())
    register_serializer(int, serializer=str, deserializer=int)
    group: PlacementGroup = placement_group([{"CPU": 1}], strategy="PACK", bundle_label_selector=[{"zone": "a"}])
    print(placement_group_table(group), group.wait(1), get_object_locations([double.remote(1)]))
    double.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote(1)
    double.options(scheduling_strategy=NodeAffinitySchedulingStrategy("00", soft=True)).remote(1)
    remove_placement_group(group)
    Counter("c", tag_keys=("k",)).inc(1.0, {"k": "v"})
    Gauge("g").set(1.0)
    Histogram("h", boundaries=[1.0]).observe(2.0)
    print(list_actors(), list_tasks(limit=10), summarize_tasks(), ray.util.client.ray.is_connected())
    weights: dict[str, Any] = TensorFlowVariables(object()).get_weights()
    print(weights)
