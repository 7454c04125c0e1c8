// How a connection that a node's gate accepted reaches the process that it is for: a descriptor passed over that
// process's own Unix socket, with a hello of role kRoleHandoff (docs/internals/cluster.md). No state. Any thread.
#pragma once

#include <string>

#include "channel/handshake.h"
#include "common/status.h"

namespace ray::channel {

// Dials unix_path, sends the hello of `self` (whatever its role, as kRoleHandoff) with a copy of fd, and hangs up. fd
// stays the caller's to close. What Dial may say, or kTimedOut if the socket takes no 64 bytes. Never blocks longer
// than Dial. The other side sees kRoleHandoff in peer_role() and takes the copy with TakePassed().
Status HandOver(const std::string& unix_path, int fd, const Identity& self);

// Gives `self` the proof for TCP, from its token.
void ProveOverNetwork(Identity* self);

}  // namespace ray::channel
