# Links over TCP whose peer's machine says nothing any more. Included by engine.pyx.
#
# That a node is dead is said by the head; but a cable between two others may be out for longer than anybody wants to wait. So where
# something waits for an acknowledgement that doesn't come, the link is given up after kSilenceNs, as the kernel gives up idle ones
# (kKeepAlive...). A process that only takes nothing - it stands still, or runs native code that keeps the GIL - is not silent, for
# its machine answers; the kernel's own bound (TCP_USER_TIMEOUT) can't tell these, so it is off for our links once they are in use.
#
# Nothing tells us of silence, so as long as anything is unacknowledged these links are looked at, every LOOK_NS: armed by
# Link.flush, and off when a look finds nothing.

cdef int64_t LOOK_NS = 5_000_000_000


cdef int look_for_silence(Engine self, int64_t now) except -1:
    cdef Link link
    cdef Unheard found
    cdef bint waits = False
    self.deadline_silence_ns = 0
    for link in list(self.links.values()):
        if not link.far or not link.alive or not link.conn.greeted():
            continue
        found = link.conn.LookForSilence(now)
        if found == Unheard.kSilent:
            link.conn.Close("its machine has said nothing for long, though it was sent something")
            self.link_closed(link)
        elif found == Unheard.kWaits:
            waits = True
    if waits:
        self.set_deadline(D_SILENCE, now + LOOK_NS)
    return 0
