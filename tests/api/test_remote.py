"""ray.remote on functions: defining, calling, options, arguments, results."""

from __future__ import annotations

import functools
import os
import threading

import pytest

import ray
from tests.wait import wait_until


@ray.remote
def add(a, b=10, *, scale=1):
    """Adds."""
    return (a + b) * scale


@pytest.mark.parametrize(
    "args, kwargs, result",
    [((1,), {}, 11), ((1, 2), {}, 3), ((1,), {"b": 5}, 6), ((), {"a": 1, "b": 2, "scale": 3}, 9)],
)
def test_a_call_takes_arguments_as_the_function_does(ray_shared, args, kwargs, result):
    assert ray.get(add.remote(*args, **kwargs)) == result


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, r"add\(\) missing 1 required positional argument: 'a'"),
        ((1, 2, 3), {}, r"add\(\) takes from 1 to 2 positional arguments but 3 were given"),
        ((1,), {"a": 1}, r"add\(\) got multiple values for argument 'a'"),
        ((1,), {"zoom": 1}, r"add\(\) got an unexpected keyword argument 'zoom'"),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_call(ray_shared, args, kwargs, message):
    for _ in range(2):  # the first call and one of the bound ones
        with pytest.raises(TypeError, match=message):
            add.remote(*args, **kwargs)


def test_a_required_keyword_is_missed_at_the_call(ray_shared):
    @ray.remote
    def f(*, key):
        return key

    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'key'"):
        f.remote()
    assert ray.get(f.remote(key=3)) == 3


def test_a_plain_call_says_remote(ray_shared):
    with pytest.raises(TypeError, match=r"add\.remote\("):
        add(1)


def test_a_remote_function_keeps_name_and_docs_and_the_function():
    assert add.__name__ == "add"
    assert add.__doc__ == "Adds."
    assert add.__module__ == __name__
    assert add.__wrapped__(1, 2) == 3


def test_remote_can_be_called_on_a_function_and_on_a_lambda(ray_shared):
    assert ray.get(ray.remote(lambda x: x + 1).remote(1)) == 2
    assert ray.get(ray.remote(num_cpus=1)(lambda x: x + 2).remote(1)) == 3


def test_a_wrapped_function_keeps_its_wrapper_s_arguments(ray_shared):
    def twice(f):
        @functools.wraps(f)
        def wrapper(*args, **kwargs):
            return 2 * f(*args, **kwargs)

        return wrapper

    @ray.remote
    @twice
    def f(x):
        return x

    assert ray.get(f.remote(3)) == 6


@pytest.mark.parametrize("thing", [1, "f", None, functools.partial(print), [add]], ids=repr)
def test_remote_on_something_else_is_a_type_error(thing):
    with pytest.raises(TypeError, match="neither a function nor a class"):
        ray.remote(thing)


def test_remote_on_something_remote_is_a_type_error():
    with pytest.raises(TypeError, match="remote already"):
        ray.remote(add)


def test_remote_with_empty_brackets_or_positional_options_is_a_type_error():
    with pytest.raises(TypeError, match=r"@ray\.remote"):
        ray.remote()
    with pytest.raises(TypeError, match="by keyword"):
        ray.remote(2, num_cpus=1)


def test_an_async_function_is_refused_with_what_to_do():
    async def f(): ...

    with pytest.raises(ValueError, match="async"):
        ray.remote(f)


@pytest.mark.parametrize(
    "options", [{"num_cpus": -1}, {"num_cpus": "one"}, {"resources": {"x": float("nan")}}], ids=repr
)
def test_a_wrong_option_is_an_error_where_it_is_given(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        ray.remote(**options)(lambda: 1)
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        add.options(**options)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_num_returns_gives_a_list_of_refs(ray_shared, n):
    @ray.remote(num_returns=n)
    def f():
        return tuple(range(n))

    refs = f.remote()
    assert isinstance(refs, list)
    assert ray.get(refs) == list(range(n))


def test_num_returns_0_gives_none_and_1_the_value_itself(ray_shared, tmp_path):
    @ray.remote(num_returns=0)
    def f(path):
        path.write_text("ran")

    assert f.remote(tmp_path / "file") is None
    wait_until(lambda: (tmp_path / "file").exists() and (tmp_path / "file").read_text() == "ran")

    @ray.remote(num_returns=1)
    def g():
        return 1, 2

    assert ray.get(g.remote()) == (1, 2)


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), 5, None], ids=repr)
def test_a_wrong_number_of_returns_is_an_error_at_get(ray_shared, value):
    @ray.remote(num_returns=2)
    def f():
        return value

    for ref in f.remote():
        with pytest.raises((ValueError, TypeError)):
            ray.get(ref)


def test_options_replace_for_one_call_and_leave_the_function_as_it_is(ray_shared):
    @ray.remote(num_returns=2, num_cpus=2)
    def f():
        return 1, 2

    assert ray.get(f.options(num_returns=1, num_cpus=1).remote()) == (1, 2)
    assert ray.get(f.remote()) == [1, 2]
    assert f.options(num_cpus=1) is f.options(num_cpus=1)  # a loop that asks again costs the engine nothing


def test_the_older_underscore_remote_takes_lists_and_options(ray_shared):
    assert ray.get(add._remote([1], {"b": 2})) == 3
    assert ray.get(add._remote(args=(1,), kwargs={"b": 2}, num_cpus=1)) == 3


def test_refs_as_arguments_become_their_values(ray_shared):
    x = add.remote(1, 2)
    assert ray.get(add.remote(x, b=x)) == 6
    assert ray.get(add.remote(ray.put(5), ray.put(6))) == 11


