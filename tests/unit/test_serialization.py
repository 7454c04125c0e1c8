"""What goes in comes out: every kind of blob, on its own, without an engine."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray._native import serialization
from ray._native.references import ObjectRef

# The machine that tests run on is shared: a slow example says nothing.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Ref:
    """Stands for the engine's ObjectRef."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return serialization.reduce_ref(self)


class Handle:
    """Stands for a second kind of reference."""


@pytest.fixture(autouse=True)
def ref_types() -> Iterator[None]:
    serialization.set_ref_type(Ref)
    serialization.add_ref_type(Handle)
    yield
    serialization.set_ref_type(ObjectRef)  # an engine that is started after this has refs of its own


def round_trip(value: Any) -> Any:
    encoded = serialization.encode(value)
    blob = encoded.to_bytes()
    assert len(blob) == encoded.nbytes
    assert blob[0] == encoded.kind
    return serialization.decode(blob, encoded.refs)


def aligned(blob: bytes, shift: int = 0) -> memoryview:
    """A read-only view of a copy of blob whose address is a multiple of 64, plus shift."""
    space = np.zeros(len(blob) + 128, np.uint8)
    start = -space.ctypes.data % 64 + shift
    space[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
    return memoryview(space)[start : start + len(blob)].toreadonly()


def equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or a != a)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
)
hashables = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(hashables, inner) | st.tuples(inner, inner) | st.frozensets(hashables)
    ),
    max_leaves=30,
)


@given(scalars)
@relaxed
def test_scalars_come_back_with_their_type(value: Any) -> None:
    assert equal(round_trip(value), value)
    assert equal(serialization.decode_lent(serialization.encode(value).to_bytes()), value)


@given(scalars, st.integers(9, 64))
@relaxed
def test_encode_into_writes_what_encode_writes_or_nothing(value: Any, room: int) -> None:
    small = serialization.encode_small(value, room)
    if small is not None:
        assert small == serialization.encode(value).to_bytes()
        assert len(small) <= room


@given(nested)
@relaxed
def test_nested_containers_come_back(value: Any) -> None:
    assert equal(round_trip(value), value)
    assert equal(serialization.decode_lent(serialization.encode(value).to_bytes()), value)


# Of dates in the other byte order, numpy's own pickle keeps the value but may lose the byte order.
arrays = hnp.arrays(
    dtype=st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(),
        hnp.datetime64_dtypes(endianness="="),
        hnp.timedelta64_dtypes(endianness="="),
        hnp.byte_string_dtypes(),
        hnp.unicode_string_dtypes(),
    ),
    shape=hnp.array_shapes(min_dims=0, min_side=0, max_side=5),
)


@given(arrays, st.sampled_from("CF"), st.integers(0, 63), st.booleans())
@relaxed
def test_arrays_come_back_read_only_and_aligned(array: np.ndarray, order: Any, shift: int, nest: bool) -> None:
    array = np.asarray(array, order=order)
    value = {"in": array, "again": array} if nest else array
    encoded = serialization.encode(value)
    for result in (
        serialization.decode(aligned(encoded.to_bytes(), shift)),
        serialization.decode_lent(encoded.to_bytes(), None, shift),
    ):
        if nest:
            assert result["again"] is result["in"]
            result = result["in"]
        assert type(result) is np.ndarray
        assert result.dtype == array.dtype
        assert result.shape == array.shape
        assert np.array_equal(result, array, equal_nan=array.dtype.kind in "fcmM")
        if not nest and array.size:
            assert not result.flags.writeable
            assert result.ctypes.data % 64 == 0


def test_large_values_come_back() -> None:
    # Above a MiB buffers are copied with the GIL released.
    data = np.random.default_rng(1).bytes((3 << 20) + 5)
    for value in (
        data,
        data.decode("latin-1"),
        np.frombuffer(data, np.uint8),
        [1, data],
        {"v": [np.frombuffer(data, "u1")]},
    ):
        encoded = serialization.encode(value)
        for view in (encoded.to_bytes(), aligned(encoded.to_bytes())):
            result = serialization.decode(view)
            if isinstance(value, dict):
                assert np.array_equal(result["v"][0], value["v"][0])
            else:
                assert np.array_equal(result, value) if isinstance(value, np.ndarray) else result == value


