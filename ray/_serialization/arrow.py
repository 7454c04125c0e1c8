"""Slices of Arrow data travel as what they show, not as what they are cut from.

Arrow pickles a slice with the whole buffers under it: ten rows of a table of a million cost as much as the table. What
is cut from much more is written as an Arrow stream first, which holds only the slice and is read back without a copy.
Whole tables keep Arrow's own way, which copies nothing. Imported by the native pickler once the process has pyarrow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

# A copy of this much is cheaper than thinking about it.
_WASTE_BYTES_MAX = 4096


def reducers() -> dict[type, Callable[[Any], Any]]:
    """Exact type -> its reducer; empty while another thread is still importing pyarrow."""
    lib = sys.modules.get("pyarrow.lib")
    if lib is None or not hasattr(sys.modules.get("pyarrow"), "ipc"):
        return {}
    array_types = [cls for cls in vars(lib).values() if isinstance(cls, type) and issubclass(cls, lib.Array)]
    return {
        lib.Table: reduce_table,
        lib.RecordBatch: reduce_batch,
        lib.ChunkedArray: reduce_chunked_array,
        **dict.fromkeys(array_types, reduce_array),
    }


def _is_a_small_part(data: Any) -> bool:
    # nbytes counts what a slice shows (and may not be known for every type), the other what it refers to.
    try:
        return bool(data.get_total_buffer_size() > 2 * data.nbytes + _WASTE_BYTES_MAX)
    except NotImplementedError:
        return False


def reduce_table(table: Any) -> Any:
    """A Table, if it is a small part of its buffers."""
    return (table_from, (_stream(table),)) if _is_a_small_part(table) else NotImplemented


def reduce_batch(batch: Any) -> Any:
    """A RecordBatch, likewise."""
    return (batch_from, (_stream(batch),)) if _is_a_small_part(batch) else NotImplemented


def reduce_chunked_array(column: Any) -> Any:
    """A ChunkedArray, likewise: as a table of one column."""
    import pyarrow

    if not _is_a_small_part(column):
        return NotImplemented
    return column_from, (_stream(pyarrow.Table.from_arrays([column], names=[""])),)


def reduce_array(array: Any) -> Any:
    """An Array, likewise: as a batch of one column."""
    import pyarrow

    if not _is_a_small_part(array):
        return NotImplemented
    return array_from, (_stream(pyarrow.RecordBatch.from_arrays([array], names=[""])),)


def _stream(data: Any) -> PickleBuffer:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, data.schema) as writer:
        writer.write(data)
    return PickleBuffer(sink.getvalue())


def table_from(stream: Any) -> Any:
    """The Table in an Arrow stream; it shares the stream's memory. So do the three below."""
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.py_buffer(stream)).read_all()


def batch_from(stream: Any) -> Any:
    """The RecordBatch in an Arrow stream."""
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.py_buffer(stream)).read_next_batch()


def column_from(stream: Any) -> Any:
    """The only column of a table."""
    return table_from(stream).column(0)


def array_from(stream: Any) -> Any:
    """The only column of a batch."""
    return batch_from(stream).column(0)
