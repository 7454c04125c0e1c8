# Names of objects that people choose. Included by plasma.pyx.

cdef class ObjectID:
    """The name of an object in the store: 20 bytes.

    Args:   object_id: exactly 20 bytes.
    Raises: TypeError, ValueError.
    """

    cdef readonly bytes key  # padded, as the store has it
    cdef bytes id

    def __cinit__(self, bytes object_id not None):
        if PyBytes_GET_SIZE(object_id) != 20:
            raise ValueError(f"an ObjectID has 20 bytes, {len(object_id)} were given: {object_id!r}")
        self.id = object_id
        self.key = object_id + b"\0\0\0\0\0\0\0\0"

    @staticmethod
    def from_random():
        """A new one that nobody else has."""
        return ObjectID(os.urandom(20))

    def binary(self):
        """The 20 bytes."""
        return self.id

    def hex(self):
        return self.id.hex()

    def __eq__(self, other):
        return isinstance(other, ObjectID) and self.id == (<ObjectID>other).id

    def __hash__(self):
        return hash(self.id)

    def __repr__(self):
        return f"ObjectID({self.id.hex()})"

    def __reduce__(self):
        return ObjectID, (self.id,)
