"""Hamilton's two ways to run a graph of functions on ray, beside its way without."""

import columns_graph
import fan_out_graph
import pandas
from hamilton import base, driver
from hamilton.execution import executors
from hamilton.plugins import h_ray

import ray


def by_adapter():
    given = {"spend": pandas.Series([10.0, 20, 30, 40]), "signups": pandas.Series([1.0, 10, 50, 100])}
    wanted = ["rolling_spend", "spend_per_signup", "difference"]
    as_dict = base.DictResult()
    plain = driver.Driver({}, columns_graph, adapter=base.SimplePythonGraphAdapter(as_dict)).execute(
        wanted, inputs=given
    )
    adapter = h_ray.RayGraphAdapter(as_dict, ray_init_config={"num_cpus": 2}, shutdown_ray_on_completion=True)
    found = driver.Driver({}, columns_graph, adapter=adapter).execute(wanted, inputs=given)
    for name in wanted:
        pandas.testing.assert_series_equal(found[name], plain[name])
    assert not ray.is_initialized()
    print("graph adapter,")


def by_dynamic_tasks():
    builder = driver.Builder().enable_dynamic_execution(allow_experimental_mode=True)
    builder = builder.with_modules(fan_out_graph)
    builder = builder.with_remote_executor(h_ray.RayTaskExecutor(num_cpus=2))
    run = builder.with_local_executor(executors.SynchronousLocalTaskExecutor()).build()
    assert run.execute(["total"], inputs={"count": 10})["total"] == sum(i * i for i in range(10))
    print("dynamic tasks")


if __name__ == "__main__":
    by_adapter()
    by_dynamic_tasks()
