"""Every code block of the documents that this project grew from runs: the walkthrough (001), 004 chapters 1.5 to 1.8.

Transcribed block by block, in order. Where the documents lost a decorator or a line in copying, it is back; sleeps are
shorter; what needs an old TensorFlow, gym or a download runs against the small stand-ins below, which do what the block
asks of them. Where a document's meaning has changed (`ray.wait` counts in seconds), today's rules.
"""

from __future__ import annotations

import os
import sys
import time
import types

import numpy as np
import pytest

import ray
from tests.wait import wait_until

# --- 001: the walkthrough --------------------------------------------------------------------------------------------


def test_001_starting_ray(engine):
    engine.stop()
    import ray

    # Start Ray. If you're connecting to an existing cluster, you would use
    # ray.init(address=<cluster-address>) instead.
    ray.init()
    assert ray.is_initialized()
    engine.stop()


def test_001_remote_functions(ray_shared):
    # A regular Python function.
    def regular_function():
        return 1

    # A Ray remote function.
    @ray.remote
    def remote_function():
        return 1

    assert regular_function() == 1

    object_id = remote_function.remote()

    # The value of the original `regular_function`
    assert ray.get(object_id) == 1

    # These happen serially.
    for _ in range(4):
        regular_function()

    # These happen in parallel.
    for _ in range(4):
        remote_function.remote()

    @ray.remote
    def remote_chain_function(value):
        return value + 1

    y1_id = remote_function.remote()
    assert ray.get(y1_id) == 1

    chained_id = remote_chain_function.remote(y1_id)
    assert ray.get(chained_id) == 2


@pytest.mark.parametrize("ray_start", [{"num_cpus": 8, "num_gpus": 4, "resources": {"Custom": 2}}], indirect=True)
def test_001_resources(ray_start):
    @ray.remote(num_cpus=4, num_gpus=2)
    def f():
        return 1

    assert ray.get(f.remote()) == 1

    # Ray also supports fractional resource requirements
    @ray.remote(num_gpus=0.5)
    def h():
        return 1

    assert ray.get(h.remote()) == 1

    # Ray support custom resources too.
    @ray.remote(resources={"Custom": 1})
    def f():
        return 1

    assert ray.get(f.remote()) == 1


def test_001_multiple_returns(ray_shared):
    @ray.remote(num_return_vals=3)
    def return_multiple():
        return 1, 2, 3

    a_id, b_id, c_id = return_multiple.remote()
    assert ray.get([a_id, b_id, c_id]) == [1, 2, 3]


def test_001_objects(ray_shared):
    y = 1
    object_id = ray.put(y)
    assert isinstance(object_id, ray.ObjectID)
    assert ray.get(ray.put(y, weakref=False)) == 1

    y = 1
    obj_id = ray.put(y)
    assert ray.get(obj_id) == 1


def test_001_get_with_a_timeout(ray_shared, capsys):
    from ray.exceptions import RayTimeoutError

    @ray.remote
    def long_running_function():
        time.sleep(0.5)

    obj_id = long_running_function.remote()
    try:
        ray.get(obj_id, timeout=0.1)
    except RayTimeoutError:
        print("`get` timed out.")
    assert capsys.readouterr().out == "`get` timed out.\n"
    ray.get(obj_id)


def test_001_wait(ray_shared):
    object_ids = [ray.put(i) for i in range(3)]
    ready_ids, remaining_ids = ray.wait(object_ids, num_returns=1, timeout=None)
    assert (ready_ids, remaining_ids) == (object_ids[:1], object_ids[1:])


def test_001_actors(ray_shared, capsys):
    @ray.remote
    class Counter:
        def __init__(self):
            self.value = 0

        def increment(self):
            self.value += 1
            return self.value

    a1 = Counter.remote()
    a2 = Counter.remote()
    assert ray.get(a2.increment.remote()) == 1

    obj_id = a1.increment.remote()
    assert ray.get(obj_id) == 1

    # Create ten Counter actors.
    counters = [Counter.remote() for _ in range(10)]

    # Increment each Counter once and get the results. These tasks all happen in
    # parallel.
    results = ray.get([c.increment.remote() for c in counters])
    print(results)  # prints [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]

    # Increment the first Counter five times. These tasks are executed serially
    # and share state.
    results = ray.get([counters[0].increment.remote() for _ in range(5)])
    print(results)  # prints [2, 3, 4, 5, 6]
    assert capsys.readouterr().out == "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n[2, 3, 4, 5, 6]\n"


