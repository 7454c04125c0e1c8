"""ray.dag: graphs of calls that run later."""

from __future__ import annotations

import collections
import pickle

import pytest

import ray
from ray.dag import ClassMethodNode, ClassNode, DAGInputData, FunctionNode, InputNode, MultiOutputNode
from ray.dag.input_node import InputNode as InputNodeByModule
from ray.dag.output_node import MultiOutputNode as MultiOutputNodeByModule

Pair = collections.namedtuple("Pair", "left right")


@ray.remote
def one():
    return 1


@ray.remote
def plus(a, b=0):
    return a + b


@ray.remote
def total(parts):
    """Of refs, inside containers."""
    return sum(ray.get(list(parts)))


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, n):
        self.n += n
        return self.n

    def get(self):
        return self.n

    @ray.method(num_returns=2)
    def both(self):
        return self.n, -self.n


@ray.remote
class Log:
    def __init__(self):
        self.lines = []

    def write(self, line):
        self.lines.append(line)
        return line

    def read(self):
        return self.lines


def test_a_function_node_runs_as_remote_does_and_each_time_anew(ray_shared):
    node = plus.bind(1, b=2)
    assert isinstance(node, FunctionNode) and node.get_args() == (1,) and node.get_kwargs() == {"b": 2}
    first, second = node.execute(), node.execute()
    assert isinstance(first, ray.ObjectRef) and first != second and ray.get([first, second]) == [3, 3]


def test_results_are_handed_on_and_a_node_that_two_need_runs_once(ray_shared):
    log = Log.remote()
    written = log.write.bind("once")
    dag = plus.bind(plus.bind(written, "a"), plus.bind(written, "b"))
    assert ray.get(dag.execute()) == "onceaonceb"
    assert ray.get(log.read.remote()) == ["once"]


def test_nodes_inside_containers_become_refs(ray_shared):
    a, b = one.bind(), plus.bind(1, 1)
    assert ray.get(total.bind([a, b]).execute()) == 3
    assert ray.get(total.bind((a, b, ray.put(4))).execute()) == 7

    @ray.remote
    def inside(value):
        return ray.get(value["x"][0]) + ray.get(value["pair"].left) + value["plain"]

    assert ray.get(inside.bind({"x": [a], "pair": Pair(b, None), "plain": 10}).execute()) == 13


def test_a_value_without_nodes_stays_the_object_it_was():
    from ray.dag.dag_node import replaced

    value = {"a": [1, (2,)]}
    assert replaced(value, {}) is value


def test_options_go_with_the_function(ray_shared):
    node = plus.options(num_cpus=0.5, name="small").bind(1)
    assert node.get_options()["num_cpus"] == 0.5
    assert ray.get(node.execute()) == 1


def test_the_input_is_the_value_that_execute_is_given(ray_shared):
    with InputNode() as inp:
        dag = plus.bind(plus.bind(inp, 1), inp)
    assert ray.get(dag.execute(2)) == 5 and ray.get(dag.execute(10)) == 21
    assert ray.get(dag.execute(ray.put(3))) == 7


def test_several_inputs_are_found_by_position_and_by_name(ray_shared):
    with InputNode() as inp:
        dag = plus.bind(inp[0], plus.bind(inp.x, inp["y"]))
        whole = plus.bind(inp, 1)
    assert ray.get(dag.execute(1, x=10, y=100)) == 111
    with pytest.raises(IndexError, match=r"uses input \[0\], and execute\(\) was given 0 arguments"):
        dag.execute(x=1, y=2)
    with pytest.raises(KeyError, match="uses input 'y', and execute\\(\\) was given x"):
        dag.execute(1, x=1)
    assert repr(whole.get_args()[0].x[0]) == "<InputNode>.x[0]"


def test_parts_of_one_value_are_its_items_and_attributes(ray_shared):
    with InputNode() as inp:
        dag = MultiOutputNode([plus.bind(inp.left["a"][0]), plus.bind(inp.right)])
    assert ray.get(dag.execute(Pair({"a": [7]}, 8))) == [7, 8]


def test_all_inputs_together_are_data_with_args_and_kwargs(ray_shared):
    @ray.remote
    def look(data):
        return type(data) is DAGInputData, data.args, data.kwargs

    with InputNode(input_type={0: int, "b": int}) as inp:
        dag = look.bind(inp)
    assert ray.get(dag.execute(1, b=2)) == (True, (1,), {"b": 2})


