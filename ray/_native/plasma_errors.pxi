# What the store refuses, and how it is said. Included by plasma.pyx.

class PlasmaError(Exception):
    """What the plasma store refused or cannot do any more."""


class PlasmaStoreDied(PlasmaError, ConnectionError):
    """The store process has ended or closed the connection. What is mapped already stays readable."""


class PlasmaObjectExists(PlasmaError):
    """An object of that id is in the store already, sealed or being written."""


class PlasmaObjectNotFound(PlasmaError, KeyError):
    """No object of that id is in the store."""

    def __str__(self):  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class PlasmaStoreFull(PlasmaError, MemoryError):
    """No room: all that is there is being read, written or lent, or nothing may be spilled. The text says by whom."""


class PlasmaDiskFull(PlasmaStoreFull):
    """No room, and none on the disks to which objects would be spilled to make some."""


cdef int _died(Client* client) except -1:
    if client.forked():
        raise PlasmaStoreDied("this process was forked from the one that connected to the plasma store; connect anew")
    raise PlasmaStoreDied("the plasma store has died or closed the connection; its objects are lost")


cdef int _raise_status(const Status& status, str doing) except -1:
    cdef StatusCode code = status.code()
    if code == StatusCode.kInterrupted and PyErr_Occurred() != NULL:
        return -1  # first of all: nothing of Python may run while that is set
    cdef bytes raw = status.message()
    text = raw.decode("utf-8", "replace")
    if code == StatusCode.kDisconnected:
        raise PlasmaStoreDied(f"{doing}: {text}")
    if code == StatusCode.kOutOfMemory:
        raise PlasmaStoreFull(f"{doing}: {text}")
    if code == StatusCode.kOutOfDisk:
        raise PlasmaDiskFull(f"{doing}: {text}")
    if code == StatusCode.kTooLarge:
        raise PlasmaStoreFull(text)
    if code == StatusCode.kTimedOut:
        raise TimeoutError(f"{doing}: {text}")
    if code == StatusCode.kPermission:
        raise PermissionError(f"{doing}: {text}")
    if code == StatusCode.kNotFound:
        raise FileNotFoundError(f"{doing}: {text}")
    if code == StatusCode.kInvalidArgument:
        raise ValueError(f"{doing}: {text}")
    raise OSError(f"{doing}: {text}")