def test_a_strided_array_comes_back_contiguous() -> None:
    array = np.arange(100).reshape(10, 10)[::2, ::3]
    result = round_trip(array)
    assert np.array_equal(result, array)
    assert result.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "a", None], dtype=object),
        np.zeros(3, [("x", "i4"), ("y", "f8", 2)]),
        np.zeros(4, np.dtype("i8", metadata={"unit": "m"})),
        np.ma.masked_array([1, 2, 3], [0, 1, 0]),
        np.float32(2.5),
        np.datetime64("2020-01-01"),
    ],
    ids=["object", "structure", "metadata", "masked", "scalar", "date"],
)
def test_unusual_arrays_go_through_pickle(array: Any) -> None:
    result = round_trip(array)
    assert type(result) is type(array)
    assert result.dtype == array.dtype
    assert result.dtype.metadata == array.dtype.metadata
    assert np.array_equal(np.ma.getdata(result), np.ma.getdata(array))


def test_results_share_the_memory_of_the_view_and_keep_it_alive() -> None:
    class Pinned(np.ndarray):
        """An exporter that can be watched, as a PlasmaBuffer would be."""

    big = np.arange(10_000)
    for value, part in ((big, lambda v: v), ({"k": [big, 1]}, lambda v: v["k"][0])):
        blob = serialization.encode(value).to_bytes()
        space = np.zeros(len(blob) + 64, np.uint8)
        start = -space.ctypes.data % 64
        space[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
        pinned = space[start : start + len(blob)].view(Pinned)
        address, alive = pinned.ctypes.data, weakref.ref(pinned)
        result = part(serialization.decode(pinned))
        del pinned, space
        gc.collect()
        assert address < result.ctypes.data < address + len(blob)
        assert alive() is not None
        assert np.array_equal(result, big)
        tail = result[5:]
        del result
        gc.collect()
        assert alive() is not None
        del tail
        gc.collect()
        assert alive() is None


def test_tables_and_frames_share_the_memory_of_the_view() -> None:
    pa = pytest.importorskip("pyarrow")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(1000), "b": np.random.default_rng(0).random(1000)})
    table = pa.table({"a": np.arange(1000), "s": ["x"] * 1000})
    view = aligned(serialization.encode([frame, table, table.to_batches()[0]]).to_bytes())
    first = np.frombuffer(view, np.uint8).ctypes.data
    got_frame, got_table, got_batch = serialization.decode(view)
    assert got_frame.equals(frame)
    assert got_table.equals(table)
    assert got_batch.equals(table.to_batches()[0])
    column = got_table.column("a").chunk(0)
    assert first < column.buffers()[1].address < first + view.nbytes
    assert first < got_frame["a"].to_numpy().ctypes.data < first + view.nbytes


def test_a_slice_of_arrow_data_costs_what_it_shows() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": np.arange(100_000), "s": pa.array(["xyz"] * 100_000), "l": [[1, None]] * 100_000})
    column = table.column("s")
    for whole in (table, table.combine_chunks().to_batches()[0], column, column.chunk(0), table.column("l").chunk(0)):
        part = whole.slice(500, 10)
        encoded = serialization.encode([part])
        assert encoded.nbytes < 4096
        result = serialization.decode(aligned(encoded.to_bytes()))[0]
        assert type(result) is type(part)
        assert result.equals(part)
        assert serialization.encode(whole).nbytes > 100_000
        assert round_trip(whole).equals(whole)


def test_shared_and_recursive_references_survive() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    result = round_trip(loop)
    assert result[1] is result
    shared = [1, 2]
    result = round_trip({"a": shared, "b": (shared, shared)})
    assert result["a"] is result["b"][0] is result["b"][1]
    wide: list[Any] = []
    wide.extend([wide] * 300)  # a scan without bounds would not end
    result = round_trip(wide)
    assert all(item is result for item in result)


def test_deep_nesting_names_the_trouble() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="recursion"):
        serialization.encode(deep)


@dataclasses.dataclass
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list)


class Slots:
    __slots__ = ("a", "b")


def test_objects_of_classes_come_back() -> None:
    assert round_trip(Point(1, [2])) == Point(1, [2])
    slots = Slots()
    slots.a = 5
    assert round_trip([slots])[0].a == 5

    class Local:
        def twice(self) -> int:
            return 2 * self.number  # type: ignore[attr-defined]

    local = Local()
    local.number = 4  # type: ignore[attr-defined]
    assert round_trip(local).twice() == 8
    assert round_trip(lambda number: number + 1)(2) == 3
    assert round_trip(Point) is Point


