"""What the head's machines want written, as rows of the tables. The head's loop's thread; nothing here waits for Redis.

`WRITERS` says which action is written how. If Redis loses writes while it is away, `write_anew` writes all again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._control.rows import ActorRow, JobRow
from ray._control.tables import Tables
from ray._head import actor_messages as am
from ray._head import jobs, monitor
from ray._head.actor_record import DEAD

if TYPE_CHECKING:
    from ray._head.service import HeadService

logger = logging.getLogger(__name__)


def write_anew(head: HeadService, shard: int) -> None:
    """Redis is back, and writes were dropped while it was away: everything that memory holds is written again."""
    logger.warning("control plane: writes were dropped while server %d was away; its tables are written anew", shard)
    tables = head.need_tables()
    head.functions.write_anew()
    if shard != 0:
        return
    for node in head.monitor.all():
        tables.nodes.put(node)
    for job in head.jobs.all():
        tables.jobs.put(_lasting(head, job))
    head.groups.write_anew()
    for actor in head.actors.all():
        row: ActorRow = actor.row()
        tables.actors.put(row)
        if actor.state != DEAD:
            tables.actors.put_creation(row, actor.creation)
            if actor.name:
                tables.actors.put_name(actor.namespace, actor.name, actor.actor_id)


def _lasting(head: HeadService, row: JobRow) -> JobRow:
    """What is written of a job: a driver's environment only where a head may come back, and need it."""
    return row if head.lasts else row._replace(surroundings={})


def _save_actor(head: HeadService, tables: Tables, action: am.SaveRow) -> None:
    tables.actors.put(action.row)
    if action.row.state == DEAD:
        tables.actors.remove_creation(action.row)


def _save_creation(head: HeadService, tables: Tables, action: am.SaveCreation) -> None:
    tables.actors.put_creation(action.row, action.creation)


def _save_name(head: HeadService, tables: Tables, action: am.SaveName) -> None:
    tables.actors.put_name(*action)


def _drop_name(head: HeadService, tables: Tables, action: am.DropName) -> None:
    tables.actors.remove_name(*action)


def _drop_actor(head: HeadService, tables: Tables, action: am.DropRow) -> None:
    tables.actors.remove(action.row)


def _save_job(head: HeadService, tables: Tables, action: jobs.SaveJob) -> None:
    tables.jobs.put(_lasting(head, action.row))


def _drop_job(head: HeadService, tables: Tables, action: jobs.DropJobRow) -> None:
    tables.jobs.remove(action.job_id)


def _save_node(head: HeadService, tables: Tables, action: monitor.SaveNode) -> None:
    tables.nodes.put(action.row)


def _drop_node(head: HeadService, tables: Tables, action: monitor.DropNode) -> None:
    tables.nodes.remove(action.node_id)


WRITERS: dict[type, Callable[[HeadService, Tables, Any], None]] = {
    am.SaveRow: _save_actor,
    am.SaveCreation: _save_creation,
    am.SaveName: _save_name,
    am.DropName: _drop_name,
    am.DropRow: _drop_actor,
    jobs.SaveJob: _save_job,
    jobs.DropJobRow: _drop_job,
    monitor.SaveNode: _save_node,
    monitor.DropNode: _drop_node,
}
