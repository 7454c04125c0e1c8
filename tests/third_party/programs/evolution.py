"""EvoTorch searches for a minimum that is known, its populations evaluated by actors."""

import os

import torch
from evotorch import Problem
from evotorch.algorithms import SNES

TARGET = torch.arange(10, dtype=torch.float64)


class Distance(Problem):
    def __init__(self, actors):
        bounds = {"solution_length": 10, "initial_bounds": (-5, 5), "dtype": torch.float64, "eval_data_length": 1}
        super().__init__("min", num_actors=actors, **bounds)

    def _evaluate_batch(self, batch):
        where = torch.full((len(batch), 1), os.getpid(), dtype=torch.float64)  # kept with each evaluation
        batch.set_evals(((batch.values - TARGET) ** 2).sum(dim=-1), where)


torch.manual_seed(7)
problem = Distance(2)
search = SNES(problem, stdev_init=3.0, popsize=40)
search.run(150)
assert torch.allclose(search.status["center"], TARGET, atol=1e-3), search.status["center"]
best = search.status["best"]
assert torch.isclose(best.evals[0], ((best.values - TARGET) ** 2).sum())
evaluated = {int(pid) for pid in search.population.evals[:, 1]}
assert len(evaluated) == len(problem.actors) and os.getpid() not in evaluated, evaluated
print("found by", len(evaluated), "actors")
