// The socket calls of the channel in one place: addresses, options, credentials. No state. Every descriptor made here
// is close-on-exec and non-blocking. Any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "common/status.h"

namespace ray::channel {

// Each returns a descriptor, or -1 and a Status.
int ConnectUnix(const std::string& path, Status* status);  // connected
int ListenUnix(const std::string& path, int backlog, Status* status);
int ConnectTcp(const std::string& host, uint16_t port, Status* status);  // may still be connecting
int ListenTcp(const std::string& host, uint16_t port, int backlog, uint16_t* bound_port, Status* status);

bool IsUnixSocket(int fd);
// Who is at the other end of a connected Unix socket: for the accepting side the process that connected, for the
// dialling side the one that called listen().
bool PeerOfUnixSocket(int fd, pid_t* pid, uid_t* uid);

// Close-on-exec, non-blocking, a send buffer that holds a good batch (Unix), no delay and keep-alive (TCP).
void TuneSocket(int fd, bool is_unix);

}  // namespace ray::channel