@pytest.mark.parametrize("ray_start", [{"num_cpus": 2, "num_gpus": 1}], indirect=True)
def test_001_actor_resources(ray_start):
    @ray.remote(num_cpus=2, num_gpus=0.5)
    class Actor:
        def gpus(self):
            return ray.get_gpu_ids()

    assert ray.get(Actor.remote().gpus.remote()) == [0]


# --- 004, chapter 1.5: tutorial --------------------------------------------------------------------------------------


def test_004_1_5_starting_ray(engine):
    engine.stop()
    import ray

    ray.init()
    engine.stop()


def test_004_1_5_put_and_get(ray_shared):
    x = "example"
    assert repr(ray.put(x)).startswith("ObjectRef(")  # ObjectID(b49a32d72057bdcfc4dda35584b3d838aad89f5d)

    x_id = ray.put("example")
    assert ray.get(x_id) == "example"

    result_ids = [ray.put(i) for i in range(10)]
    assert ray.get(result_ids) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_004_1_5_remote_functions(ray_shared):
    def add1(a, b):
        return a + b

    @ray.remote
    def add2(a, b):
        return a + b

    x_id = add2.remote(1, 2)
    assert ray.get(x_id) == 3 == add1(1, 2)

    import time

    def f1():
        time.sleep(0.01)

    @ray.remote
    def f2():
        time.sleep(0.01)

    # The following takes ten seconds.
    [f1() for _ in range(10)]

    # The following takes one second (assuming the system has at least ten CPUs).
    ray.get([f2.remote() for _ in range(10)])

    ids = [add2.remote(1, 2), add2.remote(1, ray.put(2)), add2.remote(ray.put(1), ray.put(2))]
    assert ray.get(ids) == [3, 3, 3]

    @ray.remote(num_return_vals=3)
    def return_multiple():
        return 1, 2, 3

    a_id, b_id, c_id = return_multiple.remote()
    assert ray.get([a_id, b_id, c_id]) == [1, 2, 3]


def test_004_1_5_dependencies(ray_shared):
    @ray.remote
    def f(x):
        return x + 1

    x = f.remote(0)
    y = f.remote(x)
    z = f.remote(y)
    assert ray.get(z) == 3


def test_004_1_5_tree_reduce(ray_shared):
    import numpy as np

    @ray.remote
    def generate_data():
        return np.random.normal(size=1000)

    @ray.remote
    def aggregate_data(x, y):
        return x + y

    # Generate some random data. This launches 100 tasks that will be scheduled on
    # various nodes. The resulting data will be distributed around the cluster.
    data = [generate_data.remote() for _ in range(100)]
    expected = sum(ray.get(data))

    # Perform a tree reduce.
    while len(data) > 1:
        data.append(aggregate_data.remote(data.pop(0), data.pop(0)))

    # Fetch the result.
    (result,) = ray.get(data)
    np.testing.assert_allclose(result, expected)


def test_004_1_5_remote_functions_within_remote_functions(ray_shared):
    @ray.remote
    def sub_experiment(i, j):
        # Run the jth sub-experiment for the ith experiment.
        return i + j

    @ray.remote
    def run_experiment(i):
        sub_results = []
        # Launch tasks to perform 10 sub-experiments in parallel.
        for j in range(10):
            sub_results.append(sub_experiment.remote(i, j))
        # Return the sum of the results of the sub-experiments.
        return sum(ray.get(sub_results))

    results = [run_experiment.remote(i) for i in range(5)]
    assert ray.get(results) == [45, 55, 65, 75, 85]


# --- 004, chapter 1.6: the API ---------------------------------------------------------------------------------------


def test_004_1_6_init(engine):
    engine.stop()
    ray.init()
    engine.stop()

    ray.init(num_cpus=20, num_gpus=2)
    resources = ray.cluster_resources()
    assert (resources["CPU"], resources["GPU"]) == (20, 2)
    engine.stop()


def test_004_1_6_connecting_to_a_cluster_that_is_not_there_names_its_address(engine):
    engine.stop()
    with pytest.raises((ConnectionError, ValueError), match=r"12\.345\.67\.89"):
        ray.init(redis_address="12.345.67.89:6379")


def test_004_1_6_init_with_every_older_argument_at_its_default(engine):
    engine.stop()
    ray.init(
        redis_address=None,
        node_ip_address=None,
        object_id_seed=None,
        num_workers=None,
        driver_mode=0,
        redirect_output=False,
        num_cpus=None,
        num_gpus=None,
        num_custom_resource=None,
        num_redis_shards=None,
        plasma_directory=None,
        huge_pages=False,
    )
    assert ray.SCRIPT_MODE == 0
    assert ray.get(ray.put(1)) == 1
    engine.stop()