def test_several_ends_run_as_one_graph(ray_shared):
    log = Log.remote()
    shared = log.write.bind("x")
    dag = MultiOutputNode([plus.bind(shared, "1"), plus.bind(shared, "2"), shared])
    assert ray.get(dag.execute()) == ["x1", "x2", "x"]
    assert ray.get(log.read.remote()) == ["x"]


def test_an_actor_is_made_anew_by_each_run_and_its_calls_run_in_the_order_of_bind(ray_shared):
    counter = Counter.bind(10)
    assert isinstance(counter, ClassNode)
    counter.add.bind(2)
    counter.add.bind(plus.bind(1, 3))
    dag = counter.get.bind()
    assert isinstance(dag, ClassMethodNode) and dag.get_method_name() == "get"
    assert ray.get(dag.execute()) == 16
    assert ray.get(dag.execute()) == 16


def test_an_actor_node_gives_a_handle_and_may_be_an_argument(ray_shared):
    @ray.remote
    def use(counter, n):
        return ray.get(counter.add.remote(n))

    counter = Counter.bind(plus.bind(1, 1))
    handle = counter.execute()
    assert ray.get(handle.get.remote()) == 2
    assert ray.get(use.bind(counter, 5).execute()) == 7


def test_methods_of_a_living_actor_keep_its_state(ray_shared):
    counter = Counter.remote()
    with InputNode() as inp:
        dag = counter.add.bind(inp)
    assert [ray.get(dag.execute(n)) for n in (1, 2)] == [1, 3]
    pair = Counter.bind(3)
    assert ray.get(pair.both.bind().execute()) == [3, -3]
    assert ray.get(pair.add.options(name="listed so").bind(1).execute()) == 4


def test_a_long_chain_is_no_deep_recursion(ray_shared):
    node = plus.bind(0)
    for _ in range(1500):
        node = plus.bind(node, 1)
    assert ray.get(node.execute(), timeout=60) == 1500


def test_errors_of_a_step_reach_what_needs_it(ray_shared):
    dag = plus.bind(plus.bind(1, "a"), 1)
    with pytest.raises(TypeError, match="unsupported operand"):
        ray.get(dag.execute())


def test_graphs_travel(ray_shared):
    with InputNode() as inp:
        dag = plus.bind(plus.bind(inp.x, 1), inp.y)

    @ray.remote
    def run(graph):
        return ray.get(graph.execute(x=1, y=2)), graph.get_stable_uuid()

    assert ray.get(run.remote([dag][0])) == (4, dag.get_stable_uuid())
    assert pickle.loads(ray.cloudpickle.dumps(dag)).get_stable_uuid() == dag.get_stable_uuid()


def test_nodes_are_visited_once_each_with_those_they_need_first():
    a = one.bind()
    b = plus.bind(a, a)
    seen = []
    assert plus.bind(b, a).apply_recursive(lambda node: seen.append(node) or len(seen)) == 3
    assert seen[:2] == [a, b]


def test_what_makes_no_sense_is_refused_with_the_reason(ray_shared):
    with InputNode() as inp:
        dag = plus.bind(inp)
    with pytest.raises(TypeError, match="the graph has an InputNode: give what it stands for"):
        dag.execute()
    with pytest.raises(TypeError, match=r"1 argument\(s\) were given, and the graph has no InputNode"):
        one.bind().execute(1)
    with pytest.raises(ValueError, match=r"2 InputNodes: use one"):
        plus.bind(inp, InputNode()).execute(1)
    with pytest.raises(ValueError, match=r"Counter.bind\(\): an actor can't be made from the graph's InputNode"):
        Counter.bind(inp[0])
    with pytest.raises(AttributeError, match="Counter has no method 'ad'; did you mean 'add'"):
        Counter.bind().ad  # noqa: B018
    with pytest.raises(ValueError, match="expected a list of nodes"):
        MultiOutputNode(one.bind())
    with pytest.raises(ValueError, match="1 is no node"):
        MultiOutputNode([1])
    with pytest.raises(TypeError, match="can't be iterated over"):
        list(inp)
    with pytest.raises(NotImplementedError, match="compiled graphs are not built"):
        dag.experimental_compile()


def test_the_names_are_where_programs_look_for_them():
    assert InputNodeByModule is InputNode is ray.dag.InputNode and MultiOutputNodeByModule is MultiOutputNode
