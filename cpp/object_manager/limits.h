// Every bound of the object manager, with its reason.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/clock.h"

namespace ray::objects {

// Bytes of an object behind one header. Between two chunks a control frame may slip in and another object take its
// turn: at 1 GB/s this much takes a millisecond. The header and its system call cost nothing beside it.
constexpr uint32_t kChunkBytes = 1 << 20;
// The largest frame that is no chunk: a referral to kReferralsMax addresses.
constexpr uint32_t kControlBytesMax = 4 << 10;
// The largest frame on a local socket: a pull with kSourcesMax sources.
constexpr uint32_t kLineBytesMax = 16 << 10;
// What one connection may send or receive before the next has its turn.
constexpr size_t kTurnBytes = 4 << 20;

// Transfers of one object that a store sends at once; whoever asks then is referred to those that it sends to. Two: the
// tree is shallow, and a slow branch holds up only what hangs from it.
constexpr size_t kServedAtOnceMax = 2;
constexpr size_t kReferralsMax = 8;
constexpr size_t kSourcesMax = 64;
// Objects of which it is remembered who has got a copy, and copies of each; beyond that a copy is left to eviction.
constexpr size_t kSpreadKeysMax = 1 << 16;
constexpr size_t kSpreadCopiesMax = 1024;

// A source that was asked and sends nothing for so long is left for another.
constexpr int64_t kSilenceNs = 5 * kNsPerS;
// From a process's end to its objects' at other stores: in it, who has just been told of one claims it there, by way of
// two connections that this message does not take.
constexpr int64_t kLapseDelayNs = kNsPerS / 2;
// What other stores were told to free is remembered so long, and so much of it, to be said again when the connection to
// one of them turns out to have ended: longer than a broken one is taken for a whole one.
constexpr int64_t kEndedNs = 60 * kNsPerS;
constexpr size_t kEndedMax = 10'000;
// How often the list of sources is gone through when all that is wrong with them is their silence.
constexpr int kRoundsMax = 3;

// A source whose connection ended, or could not be made, is dialled again after a pause that doubles from kPauseMinNs
// to kPauseMaxNs: until it answers, or is said to be down (SourceDown). Of one that nobody knows any more nobody says
// so.
constexpr int64_t kPauseMinNs = 20 * kNsPerMs;
constexpr int64_t kPauseMaxNs = kNsPerS;
constexpr int64_t kBrokenNs = 60 * kNsPerS;

// Unsent bytes of control frames at which a peer is taken for one that does not read.
constexpr size_t kOutBytesMax = 4 << 20;
constexpr size_t kPeersMax = 4096;
constexpr size_t kLinesMax = 4096;

static_assert(kControlBytesMax >= 2 + kReferralsMax * (3 + 255), "a referral fits");
static_assert(kLineBytesMax >= 30 + kSourcesMax * (3 + 63), "a pull fits with numeric addresses");

}  // namespace ray::objects
