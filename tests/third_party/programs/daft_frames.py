"""daft's own runner for Ray, beside pandas."""

import os

os.environ["DAFT_PROGRESS_BAR"] = "0"
os.environ["RAY_DISABLE_DASHBOARD"] = "1"

import daft
import numpy
import pandas
from daft import col

import ray

ROWS = 20_000
random = numpy.random.default_rng(0)
plain = pandas.DataFrame(
    {
        "key": random.integers(0, 50, ROWS),
        "group": random.choice(list("abcdef"), ROWS),
        "x": random.normal(size=ROWS),
        "y": random.integers(0, 1000, ROWS),
    }
)
other = pandas.DataFrame({"key": numpy.arange(50), "weight": numpy.arange(50) * 2.0})


def same(name, found, expected, by):
    found = found.to_pandas().sort_values(by).reset_index(drop=True)
    expected = expected.sort_values(by).reset_index(drop=True)
    pandas.testing.assert_frame_equal(found[list(expected.columns)], expected, check_dtype=False)
    print(name)


@daft.func
def thrice(y: int) -> int:
    return 3 * y


ray.init(num_cpus=2, logging_level="error", log_to_driver=False)
daft.set_runner_ray()
frame = daft.from_pandas(plain).into_partitions(4)
sums = frame.groupby("group").agg(col("x").mean(), col("y").sum())
same("groupby", sums, plain.groupby("group", as_index=False).agg({"x": "mean", "y": "sum"}), ["group"])
joined = frame.join(daft.from_pandas(other), on="key")
everything = ["key", "group", "x", "y"]
same("join", joined, plain.merge(other, on="key"), everything)
same("filter", frame.where((col("y") < 100) & (col("x") > 0)), plain[(plain.y < 100) & (plain.x > 0)], everything)
first = frame.sort(["y", "x"]).limit(100)
same("sort", first, plain.sort_values(["y", "x"]).head(100), everything)
same("function", frame.with_column("z", thrice(col("y"))), plain.assign(z=plain.y * 3), everything)
spread = frame.repartition(3, "key").groupby("key").agg(col("y").max())
same("repartition", spread, plain.groupby("key", as_index=False).agg({"y": "max"}), ["key"])
frame.write_parquet("frame")
same("parquet", daft.read_parquet("frame/*.parquet"), plain, everything)
ray.shutdown()
