// Every bound of the channel, with its reason. Compiled into both ends, so a change of a wire bound is a change of
// kHelloVersion (handshake.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/clock.h"

namespace ray::channel {

// Frames start on multiples of this in the stream, so that a payload can be read in place as 64-bit numbers.
constexpr size_t kFrameAlign = 8;
constexpr size_t kFrameHeaderBytes = 8;
// The largest payload of one frame. Larger data goes through plasma (or, between nodes, in chunks).
constexpr uint32_t kFrameBytesMax = 512u << 20;

// What a connection's buffers start with: one recv() of this much takes a few hundred small frames.
constexpr size_t kBufferBytes = 64u << 10;
// A buffer that grew beyond this for a large frame is given back once it is empty. Above an inline result (100 KiB), so
// that a stream of those doesn't allocate each time.
constexpr size_t kBufferKeptBytes = 256u << 10;
// Unsent bytes at which Reserve refuses. Not the working bound: callers stop at their own, far lower, mark
// (pending_bytes()); this one only keeps a bug from eating the machine. Two of the largest frames fit.
constexpr size_t kPendingBytesMax = (size_t{1} << 30) + (size_t{1} << 20);

// A peer that hasn't proved itself after this long is dropped.
constexpr int64_t kHelloDeadlineNs = 5 * kNsPerS;

// Dial never blocks but for a full accept queue of a Unix socket, which has no event to wait for: then the kernel waits
// in connect(2), this long at most.
constexpr int kDialBacklogWaitMs = 200;
// The accept queue asked for; the kernel cuts it to net.core.somaxconn.
constexpr int kBacklog = 4096;

// Send buffer asked for on Unix sockets (the kernel doubles it for its own bookkeeping and cuts it to
// net.core.wmem_max). docs/internals/wire_format.md has the measurement.
constexpr int kSocketSendBytes = 512 << 10;

// TCP: a silent peer is probed after this long, this often, and dropped after this many probes unanswered.
constexpr int kKeepAliveIdleS = 10;
constexpr int kKeepAliveIntervalS = 5;
constexpr int kKeepAliveProbes = 3;
// The same where something waits for the peer's acknowledgement: then there are no probes (TCP_USER_TIMEOUT, and
// Connection::LookForSilence).
constexpr int64_t kSilenceNs = (kKeepAliveIdleS + kKeepAliveIntervalS * kKeepAliveProbes) * int64_t{1'000'000'000};

// Events one Poller::Wait can return.
constexpr int kPollEventsMax = 64;

// How long a wait polls before it sleeps (spin.h): a call's round trip while both ends poll is about 10 us, and about
// 60 when the other end must be woken first. More of it would only burn: what takes longer than this gains little from
// it.
constexpr int64_t kSpinNs = 50'000;
// Waits that sleep at once after many that polled in vain: then polling costs under kSpinNs / 256 a wait.
constexpr int kSpinSkipMax = 255;

static_assert(kFrameBytesMax % kFrameAlign == 0, "a frame of the largest size has no padding to overflow with");
static_assert(kPendingBytesMax >= 2 * (size_t{kFrameBytesMax} + kFrameHeaderBytes), "see above");
static_assert(kBufferBytes <= kBufferKeptBytes, "or each empty buffer would be given back");

}  // namespace ray::channel
