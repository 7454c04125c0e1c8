"""What libraries reach for below the public names, and modules of ours that functions of theirs refer to."""

from __future__ import annotations

import ray
from ray import client, util
from ray._private import worker


def test_functions_may_refer_to_modules_of_ray_that_are_more_than_modules(ray_shared):
    """Those with a class of their own weren't pickled: daft's classes have ray.util among their globals."""

    @ray.remote
    def names():
        return [module.__name__ for module in (util, client, worker)], util.get_node_ip_address()

    assert ray.get(names.remote())[0] == ["ray.util", "ray.client", "ray._private.worker"]
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps((util, client, worker))) == (util, client, worker)


def test_the_worker_module_says_what_kind_of_process_this_is(ray_shared):
    @ray.remote
    def mode():
        import ray._private.worker

        return ray._private.worker.global_worker.mode

    assert worker.global_worker.mode == ray.SCRIPT_MODE and worker.global_worker.connected
    assert ray.get(mode.remote()) == ray.WORKER_MODE


def test_the_warning_about_blocking_an_event_loop_may_be_turned_off(monkeypatch):
    from ray import api

    monkeypatch.setattr(api, "_warned", False)
    assert not worker.blocking_get_inside_async_warned
    worker.blocking_get_inside_async_warned = True
    assert api._warned


def test_modules_of_ray_util_are_found_without_an_import_of_their_own():
    from tests.test_exports import in_fresh_python

    code = "import ray; print(json.dumps([ray.util.scheduling_strategies.__name__, ray.util.annotations.__name__]))"
    assert in_fresh_python(code) == ["ray.util.scheduling_strategies", "ray.util.annotations"]
