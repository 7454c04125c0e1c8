"""EvoTorch searches for a minimum that is known, its populations evaluated by actors."""

import torch
from evotorch import Problem
from evotorch.algorithms import SNES

TARGET = torch.arange(10, dtype=torch.float64)


class Distance(Problem):
    def __init__(self, actors):
        bounds = {"solution_length": 10, "initial_bounds": (-5, 5), "dtype": torch.float64}
        super().__init__("min", num_actors=actors, **bounds)

    def _evaluate_batch(self, batch):
        batch.set_evals(((batch.values - TARGET) ** 2).sum(dim=-1))


torch.manual_seed(7)
problem = Distance(2)
search = SNES(problem, stdev_init=3.0, popsize=40)
search.run(150)
assert torch.allclose(search.status["center"], TARGET, atol=1e-3), search.status["center"]
best = search.status["best"]
assert torch.isclose(best.evals[0], ((best.values - TARGET) ** 2).sum())
print("found by", len(problem.actors), "actors")