@pytest.mark.parametrize(
    "ray_start",
    [{"num_workers": 2, "num_redis_shards": 2, "driver_mode": 0, "node_ip_address": "127.0.0.1", "num_gpus": 1}],
    indirect=True,
)
def test_004_1_6_init_with_older_arguments_given(ray_start):
    assert ray_start["node_ip_address"] == "127.0.0.1"
    assert ray.cluster_resources()["GPU"] == 1


def test_004_1_6_defining_remote_functions(ray_shared):
    @ray.remote
    def f(x):
        return x + 1

    x_id = f.remote(0)
    assert ray.get(x_id) == 1

    y_id = f.remote(x_id)
    assert ray.get(y_id) == 2

    @ray.remote(num_return_vals=2)
    def f():
        return 1, 2

    x_id, y_id = f.remote()
    assert ray.get(x_id) == 1
    assert ray.get(y_id) == 2


def test_004_1_6_options_of_remote(engine):
    engine.start(num_cpus=2, num_gpus=1, num_custom_resource=1)

    @ray.remote(num_return_vals=1, num_cpus=2, num_gpus=1, num_custom_resource=1, max_calls=2)
    def f():
        return ray.get_gpu_ids()

    assert ray.get(f.remote(), timeout=30) == [0]
    engine.stop()


def test_004_1_6_getting_values(ray_shared):
    @ray.remote
    def f():
        return {"key1": ["value"]}

    # Get one object ID.
    assert ray.get(f.remote()) == {"key1": ["value"]}

    # Get a list of object IDs.
    assert ray.get([f.remote() for _ in range(2)]) == [{"key1": ["value"]}, {"key1": ["value"]}]


def test_004_1_6_putting_objects(ray_shared):
    x_id = ray.put(1)
    assert ray.get(x_id) == 1

    import numpy as np

    @ray.remote
    def f(x):
        return x.sum()

    x = np.zeros(10**6)

    # Alternative 1: Here, x is copied into the object store 10 times.
    one = [f.remote(x) for _ in range(10)]

    # Alternative 2: Here, x is copied into the object store once.
    x_id = ray.put(x)
    two = [f.remote(x_id) for _ in range(10)]
    assert ray.get(one) == ray.get(two) == [0] * 10


def test_004_1_6_waiting(ray_shared):
    @ray.remote
    def f(n):
        time.sleep(n / 20)
        return n

    # Start 3 tasks with different durations.
    results = [f.remote(i) for i in range(3)]
    # Block until 2 of them have finished.
    ready_ids, remaining_ids = ray.wait(results, num_returns=2)
    assert len(ready_ids) == 2 and len(remaining_ids) == 1

    # Start 5 tasks with different durations.
    results = [f.remote(i) for i in range(5)]
    # Block until 4 of them have finished or 2500 seconds pass: the document meant milliseconds.
    ready_ids, remaining_ids = ray.wait(results, num_returns=4, timeout=2500)
    assert len(ready_ids) == 4 and len(remaining_ids) == 1
    ray.get(remaining_ids)


def test_004_1_6_a_loop_that_starts_a_task_whenever_one_finishes(ray_shared, capsys):
    @ray.remote
    def f():
        return 1

    # Start 5 tasks.
    remaining_ids = [f.remote() for i in range(5)]
    # Whenever one task finishes, start a new one.
    for _ in range(100):
        ready_ids, remaining_ids = ray.wait(remaining_ids)
        # Get the available object and do something with it.
        print(ray.get(ready_ids))
        # Start a new task.
        remaining_ids.append(f.remote())
    assert capsys.readouterr().out == "[1]\n" * 100
    assert len(remaining_ids) == 5


def test_004_1_6_viewing_errors(ray_shared):
    @ray.remote
    def f():
        raise Exception("This task failed!!")

    f.remote()  # An error message will be printed in the background.

    # Wait for the error to propagate to Redis.
    wait_until(ray.error_info)

    # This returns a list containing the error message.
    assert any("This task failed!!" in error["message"] for error in ray.error_info())


# --- 004, chapter 1.7: actors ----------------------------------------------------------------------------------------


def test_004_1_7_actors(ray_shared, capsys):
    @ray.remote
    class Counter:
        def __init__(self):
            self.value = 0

        def increment(self):
            self.value += 1
            return self.value

    a1 = Counter.remote()
    a2 = Counter.remote()

    assert ray.get(a1.increment.remote()) == 1
    assert ray.get(a2.increment.remote()) == 1

    # Create ten Counter actors.
    counters = [Counter.remote() for _ in range(10)]

    # Increment each Counter once and get the results. These tasks all happen in
    # parallel.
    results = ray.get([c.increment.remote() for c in counters])
    print(results)  # prints [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]

    # Increment the first Counter five times. These tasks are executed serially
    # and share state.
    results = ray.get([counters[0].increment.remote() for _ in range(5)])
    print(results)  # prints [2, 3, 4, 5, 6]
    assert capsys.readouterr().out == "[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n[2, 3, 4, 5, 6]\n"


