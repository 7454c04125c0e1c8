"""The weights of a TensorFlow model as numpy arrays, out of it and into it, so that calls can carry them.

In the process that has the model: in graph mode (tf.compat.v1, with a session) and in eager mode (TensorFlow 2) alike.
TensorFlow is imported when an object is made, not before. Nothing here talks to ray: weights are plain values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TensorFlowVariables"]


class TensorFlowVariables:
    """The variables that an output depends on, and their values as numpy arrays.

    In graph mode, of TensorFlow 1: `TensorFlowVariables(loss, session)`. What sets the weights is added to the graph
    once, here, so that `set_weights` in a loop doesn't make it grow. In eager mode, of TensorFlow 2:
    `TensorFlowVariables(model)`, where model is a Keras model or tf.Module, or a list of variables.

    Args:
        output: tensor, operation or a list of them, whose variables are looked for; in eager mode what has `variables`.
        sess: the session in which they live; may be given later by set_session. Not in eager mode.
        input_variables: further variables.
    Attributes: variables: by name, in an order that is the same wherever the same model is built.
    Raises: ValueError: there are no variables. TypeError: output is nothing that could have some.
    """

    variables: OrderedDict[str, Any]

    def __init__(self, output: Any, sess: Any = None, input_variables: Sequence[Any] | None = None) -> None:
        import tensorflow as tf  # it takes seconds, and only programs that use it have it

        self.sess: Any = sess
        outputs = list(output) if isinstance(output, (list, tuple)) else [output]
        further = list(input_variables or ())
        self._eager = sess is None and tf.executing_eagerly() and not any(_is_symbolic(one) for one in outputs)
        found = [*(_eager_variables(outputs) if self._eager else _graph_variables(outputs)), *further]
        self.variables = _named(found)
        if not self.variables:
            raise ValueError(f"TensorFlowVariables: {output!r} depends on no variables: there is nothing to get or set")
        self.placeholders: dict[str, Any] = {}
        self.assignment_nodes: dict[str, Any] = {}
        if not self._eager:
            self._add_assignments(tf.compat.v1)

    def _add_assignments(self, v1: Any) -> None:
        graph = next(iter(self.variables.values())).graph
        with graph.as_default():
            for name, variable in self.variables.items():
                placeholder = v1.placeholder(variable.dtype.base_dtype, variable.shape, name=f"placeholder_{name}")
                self.placeholders[name] = placeholder
                self.assignment_nodes[name] = variable.assign(placeholder, read_value=False)

    def set_session(self, sess: Any) -> None:
        """The session in which the variables live from now on."""
        self.sess = sess

    def get_flat_size(self) -> int:
        """How many numbers get_flat returns."""
        return sum(_size(variable) for variable in self.variables.values())

    def get_flat(self) -> npt.NDArray[Any]:
        """All weights in one array, [get_flat_size()], in the order of `variables`."""
        return np.concatenate([value.reshape(-1) for value in self.get_weights().values()])

    def set_flat(self, new_weights: npt.NDArray[Any]) -> None:
        """Sets all weights to what get_flat returned, here or of the same model elsewhere.

        Raises: ValueError: it has another size.
        """
        flat = np.asarray(new_weights).reshape(-1)
        if flat.size != self.get_flat_size():
            raise ValueError(f"set_flat: expected {self.get_flat_size()} numbers, as get_flat returns, not {flat.size}")
        split: dict[str, npt.NDArray[Any]] = {}
        at = 0
        for name, variable in self.variables.items():
            size = _size(variable)
            split[name] = flat[at : at + size].reshape(tuple(variable.shape))
            at += size
        self.set_weights(split)

    def get_weights(self) -> dict[str, npt.NDArray[Any]]:
        """The weights by name, as arrays of their own.

        Raises: RuntimeError: in graph mode, before there is a session.
        """
        if self._eager:
            # A copy: TensorFlow may hand out the variable's own memory, which the next step of training changes.
            return {name: np.array(variable.numpy()) for name, variable in self.variables.items()}
        return dict(self._session().run(dict(self.variables)))

    def set_weights(self, new_weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Sets those weights that are named; a name that this model doesn't have is passed over.

        Raises: ValueError: it has none of them, or a shape is wrong. RuntimeError: as get_weights.
        """
        known = [name for name in new_weights if name in self.variables]
        if not known:
            raise ValueError(
                f"set_weights: none of {', '.join(map(repr, new_weights)) or 'no names'} is a variable here; there are "
                f"{', '.join(map(repr, self.variables))}"
            )
        if self._eager:
            for name in known:
                self.variables[name].assign(new_weights[name])
            return
        feed = {self.placeholders[name]: new_weights[name] for name in known}
        self._session().run([self.assignment_nodes[name] for name in known], feed_dict=feed)

    def _session(self) -> Any:
        if self.sess is None:
            raise RuntimeError("TensorFlowVariables: there is no session: give sess=, or call set_session(sess)")
        return self.sess

    def __repr__(self) -> str:
        return f"TensorFlowVariables({', '.join(self.variables)})"


def _is_symbolic(output: Any) -> bool:
    """Of a graph: an operation, or a tensor that has one."""
    try:
        return hasattr(getattr(output, "op", output), "node_def")
    except AttributeError:  # what eager tensors say when asked for `op`
        return False


def _eager_variables(outputs: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for output in outputs:
        if hasattr(output, "assign") and hasattr(output, "numpy"):
            found.append(output)
        elif hasattr(output, "variables"):
            found += output.variables
        else:
            raise TypeError(
                f"TensorFlowVariables: {output!r} has no variables: in eager mode give the model, a tf.Module, or a "
                "list of variables"
            )
    return found


def _graph_variables(outputs: Iterable[Any]) -> list[Any]:
    """Those that lead to outputs, in the order in which the graph got them."""
    reached: set[str] = set()
    waiting = []
    for output in outputs:
        if not _is_symbolic(output):
            raise TypeError(f"TensorFlowVariables: {output!r} is no tensor or operation of a graph")
        waiting.append(getattr(output, "op", output))
    if not waiting:
        return []
    graph = waiting[0].graph
    while waiting:
        operation = waiting.pop()
        if operation.name not in reached:
            reached.add(operation.name)
            waiting += [tensor.op for tensor in operation.inputs]
            waiting += operation.control_inputs
    return [variable for variable in graph.get_collection("variables") if variable.op.name in reached]


def _named(variables: Iterable[Any]) -> OrderedDict[str, Any]:
    """By name; a second variable of a name gets a number, which counts up in their order."""
    named: OrderedDict[str, Any] = OrderedDict()
    seen: set[int] = set()
    for variable in variables:
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        base = getattr(variable, "path", None) or variable.name.split(":")[0]  # Keras 3 calls its kernels all "kernel"
        name, count = base, 0
        while name in named:
            count += 1
            name = f"{base}_{count}"
        named[name] = variable
    return named


def _size(variable: Any) -> int:
    return int(np.prod(tuple(variable.shape), dtype=np.int64))
