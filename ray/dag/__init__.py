"""Graphs of calls that are written down first and run later, as often as one likes: `f.bind(x)`, then `node.execute()`.

In the process that calls `execute`, in its thread; nothing here has a thread or keeps anything of a run. A graph is
made of nodes that never change: `bind` of a remote function, an actor class or an actor's method makes one, whose
arguments may be other nodes. `execute` submits each call once, arguments first, and hands refs on without waiting.
Actors that a run makes live as long as anything of that run does. Start reading at `dag_node.py`.
"""

from ray.dag.class_node import ClassMethodNode, ClassNode
from ray.dag.dag_node import DAGNode
from ray.dag.function_node import FunctionNode
from ray.dag.input_node import DAGInputData, InputAttributeNode, InputNode
from ray.dag.output_node import MultiOutputNode

__all__ = [
    "ClassMethodNode",
    "ClassNode",
    "DAGInputData",
    "DAGNode",
    "FunctionNode",
    "InputAttributeNode",
    "InputNode",
    "MultiOutputNode",
]
