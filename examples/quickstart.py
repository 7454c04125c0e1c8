"""Ray in a minute: tasks, object refs and actors at work on real data, on all cores of this machine.

    python examples/quickstart.py                        everything, about a minute on two cores
    python examples/quickstart.py --files 200 --trials 4 --steps 50          smaller

1. Tasks: an inverted index (which files use which name?) over every source file of the Python standard library that
   runs this. A tree of tasks that pass one another refs joins the parts; the result is checked against a serial run.
2. ray.wait: a random search for hyperparameters of a handwriting classifier, looking at each result as it comes.
3. Actors: that classifier, trained by workers around a parameter server in several shards. The data are the 1,797
   handwritten digits of the UCI machine learning repository that scikit-learn contains.

Prints how long the serial and the parallel index took, the best settings as the search finds them, and the accuracy of
the classifier on digits that it has never seen.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
import tokenize
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

import ray


@dataclass(frozen=True)
class Arguments:
    files: int = 0  # source files to index; 0 means all
    chunk: int = 25  # files that one task indexes
    trials: int = 24  # settings that the search tries
    shards: int = 2  # parts of the parameters, each in an actor
    workers: int = 2  # actors that compute gradients
    steps: int = 600  # gradients that each worker computes
    seed: int = 0  # of the search and of the split into training and test data


def main(arguments: Arguments) -> None:
    with ray.init():
        build_index(arguments)
        data = ray.put(load_digits(arguments.seed))  # once, into shared memory: every task and actor reads it there
        best = search(arguments, data)
        train(arguments, data, best)


def progress(done: int, total: int, what: str) -> None:
    if sys.stdout.isatty() or done == total:
        bar = "█" * (30 * done // total)
        print(f"\r{what} {bar:·<30} {done}/{total}", end="\n" if done == total else "", flush=True)


# --- 1. an inverted index ------------------------------------------------------------------------------------------

Index = dict[str, set[str]]


def index(paths: list[Path]) -> Index:
    """Which of these files use which names."""
    found: Index = {}
    for path in paths:
        try:
            with tokenize.open(path) as source:
                for token in tokenize.generate_tokens(source.readline):
                    if token.type == tokenize.NAME:
                        found.setdefault(token.string, set()).add(path.name)
        except (SyntaxError, UnicodeDecodeError):
            continue  # the standard library's own tests hold files that are broken on purpose
    return found


def merge(left: Index, right: Index) -> Index:
    for name, paths in right.items():
        left.setdefault(name, set()).update(paths)
    return left


def build_index(arguments: Arguments) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    files = files[: arguments.files or None]
    chunks = [files[i : i + arguments.chunk] for i in range(0, len(files), arguments.chunk)]

    start = time.perf_counter()
    expected: Index = {}
    for i, chunk in enumerate(chunks):
        expected = merge(expected, index(chunk))
        progress(i + 1, len(chunks), "serial   ")
    serial_s = time.perf_counter() - start

    # The same two functions as tasks. A ref stands for a result that need not exist yet: the whole tree is submitted at
    # once, each merge runs when its two inputs are there, and no index passes through this process but the last.
    remote_index, remote_merge = ray.remote(index), ray.remote(merge)
    start = time.perf_counter()
    parts = [remote_index.remote(chunk) for chunk in chunks]
    tree = list(parts)
    while len(tree) > 1:
        tree.append(remote_merge.remote(tree.pop(0), tree.pop(0)))
    while parts:
        _, parts = ray.wait(parts)
        progress(len(chunks) - len(parts), len(chunks), "parallel ")
    result = ray.get(tree[0])
    parallel_s = time.perf_counter() - start

    assert result == expected, "the parallel index differs from the serial one"
    commonest = max(result, key=lambda name: len(result[name]))
    print(f"{len(result):,} names in {len(files):,} files; {commonest!r} is in {len(result[commonest]):,} of them.")
    print(f"Serial {serial_s:.1f} s, parallel {parallel_s:.1f} s: {serial_s / parallel_s:.1f} times as fast.\n")


# --- a small neural network: 64 pixels, one hidden layer, 10 digits, all parameters in one vector -------------------


@dataclass(frozen=True)
class Settings:
    hidden: int
    learning_rate: float
    batch: int

    @property
    def size(self) -> int:
        return (64 + 1) * self.hidden + (self.hidden + 1) * 10


Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def load_digits(seed: int) -> Data:
    """(images, digits) to train on and to test with; images are float32 [n, 64] from 0 to 1."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def layers(settings: Settings, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two weight matrices, the bias as their last row: views on parameters."""
    split = (64 + 1) * settings.hidden
    return parameters[:split].reshape(65, settings.hidden), parameters[split:].reshape(settings.hidden + 1, 10)


