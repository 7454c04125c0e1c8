"""ray.experimental.TensorFlowVariables with TensorFlow itself: graphs of version 1, as the document on TensorFlow has
them, and a model of version 2. Each ends where a computation without ray and TensorFlow does."""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np

import ray

BATCH_SIZE, NUM_BATCHES, NUM_ITERS, RATE = 100, 2, 40, 0.5


class Network:
    def __init__(self, x, y):
        import tensorflow.compat.v1 as tf

        tf.disable_eager_execution()
        tf.set_random_seed(0)
        x_data, y_data = tf.constant(x, dtype=tf.float32), tf.constant(y, dtype=tf.float32)
        w = tf.Variable(tf.random_uniform([1], -1.0, 1.0))
        b = tf.Variable(tf.zeros([1]))
        tf.Variable(tf.zeros([7]))  # the loss does not depend on it
        self.loss = tf.reduce_mean(tf.square(w * x_data + b - y_data))
        optimizer = tf.train.GradientDescentOptimizer(RATE)
        self.train = optimizer.apply_gradients(optimizer.compute_gradients(self.loss))
        init = tf.global_variables_initializer()
        self.sess = tf.Session()
        self.variables = ray.experimental.TensorFlowVariables(self.loss, self.sess)
        self.sess.run(init)

    def step(self, weights):
        self.variables.set_weights(weights)
        self.sess.run(self.train)
        return self.variables.get_weights()

    def get_weights(self):
        return self.variables.get_weights()

    def flat_round_trip(self):
        """(number of weights, whether set_flat sets them, operations that all of this added to the graph)."""
        before = len(self.sess.graph.get_operations())
        flat = self.variables.get_flat()
        self.variables.set_flat(flat + 1)
        same = np.allclose(self.variables.get_flat(), flat + 1)
        self.variables.set_flat(flat)
        return self.variables.get_flat_size(), same, len(self.sess.graph.get_operations()) - before


@ray.remote
class Model:
    """Of version 2."""

    def __init__(self):
        import tensorflow as tf

        inputs, layers = tf.keras.Input((3,)), tf.keras.layers
        self.model = tf.keras.Sequential([inputs, layers.Dense(2, activation="relu"), layers.Dense(1)])
        self.variables = ray.experimental.TensorFlowVariables(self.model)

    def weights(self):
        return self.variables.get_weights(), self.variables.get_flat()

    def set(self, weights):
        (self.variables.set_weights if isinstance(weights, dict) else self.variables.set_flat)(weights)

    def predict(self, x):
        return self.model(x).numpy()


@ray.remote(num_return_vals=2)
def generate_fake_x_y_data(num_data, seed=0):
    np.random.seed(seed)
    x = np.random.rand(num_data)
    return x, x * 0.1 + 0.3


def version_1() -> None:
    batches = [generate_fake_x_y_data.remote(BATCH_SIZE, seed=i) for i in range(NUM_BATCHES)]
    remote_network = ray.remote(Network)
    actors = [remote_network.remote(x, y) for x, y in batches]
    weights = ray.get(actors[0].get_weights.remote())
    assert len(weights) == 2 and all(v.shape == (1,) for v in weights.values())
    w, b = (float(v[0]) for v in weights.values())
    data = [ray.get(list(batch)) for batch in batches]
    for _ in range(NUM_ITERS):
        ref = ray.put(weights)
        new = ray.get([actor.step.remote(ref) for actor in actors])
        weights = {name: sum(one[name] for one in new) / NUM_BATCHES for name in new[0]}
        # The same by hand: the average of steps is a step along the average of gradients.
        errors = [(x, w * x + b - y) for x, y in data]
        w, b = (
            w - RATE * np.mean([np.mean(2 * e * x) for x, e in errors]),
            b - RATE * np.mean([np.mean(2 * e) for _, e in errors]),
        )
    assert np.allclose([v[0] for v in weights.values()], [w, b], atol=1e-4), (weights, w, b)
    assert ray.get(actors[0].flat_round_trip.remote()) == (2, True, 0)
    print("graph averaged")


def version_2() -> None:
    a, b = Model.remote(), Model.remote()
    x = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    weights, flat = ray.get(a.weights.remote())
    assert flat.shape == (11,)
    kernel1, bias1, kernel2, bias2 = weights.values()
    by_hand = np.maximum(x @ kernel1 + bias1, 0) @ kernel2 + bias2
    for state in (weights, flat):
        ray.get(b.set.remote({name: np.ones_like(value) for name, value in weights.items()}))
        assert not np.allclose(ray.get(b.predict.remote(x)), by_hand)
        ray.get(b.set.remote(state))
        assert np.allclose(ray.get(b.predict.remote(x)), by_hand, atol=1e-5)
    print("eager")


if __name__ == "__main__":
    ray.init(num_cpus=2, logging_level="error", log_to_driver=False)
    version_1()
    version_2()
    ray.shutdown()
