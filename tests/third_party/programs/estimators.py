"""scikit-learn's searches through joblib's backend for ray, and dask's data frames, beside themselves without ray."""

import dask
import dask.dataframe
import joblib
import numpy
import pandas
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

import ray
from ray.util.dask import ray_dask_get
from ray.util.joblib import register_ray


def fits(x, y):
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": ["scale", 1e-3]}, cv=3, n_jobs=2).fit(x, y)
    forest = RandomForestClassifier(20, random_state=0, n_jobs=2).fit(x, y)
    scores = cross_val_score(forest, x, y, cv=3, n_jobs=2)
    return search.cv_results_["mean_test_score"], forest.predict_proba(x), scores, search.best_params_


def estimators() -> None:
    x, y = (part[:400] for part in load_digits(return_X_y=True))
    expected = fits(x, y)
    with joblib.parallel_backend("ray"):
        found = fits(x, y)
    assert all(numpy.array_equal(a, b) for a, b in zip(found[:3], expected[:3]))
    assert found[3] == expected[3]
    print("estimators")


def frames() -> None:
    random = numpy.random.default_rng(0)
    columns = {"key": random.integers(0, 10, 20_000), "x": random.normal(size=20_000)}
    plain = pandas.DataFrame({**columns, "y": random.integers(0, 99, 20_000)})
    equal = pandas.testing.assert_frame_equal
    order = ["key", "x", "y"]
    with dask.config.set(scheduler=ray_dask_get):
        frame = dask.dataframe.from_pandas(plain, npartitions=8)
        by_key = {"x": "mean", "y": "sum"}
        equal(frame.groupby("key").agg(by_key).compute().sort_index(), plain.groupby("key").agg(by_key))
        top, plain_top = (f.groupby("key").y.max().rename("top").reset_index() for f in (frame, plain))
        merged, plain_merged = frame.merge(top, on="key").compute(), plain.merge(plain_top, on="key")
        equal(*(f.sort_values(order).reset_index(drop=True) for f in (merged, plain_merged)))
        shuffled = frame.set_index("x").compute()
        equal(shuffled, plain.set_index("x").sort_index())
    print("frames")


if __name__ == "__main__":
    ray.init(num_cpus=2, logging_level="error")
    register_ray()
    estimators()
    frames()
    ray.shutdown()
