"""modin.pandas on ray, beside pandas itself."""

import gc
import os
import warnings

os.environ["MODIN_ENGINE"] = "ray"
os.environ["MODIN_MEMORY"] = "1000000000"

import modin.config
import modin.pandas
import numpy
import pandas
from pandas.testing import assert_frame_equal, assert_series_equal

import ray
from ray.util.state import list_objects
from tests.wait import wait_until

warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*`pivot_table` implementation has mismatches")  # of columns' order, with any engine
ROWS = 50_000
random = numpy.random.default_rng(0)
columns = {
    "key": random.integers(0, 100, ROWS),
    "group": random.choice(list("abcdef"), ROWS),
    "x": random.normal(size=ROWS),
    "y": random.integers(0, 1000, ROWS),
}
columns["x"][::97] = numpy.nan
plain = pandas.DataFrame(columns)
ours = modin.pandas.DataFrame(columns)
ALL = ["key", "y", "x", "group"]


def same(name, found, expected):
    found = found.modin.to_pandas() if hasattr(found, "modin") else found
    check = assert_frame_equal if isinstance(expected, pandas.DataFrame) else assert_series_equal
    check(found, expected)
    print(name)


def ordered(frame):
    return frame.sort_values(ALL).reset_index(drop=True)


by = {"x": "mean", "y": "sum"}
same("groupby", ours.groupby("group").agg(by), plain.groupby("group").agg(by))
same("sort", ordered(ours), ordered(plain))
weights = {"key": range(100), "weight": numpy.arange(100) * 2.0}
merged = ours.merge(modin.pandas.DataFrame(weights), on="key")
same("merge", ordered(merged), ordered(plain.merge(pandas.DataFrame(weights), on="key")))
same("apply", ours.apply(lambda row: row["y"] * 2 + row["key"], axis=1), plain["y"] * 2 + plain["key"])
same("describe", ours.describe(), plain.describe())
same("concat", modin.pandas.concat([ours, ours]), pandas.concat([plain, plain]))
plain.to_csv("frame.csv", index=False)
read = modin.pandas.read_csv("frame.csv")
same("read_csv", read.groupby("key")["y"].max(), pandas.read_csv("frame.csv").groupby("key")["y"].max())
pivot = {"index": "key", "columns": "group", "values": "y", "aggfunc": "sum"}
same("pivot", ours.pivot_table(**pivot), plain.pivot_table(**pivot))
same("fillna", ours.fillna({"x": 0.0}), plain.fillna({"x": 0.0}))
ours.to_parquet("frame.parquet")
same("to_parquet", modin.pandas.DataFrame(pandas.read_parquet("frame.parquet")), plain)
same("read_parquet", modin.pandas.read_parquet("frame.parquet"), plain)
assert ray.is_initialized()
del ours, merged, read
gc.collect()
# What is left is functions' own and small: a single column of the frame has 400 kB.
wait_until(lambda: sum(found.object_size for found in list_objects(limit=10_000)) < 200_000)
print("freed")
print("on", modin.config.Engine.get())