def test_refs_inside_arguments_stay_refs(ray_shared):
    @ray.remote
    def kinds(refs):
        return [type(r).__name__ for r in refs], ray.get(refs)

    assert ray.get(kinds.remote([ray.put(1), add.remote(1, 1)])) == (["ObjectRef", "ObjectRef"], [1, 2])


def test_a_chain_of_dependent_tasks_runs_in_order(ray_shared):
    x = 0
    for _ in range(50):
        x = add.remote(x, 1)
    assert ray.get(x) == 50


def test_an_error_travels_through_dependent_tasks(ray_shared):
    @ray.remote
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        ray.get(add.remote(add.remote(fail.remote())))


def test_a_task_can_submit_tasks_and_wait_for_them_on_one_cpu(ray_start):
    @ray.remote
    def total(depth):
        return 1 if depth == 0 else sum(ray.get([total.remote(depth - 1) for _ in range(2)]))

    assert ray.get(total.remote(4), timeout=60) == 16


def test_a_function_sees_its_closure_and_its_globals_as_they_were_at_its_first_call(ray_shared):
    offset = 5

    @ray.remote
    def f(x):
        return x + offset

    assert ray.get(f.remote(1)) == 6


def test_a_remote_function_travels_as_an_argument_and_in_a_closure(ray_shared):
    @ray.remote
    def call(function, x):
        return ray.get([function.remote(x), add.remote(x)])

    assert ray.get(call.remote(add, 1)) == [11, 11]


def test_tasks_run_in_other_processes_and_in_parallel(ray_shared):
    @ray.remote
    def meet(mine, other):
        """Returns once both have come."""
        open(mine, "w").close()
        wait_until(lambda: os.path.exists(other))
        return os.getpid()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        a, b = folder + "/a", folder + "/b"
        pids = ray.get([meet.remote(a, b), meet.remote(b, a)], timeout=30)
    assert len({*pids, os.getpid()}) == 3


@pytest.mark.parametrize("count", [1, 3])
def test_a_worker_ends_after_max_calls(ray_start, count):
    @ray.remote(max_calls=count)
    def pid():
        return os.getpid()

    pids = [ray.get(pid.remote()) for _ in range(2 * count)]
    assert len(set(pids[:count])) == 1
    assert not set(pids[:count]) & set(pids[count:])


def test_a_task_whose_worker_dies_is_run_again(ray_shared, tmp_path):
    @ray.remote(max_retries=2)
    def die_once(flag):
        if not flag.exists():
            flag.touch()
            os._exit(1)
        return "second time"

    assert ray.get(die_once.remote(tmp_path / "flag"), timeout=30) == "second time"


def test_a_task_whose_worker_dies_is_not_run_again_with_max_retries_0(ray_shared):
    @ray.remote(max_retries=0)
    def die():
        os._exit(7)

    with pytest.raises(ray.exceptions.WorkerCrashedError, match="7"):
        ray.get(die.remote(), timeout=30)


@pytest.mark.parametrize("retry, attempts", [(False, 1), (True, 3), ([ValueError], 3), ([KeyError], 1)], ids=repr)
def test_retry_exceptions_says_which_errors_are_worth_another_try(ray_shared, tmp_path, retry, attempts):
    @ray.remote(max_retries=2, retry_exceptions=retry)
    def fail(path):
        with open(path, "a") as out:
            out.write("x")
        raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        ray.get(fail.remote(tmp_path / "tries"), timeout=30)
    assert (tmp_path / "tries").read_text() == "x" * attempts


def test_calls_from_many_threads_all_come_back(ray_shared):
    results: list[int] = []

    def call(i):
        results.extend(ray.get([add.remote(i, j) for j in range(50)]))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(i + j for i in range(4) for j in range(50))


def test_an_argument_that_cannot_be_pickled_names_what_is_at_fault(ray_shared):
    class Holder:
        def __init__(self):
            self.lock = threading.Lock()

    with pytest.raises(TypeError, match="lock"):
        add.remote(Holder())


def test_a_result_that_cannot_be_pickled_is_an_error_at_get(ray_shared):
    @ray.remote
    def f():
        return threading.Lock()

    with pytest.raises(TypeError, match="lock"):
        ray.get(f.remote())


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)
def test_a_task_that_can_never_be_scheduled_says_so_and_names_the_resource(ray_start, capfd):
    @ray.remote(resources={"unobtainium": 1})
    def f(): ...

    ref = f.remote()
    said = []
    wait_until(lambda: said.append(capfd.readouterr().err) or "unobtainium" in "".join(said))
    assert ray.wait([ref], timeout=0) == ([], [ref])


def test_parameters_may_have_any_name(ray_shared):
    @ray.remote
    def f(self=1, args=2, kwargs=3, function=4):
        return self, args, kwargs, function

    for _ in range(2):  # the first call and a bound one
        assert ray.get(f.remote(self=9, args=8, kwargs=7, function=6)) == (9, 8, 7, 6)


def test_remote_functions_may_call_themselves_and_one_another(ray_shared):
    @ray.remote
    def even(n):
        return True if n == 0 else ray.get(odd.remote(n - 1))

    @ray.remote
    def odd(n):
        return False if n == 0 else ray.get(even.remote(n - 1))

    assert ray.get([even.remote(4), odd.remote(4)]) == [True, False]


def test_compiled_functions_can_be_remote(ray_shared):
    import math

    assert ray.get(ray.remote(math.sqrt).remote(16)) == 4
    assert ray.get(ray.remote(len).remote([1, 2])) == 2


def test_options_that_differ_at_each_call_work(ray_shared):
    assert ray.get([add.options(name=f"task {i}").remote(i, 0) for i in range(200)]) == list(range(200))