def forward(settings: Settings, parameters: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hidden activations, probability of each digit)"""
    first, second = layers(settings, parameters)
    hidden = np.maximum(images @ first[:-1] + first[-1], 0)
    scores = hidden @ second[:-1] + second[-1]
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, exponentials / exponentials.sum(axis=1, keepdims=True)


def gradient(settings: Settings, parameters: np.ndarray, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy on these images."""
    hidden, error = forward(settings, parameters, images)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    result = np.empty_like(parameters)
    first, second = layers(settings, result)
    second[:-1], second[-1] = hidden.T @ error, error.sum(axis=0)
    back = (error @ layers(settings, parameters)[1][:-1].T) * (hidden > 0)
    first[:-1], first[-1] = images.T @ back, back.sum(axis=0)
    return result


def start_parameters(settings: Settings, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, settings.size).astype(np.float32)


def accuracy(settings: Settings, parameters: np.ndarray, images: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(forward(settings, parameters, images)[1].argmax(axis=1) == labels))


# --- 2. random search -----------------------------------------------------------------------------------------------


@ray.remote
def trial(settings: Settings, data: Data, seed: int) -> float:
    """Accuracy after a short training, on a fifth of the training data that was kept aside."""
    images, labels, _, _ = data
    images, labels, aside, aside_labels = images[:1100], labels[:1100], images[1100:], labels[1100:]
    rng, parameters = np.random.default_rng(seed), start_parameters(settings, seed)
    for _ in range(2000):
        batch = rng.integers(0, len(labels), settings.batch)
        parameters -= settings.learning_rate * gradient(settings, parameters, images[batch], labels[batch])
    return accuracy(settings, parameters, aside, aside_labels)


def search(arguments: Arguments, data: ray.ObjectRef[Data]) -> Settings:
    rng = np.random.default_rng(arguments.seed)
    running = {}
    for seed in range(arguments.trials):
        settings = Settings(int(rng.integers(8, 96)), float(10 ** rng.uniform(-3, 0)), int(rng.integers(8, 128)))
        running[trial.remote(settings, data, seed)] = settings

    best, best_accuracy = next(iter(running.values())), 0.0
    while running:
        (ready,), _ = ray.wait(list(running))
        settings, reached = running.pop(ready), ray.get(ready)
        if reached > best_accuracy:
            best, best_accuracy = settings, reached
            print(f"{reached:6.1%} with {settings}")
    print(f"The best of {arguments.trials} trials reached {best_accuracy:.1%}.\n")
    return best


# --- 3. a parameter server ------------------------------------------------------------------------------------------


@ray.remote(num_cpus=0)
class Shard:
    """Keeps a part of the parameters, and applies what workers send as it comes."""

    def __init__(self, part: np.ndarray, learning_rate: float) -> None:
        self.part = part.copy()  # what arrives is shared memory, and nobody may write to that
        self.learning_rate = learning_rate

    def read(self) -> np.ndarray:
        return self.part

    def apply(self, gradient: np.ndarray) -> None:
        self.part -= self.learning_rate * gradient


@ray.remote
class Worker:
    def __init__(self, settings: Settings, data: Data, shards: list, seed: int) -> None:
        self.settings = settings
        self.images, self.labels, _, _ = data
        self.shards = shards
        self.rng = np.random.default_rng(seed)

    def run(self, steps: int) -> int:
        """Computes steps gradients, each at the parameters of that moment: other workers change them meanwhile."""
        for _ in range(steps):
            parts = ray.get([shard.read.remote() for shard in self.shards])
            batch = self.rng.integers(0, len(self.labels), self.settings.batch)
            change = gradient(self.settings, np.concatenate(parts), self.images[batch], self.labels[batch])
            pieces = np.split(change, np.cumsum([len(part) for part in parts])[:-1])
            ray.get([shard.apply.remote(piece) for shard, piece in zip(self.shards, pieces)])
        return steps


def train(arguments: Arguments, data: ray.ObjectRef[Data], settings: Settings) -> None:
    parts = np.array_split(start_parameters(settings, arguments.seed), arguments.shards)
    shards = [Shard.remote(part, settings.learning_rate / arguments.workers) for part in parts]
    workers = [Worker.remote(settings, data, shards, seed) for seed in range(arguments.workers)]

    start, rounds = time.perf_counter(), 10
    for i in range(rounds):
        ray.get([worker.run.remote(arguments.steps // rounds) for worker in workers])
        progress(i + 1, rounds, "training ")
    parameters = np.concatenate(ray.get([shard.read.remote() for shard in shards]))
    gradients = arguments.workers * (arguments.steps // rounds) * rounds
    rate = gradients / (time.perf_counter() - start)
    _, _, images, labels = ray.get(data)
    reached = accuracy(settings, parameters, images, labels)
    print(
        f"{gradients:,} gradients from {len(workers)} workers through {len(shards)} shards, {rate:,.0f} a second: "
        f"{reached:.1%} of {len(labels)} digits never seen before are recognised."
    )


def parse(arguments: list[str] | None = None) -> Arguments:
    parser = argparse.ArgumentParser(description="Tasks, object refs and actors at work on real data.")
    for field in fields(Arguments):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    return replace(Arguments(), **vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(parse())