def gym_stand_in():
    """gym.make(name): an environment with reset and step, whose observation counts the steps."""

    class Environment:
        def __init__(self, name):
            self.name = name
            self.steps = 0

        def reset(self):
            self.steps = 0
            return self.steps

        def step(self, action):
            self.steps += 1
            return self.steps, float(action), self.steps >= 10, {}

    return types.SimpleNamespace(make=Environment)


def test_004_1_7_a_simulator_in_an_actor(ray_shared):
    gym = gym_stand_in()

    @ray.remote
    class GymEnvironment:
        def __init__(self, name):
            self.env = gym.make(name)
            self.env.reset()

        def step(self, action):
            return self.env.step(action)

        def reset(self):
            self.env.reset()

    pong = GymEnvironment.remote("Pong-v0")
    assert ray.get(pong.step.remote(0)) == (1, 0.0, False, {})  # Take action 0 in the simulator.
    pong.reset.remote()
    assert ray.get(pong.step.remote(1)) == (1, 1.0, False, {})


class SoftmaxRegression:
    """Stands in for the documents' TensorFlow graph: softmax regression of 10 classes, gradient descent, rate 0.5."""

    def __init__(self, inputs: int) -> None:
        self.weights = np.zeros((inputs, 10))
        self.bias = np.zeros(10)

    def probabilities(self, x):
        scores = x @ self.weights + self.bias
        exp = np.exp(scores - scores.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    def train_step(self, x, y):
        error = (self.probabilities(x) - y) / len(x)
        self.weights -= 0.5 * x.T @ error
        self.bias -= 0.5 * error.sum(axis=0)

    def accuracy(self, x, y):
        return float(np.mean(self.probabilities(x).argmax(axis=1) == y.argmax(axis=1)))


class Dataset:
    """Stands in for one part of input_data.read_data_sets(..., one_hot=True)."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = np.eye(10)[labels]
        self.at = 0

    def next_batch(self, n):
        start, self.at = self.at, (self.at + n) % (len(self.images) - n)
        return self.images[start : start + n], self.labels[start : start + n]


def read_data_sets():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = digits.data / 16
    return types.SimpleNamespace(
        train=Dataset(images[:1500], digits.target[:1500]), test=Dataset(images[1500:], digits.target[1500:])
    )


@pytest.mark.parametrize("ray_start", [{"num_gpus": 8}], indirect=True)
def test_004_1_7_a_neural_network_in_an_actor_on_a_gpu(ray_start):
    def construct_network():
        return SoftmaxRegression(64)

    # Define an actor that runs on GPUs. If there are no GPUs, then simply use
    # ray.remote without any arguments and no parentheses.
    @ray.remote(num_gpus=1)
    class NeuralNetOnGPU:
        def __init__(self, mnist_data):
            self.mnist = mnist_data
            # Set an environment variable to tell TensorFlow which GPUs to use. Note
            # that this must be done before the call to tf.Session.
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join([str(i) for i in ray.get_gpu_ids()])
            self.network = construct_network()

        def train(self, num_steps):
            for _ in range(num_steps):
                batch_xs, batch_ys = self.mnist.train.next_batch(100)
                self.network.train_step(batch_xs, batch_ys)

        def get_accuracy(self):
            return self.network.accuracy(self.mnist.test.images, self.mnist.test.labels)

        def visible(self):
            return os.environ["CUDA_VISIBLE_DEVICES"]

    # Load the MNIST dataset and tell Ray how to serialize the custom classes.
    mnist = read_data_sets()

    # Create the actor.
    nn = NeuralNetOnGPU.remote(mnist)

    # Run a few steps of training and print the accuracy.
    nn.train.remote(100)
    accuracy = ray.get(nn.get_accuracy.remote())
    print(f"Accuracy is {accuracy}")
    assert accuracy > 0.8
    assert ray.get(nn.visible.remote()) in {str(i) for i in range(8)}


# --- 004, chapter 1.8: GPUs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ray_start", [{"num_gpus": 4}], indirect=True)
def test_004_1_8_remote_functions_with_gpus(ray_start):
    @ray.remote(num_gpus=1)
    def gpu_method():
        return f"This function is allowed to use GPUs {ray.get_gpu_ids()}"

    assert ray.get(gpu_method.remote()) in {f"This function is allowed to use GPUs [{i}]" for i in range(4)}

    import os

    @ray.remote(num_gpus=1)
    def gpu_method():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, ray.get_gpu_ids()))
        # Create a TensorFlow session. TensorFlow will restrict itself to use the
        # GPUs specified by the CUDA_VISIBLE_DEVICES environment variable.
        return os.environ["CUDA_VISIBLE_DEVICES"]

    assert ray.get(gpu_method.remote()) in {str(i) for i in range(4)}


@pytest.mark.parametrize("ray_start", [{"num_gpus": 4}], indirect=True)
def test_004_1_8_actors_with_gpus(ray_start):
    @ray.remote(num_gpus=1)
    class GPUActor:
        def __init__(self):  # the document's returns the text, which Python does not let an __init__ do
            self.text = f"This actor is allowed to use GPUs {ray.get_gpu_ids()}"

        def read(self):
            return self.text

    actors = [GPUActor.options(num_cpus=0).remote() for _ in range(4)]
    assert set(ray.get([actor.read.remote() for actor in actors])) == {
        f"This actor is allowed to use GPUs [{i}]" for i in range(4)
    }


@pytest.mark.parametrize("ray_start", [{"num_gpus": 4}], indirect=True)
def test_004_1_8_an_actor_that_opens_a_session_on_its_gpus(ray_start):
    class Session:
        """Stands in for tf.Session: sees the devices that the environment names when it is made."""

        def __init__(self):
            self.devices = os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    tf = types.SimpleNamespace(Session=Session)

    @ray.remote(num_gpus=1)
    class GPUActor:
        def __init__(self):
            self.gpu_ids = ray.get_gpu_ids()
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self.gpu_ids))
            # The call to tf.Session() will restrict TensorFlow to use the GPUs
            # specified in the CUDA_VISIBLE_DEVICES environment variable.
            self.sess = tf.Session()

        def devices(self):
            return self.gpu_ids, self.sess.devices

    ids, devices = ray.get(GPUActor.remote().devices.remote())
    assert devices == [str(i) for i in ids] and len(ids) == 1


@pytest.mark.parametrize("ray_start", [{"num_gpus": 1}], indirect=True)
def test_004_1_8_more_gpus_than_there_are_is_said(ray_start, capfd):
    @ray.remote(num_gpus=2)
    class GPUActor: ...

    actor = GPUActor.remote()
    said: list[str] = []
    wait_until(lambda: said.append(capfd.readouterr().err) or "GPU" in "".join(said))
    assert actor is not None and sys.stderr is not None


# --- 002: ray.remote -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ray_start", [{"num_gpus": 2, "resources": {"CustomResource": 1}}], indirect=True)
def test_002_the_reference_page_of_remote(ray_start):
    @ray.remote
    def f(a, b, c):
        return a + b + c

    object_ref = f.remote(1, 2, 3)
    result = ray.get(object_ref)
    assert result == (1 + 2 + 3)

    @ray.remote
    class Foo:
        def __init__(self, arg):
            self.x = arg

        def method(self, a):
            return self.x + a

    actor_handle = Foo.remote(123)
    object_ref = actor_handle.method.remote(321)
    result = ray.get(object_ref)
    assert result == (123 + 321)

    def g(a, b, c):
        return a + b + c

    remote_g = ray.remote(g)
    object_ref = remote_g.remote(1, 2, 3)
    assert ray.get(object_ref) == (1 + 2 + 3)

    class Bar:
        def __init__(self, arg):
            self.x = arg

        def method(self, a):
            return self.x + a

    RemoteBar = ray.remote(Bar)
    actor_handle = RemoteBar.remote(123)
    object_ref = actor_handle.method.remote(321)
    result = ray.get(object_ref)
    assert result == (123 + 321)

    @ray.remote(num_gpus=1, max_calls=1, num_returns=2)
    def f():
        return 1, 2

    @ray.remote(num_cpus=2, resources={"CustomResource": 1})
    class Foo:
        def method(self):
            return 1

    foo_actor = Foo.remote()
    assert ray.get(foo_actor.method.remote()) == 1
    del foo_actor

    f_with_2_gpus = f.options(num_gpus=2)
    object_refs = f_with_2_gpus.remote()
    assert ray.get(object_refs) == [1, 2]

    Foo_with_no_resources = Foo.options(num_cpus=1, resources=None)
    foo_actor = Foo_with_no_resources.remote()
    assert ray.get(foo_actor.method.remote()) == 1
