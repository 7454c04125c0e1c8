"""ray.util.joblib.register_ray: joblib, and scikit-learn through it, on ray's workers."""

from __future__ import annotations

import os

import joblib
import numpy as np
import pytest

from ray.util.joblib import register_ray

register_ray()


def square(x):
    return x * x


def pid(_x):
    return os.getpid()


def fail(x):
    raise ValueError(x)


def test_parallel_runs_in_workers_and_keeps_the_order(ray_shared):
    with joblib.parallel_config(backend="ray", n_jobs=2):
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(100)) == [i * i for i in range(100)]
        pids = set(joblib.Parallel()(joblib.delayed(pid)(i) for i in range(20)))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_all_cpus_is_all_cpus_of_the_cluster(ray_shared):
    with joblib.parallel_backend("ray", n_jobs=-1):
        assert joblib.Parallel()._effective_n_jobs() == 2
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_one_job_runs_here(ray_shared):
    with joblib.parallel_config(backend="ray", n_jobs=1):
        assert joblib.Parallel()(joblib.delayed(pid)(i) for i in range(3)) == [os.getpid()] * 3


def test_an_error_comes_through(ray_shared):
    with joblib.parallel_config(backend="ray", n_jobs=2), pytest.raises(ValueError, match="7"):
        joblib.Parallel()(joblib.delayed(fail)(i) for i in [7])


def test_options_reach_the_workers(ray_shared):
    with (
        joblib.parallel_config(backend="ray", n_jobs=3, ray_remote_args={"num_cpus": 1}),
        pytest.raises(ValueError, match="3 CPUs"),
    ):
        joblib.Parallel()(joblib.delayed(square)(i) for i in range(3))


def test_scikit_learn_gives_the_same_with_it_as_without(ray_shared):
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = x @ [1.0, -2.0, 0.5] + rng.normal(scale=0.1, size=60)
    search = {"alpha": [0.01, 0.1, 1.0, 10.0]}
    alone = GridSearchCV(Ridge(), search, cv=3).fit(x, y)
    with joblib.parallel_config(backend="ray", n_jobs=2):
        shared = GridSearchCV(Ridge(), search, cv=3).fit(x, y)
    assert shared.best_params_ == alone.best_params_
    assert np.allclose(shared.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
