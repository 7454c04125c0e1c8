"""Constants of the frames that every connection may carry, and of identities. See docs/internals/wire_format.md."""

from __future__ import annotations

# Frame types below 16 are control frames, pickled; those above belong to the engine, core to core.
FRAME_RPC = 1  # pickle((request_id, method, args))
FRAME_REPLY = 2  # pickle((request_id, ok, result_or_exception))
FRAME_EVENT = 3  # pickle((name, args))
FRAME_ENGINE_FIRST = 16

FRAME_BYTES_MAX = 512 * 2**20

ROLE_DRIVER = 0
ROLE_WORKER = 1
ROLE_NODE = 2
ROLE_TOOL = 3
ROLE_HANDOFF = 4  # brings a connection that the node accepted for the process at the other end

# What a node's gate reads before anything else of a TCP connection: PREAMBLE_MAGIC, u16 version, u8 destination, five
# zeros, 16 bytes tag (of the core; else zeros).
PREAMBLE_MAGIC = b"\x8fraygate"
PREAMBLE_VERSION = 1
PREAMBLE_BYTES = 32
DESTINATION_NODE = 0
DESTINATION_CORE = 1
DESTINATION_STORE = 2
# What the gate answers, and then closes: the core that the preamble names is gone.
GONE_MAGIC = b"\x8fraygone"

TAG_BYTES = 16
TOKEN_BYTES = 32
NODE_ID_BYTES = 16
ACTOR_ID_BYTES = 16
JOB_ID_BYTES = 4
FUNCTION_ID_BYTES = 16
TASK_ID_BYTES = 24
OBJECT_ID_BYTES = 28

# A worker writes LOG_NAME_MARK + name + "\n" to a stream before the first output of a new name; the node strips it.
LOG_NAME_MARK = b"\x1fray:name:"

# How the cause of death begins of an actor whose runtime environment could not be set up: callers raise another error.
RUNTIME_ENV_FAILED = "its runtime environment could not be set up: "

# A worker whose call ran over its timeout_s and could not be interrupted dies of this signal (a real-time one, which no
# program uses by itself), and this is the cause that the node gives for its death.
TIME_LIMIT_SIGNAL = 60
TIME_LIMIT_CAUSE = "a call ran over its timeout_s and did not react to the interruption"


# How the cause of death begins of a worker that was ended, by the node or by the kernel, because memory ran out; and
# what it says if the task that it ran is to run again without counting the try. Callers look for both.
OUT_OF_MEMORY = "out of memory: "
OUT_OF_MEMORY_AGAIN = "It runs again when there is memory; this try is not counted."


def job_id_bytes(number: int) -> bytes:
    return number.to_bytes(JOB_ID_BYTES, "little")
