"""TensorFlowVariables in eager mode, with stand-ins for variables. With TensorFlow itself: tests/third_party."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import ray
from ray.experimental import TensorFlowVariables


class Variable:
    """What the library uses of a tf.Variable."""

    def __init__(self, name, value):
        self.name = name
        self.value = np.array(value, dtype=np.float32)
        self.shape = self.value.shape

    def numpy(self):
        return self.value

    def assign(self, value):
        if np.shape(value) != self.shape:
            raise ValueError(f"{self.name}: {np.shape(value)} is not {self.shape}")
        self.value[...] = value


@pytest.fixture(autouse=True)
def tensorflow(monkeypatch):
    module = ModuleType("tensorflow")
    module.executing_eagerly = lambda: True
    monkeypatch.setitem(sys.modules, "tensorflow", module)


@pytest.fixture
def model():
    return SimpleNamespace(variables=[Variable("dense:0", [[1, 2], [3, 4]]), Variable("bias:0", [5])])


def test_weights_go_out_and_in_by_name(model):
    variables = TensorFlowVariables(model)
    weights = variables.get_weights()
    assert list(weights) == ["dense", "bias"] and weights["dense"].tolist() == [[1, 2], [3, 4]]
    model.variables[1].assign([9])
    assert weights["bias"].tolist() == [5], "what was got must not change with the model"
    variables.set_weights({"bias": np.zeros(1), "of another model": np.zeros(3)})
    assert variables.get_flat().tolist() == [1, 2, 3, 4, 0]


def test_flat_weights_are_in_the_order_of_the_variables(model):
    variables = TensorFlowVariables(model)
    variables.set_flat(np.arange(5))
    assert variables.get_flat_size() == 5 and variables.get_flat().tolist() == [0, 1, 2, 3, 4]
    assert model.variables[0].value.tolist() == [[0, 1], [2, 3]]


def test_variables_of_one_name_are_told_apart_and_none_counts_twice(model):
    twins = [Variable("kernel", [1]), Variable("kernel", [2])]
    variables = TensorFlowVariables([*twins, model], input_variables=[twins[0], Variable("kernel", [3])])
    assert list(variables.variables) == ["kernel", "kernel_1", "dense", "bias", "kernel_2"]
    assert repr(variables) == "TensorFlowVariables(kernel, kernel_1, dense, bias, kernel_2)"


def test_wrong_arguments_say_what_would_do(model):
    variables = TensorFlowVariables(model)
    with pytest.raises(ValueError, match="expected 5 numbers, as get_flat returns, not 4"):
        variables.set_flat(np.zeros(4))
    with pytest.raises(ValueError, match="none of 'x' is a variable here; there are 'dense', 'bias'"):
        variables.set_weights({"x": np.zeros(1)})
    with pytest.raises(TypeError, match="3 has no variables: in eager mode give the model"):
        TensorFlowVariables(3)
    with pytest.raises(ValueError, match="depends on no variables"):
        TensorFlowVariables([])


def test_it_is_where_programs_look_for_it():
    assert ray.experimental.TensorFlowVariables is TensorFlowVariables
    assert ray.experimental.tf_utils.TensorFlowVariables is TensorFlowVariables