def test_classes_and_functions_of_main_go_by_value() -> None:
    # Made in one process's __main__, used in another's.
    program = """
import sys
from ray._native import serialization
class Thing:
    base = 40
    def __init__(self, n): self.n = n
    def total(self): return helper(self.base, self.n)
def helper(a, b): return a + b
sys.stdout.buffer.write(serialization.encode([Thing(2), {"k": helper}]).to_bytes())
"""
    blob = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    thing, functions = serialization.decode(blob)
    assert thing.total() == 42
    assert functions["k"](1, 2) == 3


def test_modules_registered_by_value_travel_as_code(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.cloudpickle

    (tmp_path / "only_here.py").write_text("class Thing:\n    answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    thing = only_here.Thing()
    by_name = serialization.encode(thing).nbytes
    ray.cloudpickle.register_pickle_by_value(only_here)
    try:
        blob = serialization.encode(thing).to_bytes()
    finally:
        ray.cloudpickle.unregister_pickle_by_value(only_here)
        del sys.modules["only_here"]
    monkeypatch.undo()
    assert len(blob) > 2 * by_name
    program = f"from ray._native import serialization\nassert serialization.decode({blob!r}).answer == 42"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_plain_values_need_neither_numpy_nor_cloudpickle() -> None:
    program = """
import sys
from ray._native import serialization
for value in (1, "x", [1, {"a": (2.0, None)}]):
    assert serialization.decode(serialization.encode(value).to_bytes()) == value
assert not {"numpy", "cloudpickle", "pickle", "asyncio"} & set(sys.modules), sys.modules.keys()
class A: pass
serialization.encode(A())
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_array_is_decoded_where_numpy_was_not_imported_yet() -> None:
    blob = serialization.encode(np.arange(3)).to_bytes()
    program = f"""
from ray._native import serialization
assert serialization.decode({blob!r}).sum() == 3
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- references ------------------------------------------------------------------------------------------------------


def test_refs_are_collected_once_each_and_put_back_by_position() -> None:
    a, b, handle = Ref(1), Ref(2), Handle()
    encoded = serialization.encode({"a": a, "list": [b, a, {"deep": (a, handle)}]})
    assert encoded.refs == [a, b, handle]
    x, y, z = object(), object(), object()
    value = serialization.decode(encoded.to_bytes(), [x, y, z])
    assert value == {"a": x, "list": [y, x, {"deep": (x, z)}]}


@pytest.mark.parametrize("container", [list, tuple])
def test_flat_lists_of_refs_keep_which_is_which(container: Any) -> None:
    refs = [Ref(number) for number in range(50)]
    value = container(refs + refs[::-1])
    encoded = serialization.encode(value)
    assert encoded.refs == refs
    assert serialization.decode(encoded.to_bytes(), encoded.refs) == value
    assert round_trip(container()) == container()


def test_a_single_ref_is_no_pickle() -> None:
    ref = Ref(1)
    encoded = serialization.encode(ref)
    assert encoded.nbytes == 1
    assert round_trip(ref) is ref


def test_refs_in_closures_are_collected() -> None:
    ref = Ref(1)

    def function() -> Any:
        return ref

    blob, refs = serialization.encode_function(function)
    assert refs == [ref]
    other = Ref(2)
    assert serialization.decode_function(blob, [other])() is other
    assert serialization.encode_function(len)[1] is None


def test_missing_refs_are_an_error_not_a_crash() -> None:
    encoded = serialization.encode([1, Ref(1)])
    for refs in (None, []):
        with pytest.raises(ValueError, match="refer"):
            serialization.decode(encoded.to_bytes(), refs)
    for value in (Ref(1), [Ref(1), Ref(2)]):
        with pytest.raises(ValueError, match="refer"):
            serialization.decode(serialization.encode(value).to_bytes(), [])


def test_a_decode_inside_a_decode_has_its_own_refs() -> None:
    inner_ref, outer_ref, last_ref = Ref(1), Ref(2), Ref(3)
    inner = serialization.encode([inner_ref, 1])
    value = [outer_ref, Nesting(inner.to_bytes(), [inner_ref]), last_ref]
    NESTED.clear()
    encoded = serialization.encode(value)
    # The refs inside Nesting's own list are found by the outer encode too.
    assert encoded.refs == [outer_ref, inner_ref, last_ref]
    result = serialization.decode(encoded.to_bytes(), encoded.refs)
    assert result[0] is outer_ref
    assert result[2] is last_ref
    assert NESTED == [[inner_ref, 1]]


NESTED: list[Any] = []


class Nesting:
    def __init__(self, blob: bytes, refs: list[Any]) -> None:
        self.state = (blob, refs)

    def __getstate__(self) -> Any:
        serialization.encode([Ref(7), self.state[0]])  # an encode inside the encode
        return {"state": self.state}

    def __setstate__(self, state: Any) -> None:
        self.state = state["state"]
        NESTED.append(serialization.decode(*self.state))


class Yielding:
    """Lets another thread run in the middle of a pickle and of an unpickle."""

    barrier = threading.Barrier(2)

    def __reduce__(self) -> Any:
        self.barrier.wait(60)
        return meet, ()


def meet() -> str:
    Yielding.barrier.wait(60)
    return "met"


def test_two_threads_in_the_middle_of_it_do_not_mix_their_refs() -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        mine = [Ref(number), Ref(-number)]
        encoded = serialization.encode([mine[0], Yielding(), mine[1]])
        results[number] = (
            encoded.refs == mine,
            serialization.decode(encoded.to_bytes(), encoded.refs) == [mine[0], "met", mine[1]],
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {1: (True, True), 2: (True, True)}


def test_a_ref_outside_of_an_encode_asks_the_hook() -> None:
    ref = Ref(5)
    serialization.set_ref_out_of_band(None)  # an engine that an earlier test started has left its own
    with pytest.raises(TypeError, match=r"task, an actor or ray\.put"):
        pickle.dumps([ref])
    serialization.set_ref_out_of_band(lambda ref: (Ref, (ref.number + 1,)))
    try:
        assert pickle.loads(pickle.dumps([ref]))[0].number == 6
    finally:
        serialization.set_ref_out_of_band(None)


@pytest.mark.parametrize("extra", [b"", b"x" * 100_000, threading.Lock()], ids=["small", "large", "failing"])
def test_an_encode_keeps_nothing_of_the_value_when_it_is_done(extra: Any) -> None:
    gc.disable()  # or the collector would hide a cycle
    try:
        for _ in range(3):
            ref, point = Ref(1), Point(1)
            alive = weakref.ref(ref), weakref.ref(point)
            try:
                encoded = serialization.encode([ref, point, np.arange(5), extra])
                del encoded
            except TypeError as error:
                error.__traceback__ = error.__cause__ = None
            del ref, point
            assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()


def test_ten_thousand_refs_in_a_dict_come_back() -> None:
    refs = [Ref(number) for number in range(10_000)]
    assert round_trip({"refs": refs})["refs"] == refs


# ---- bad input -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@relaxed
def test_garbage_of_a_native_kind_is_a_value_error(garbage: bytes) -> None:
    for kind in (3, 4, 7, 9, 10, 11, 12, 13, 63, 200):
        blob = bytes([kind]) + garbage
        try:
            serialization.decode(blob)
        except (ValueError, TypeError, pickle.UnpicklingError, EOFError):
            continue  # TypeError and SyntaxError are numpy's words for a bad dtype
        except Exception as error:
            if kind == 9 or isinstance(error, SyntaxError):
                continue  # a pickle stream of garbage may raise what it likes; it must not crash
            raise


@pytest.mark.parametrize("value", [np.arange(100), [np.arange(100), b"x"], 5, 1.5, [1, Ref(2)]])
def test_a_blob_cut_short_anywhere_is_an_error(value: Any) -> None:
    encoded = serialization.encode(value)
    blob = encoded.to_bytes()
    for length in range(0, len(blob), max(1, len(blob) // 60)):
        with pytest.raises((ValueError, TypeError, pickle.UnpicklingError, EOFError, BufferError)):
            serialization.decode(blob[:length], encoded.refs)


def test_a_reducer_that_fails_has_its_error_as_the_cause() -> None:
    class Sore:
        def __reduce__(self) -> Any:
            raise RuntimeError("not today")

    with pytest.raises(TypeError, match=r"value\[1\] is .*Sore .*not today") as caught:
        serialization.encode([1, Sore()], "argument 'x' of f()")
    assert "argument 'x' of f()" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_interrupts_pass_through() -> None:
    class Interrupted:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serialization.encode([Interrupted()])


def test_code_that_travels_by_value_keeps_the_name_of_its_file() -> None:
    def outer() -> Any:
        return lambda: 1

    back = round_trip(outer)
    assert back.__code__.co_filename == __file__
    assert back().__code__.co_filename == __file__  # nested code is pickled on its own
    assert back()() == 1
