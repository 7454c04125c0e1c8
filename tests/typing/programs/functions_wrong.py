"""Each line marked as wrong is refused by a type checker, and no other. Never run."""

import ray
from ray import ObjectRef


@ray.remote
def double(x: int, by: int = 2) -> int:
    return x * by


double.remote("1")  # wrong
double.remote()  # wrong
double.remote(1, 2, 3)  # wrong
double.remote(1, to=3)  # wrong
double.remote(1, by="3")  # wrong
s: ObjectRef[str] = double.remote(1)  # wrong
t: str = ray.get(double.remote(1))  # wrong
u: list[str] = ray.get([double.remote(1)])  # wrong
ray.get(1)  # wrong
ray.wait(double.remote(1))  # wrong
