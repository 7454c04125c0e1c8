// What stores say to each other, and what local processes say to the object manager of their store. The only place that
// turns bytes from outside into values; fuzzed.
//
// Both are streams of frames: plasma::FrameHeader (payload_bytes, type, zero, request), then the payload; little
// endian.
//
// Store to store (TCP; behind the gate's preamble and a proved greeting, channel/handshake.h). The dialling side pulls,
// the accepting side serves; `request` is the puller's number for the transfer.
//
//     puller                                server
//       |-- kAsk key, offset ------------------>|   looks the object up, pins it
//       |<---------------- kSizes, or kGone ----|
//       |   (makes room)                        |
//       |-- kGo offset ------------------------>|
//       |<------------ kChunk, kChunk, ... -----|   without further requests; other transfers take turns
//       |   or <---------------- kRefer --------|   "ask one of those": they have it, or are getting it from me
//       |-- kEnd ------------------------------>|   has all, or wants no more: unpins
//
// A server that is itself still receiving serves what it has (kSizes says how much); its answer to kAsk waits for the
// first byte. kWhere says where the puller can be asked itself. kFree, to the store that holds it: its owner is done
// with it. kLapse, to the same: its owner has died; and to a store with a copy, in either case. With each of them it
// goes unless somebody keeps it: a copy that was pinned after its owner's node was given up outlives the owner. kClaim:
// somebody at the puller's node keeps it, until kUnclaim or the end of the connection; kClaimed says whether there is
// anything to keep, and that from now on it is kept.
//
// Local (Unix socket; the kernel names the peer's user): kPull is answered by one kPulled, whose pin lasts until kLetGo
// or the end of the connection.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "object_manager/limits.h"
#include "plasma/protocol.h"

namespace ray::objects {

using plasma::AppendFrame;
using plasma::FrameHeader;
using plasma::FrameReader;
using plasma::ReadBody;

enum class Peer : uint16_t {
  // puller to server
  kWhere = 1,    // an address
  kAsk = 2,      // AskBody
  kGo = 3,       // GoBody
  kEnd = 4,      // empty
  kFree = 5,     // key
  kClaim = 6,    // key; of a request
  kUnclaim = 7,  // key
  kLapse = 8,    // key
  // server to puller
  kSizes = 64,   // SizesBody
  kChunk = 65,   // the bytes that follow those sent before
  kRefer = 66,   // addresses
  kGone = 67,    // why, for a person
  kClaimed = 68  // u8: 0 no such object
};

struct AskBody {
  ObjectId key;
  uint32_t zero;
  uint64_t offset;  // what the puller has already
};
struct GoBody {
  uint64_t offset;
  uint32_t must_serve;  // 1: the others were asked in vain; refer to nobody
  uint32_t zero;
};
struct SizesBody {
  uint64_t data_bytes, metadata_bytes;
  uint64_t have_bytes;  // of data and metadata together
};
static_assert(sizeof(AskBody) == 40 && sizeof(GoBody) == 16 && sizeof(SizesBody) == 24);

enum class Line : uint16_t {
  // to the object manager                      answered by
  kPull = 1,       // PullBody                  kPulled
  kLetGo = 2,      // empty; of that request    nothing: the pull is cancelled, or its pin dropped
  kHold = 3,       // key                       kHeld
  kFree = 4,       // key, address or nothing   nothing
  kOwnerDead = 5,  // 1 to 16 bytes of a tag    kCount: held objects that were freed
  kAdopt = 6,      // empty, with a descriptor  nothing: a connection accepted by the gate, preamble read
  kSelf = 7,       // address                   nothing: where the gate of this node is reached
  kStats = 8,      // empty                     kStatsAre
  kOwn = 9,        // key, address              nothing: held there for the asker; freed there when his line ends
  kPeerDown = 10,  // address                   nothing: that node is dead, whatever its connections look like
  kClaim = 11,     // key, address              kClaimed: the asker keeps it there, whoever else does
  kUnclaim = 12,   // key, address              nothing: no longer
  kLapse = 13,     // key                       nothing: its owner has died; it goes here and wherever we have sent it,
                   //                           unless somebody keeps it
  // from it
  kPulled = 64,    // u8 Outcome, then text
  kHeld = 65,      // u8: 0 no such object
  kCount = 66,     // u64
  kStatsAre = 67,  // Stats
  kClaimed = 68    // u8: 0 there is no such object, or nobody to ask for it
};

enum class Outcome : uint8_t { kHere = 0, kNoSource = 1, kNoRoom = 2 };
enum class Urgency : uint8_t { kGet = 0, kPrefetch = 1 };

struct Address {
  std::string host;  // numeric
  uint16_t port = 0;
  std::string Text() const { return host + ":" + std::to_string(port); }
  friend auto operator<=>(const Address&, const Address&) = default;
};

// What the store that is reached there says that it is, in its hello: so whoever dialled it knows that it is that one.
Tag StoreTag(const Address& address);

struct PullBody {
  Urgency urgency = Urgency::kGet;
  ObjectId key{};
  std::vector<Address> sources;
};

struct FreeBody {
  ObjectId key{};
  std::optional<Address> home;  // none: our own store
};

struct Stats {
  uint64_t pulls, pulls_joined, pulls_done, pulls_failed, pulls_now, resumed;
  uint64_t bytes_in, bytes_out, served, referred, serving_now;
  uint64_t held, links, lines, bad_frames, freed;
};

// u16 port, u8 length, host.
void AppendAddress(std::string* out, const Address& address);
std::string AddressesBody(const std::vector<Address>& addresses);  // u16 count, then each

// nullopt: malformed, or beyond the bounds of limits.h.
std::optional<Address> ReadAddress(std::span<const uint8_t> payload);
std::optional<std::vector<Address>> ReadAddresses(std::span<const uint8_t> payload, size_t addresses_max);
std::optional<PullBody> ReadPull(std::span<const uint8_t> payload);
std::string PullPayload(const PullBody& body);
std::optional<FreeBody> ReadFree(std::span<const uint8_t> payload);
std::string FreePayload(const FreeBody& body);

// Whether a frame of that header may come from a puller (or from a server). A chunk's payload is not read by the
// caller's control buffer, so its bound is another.
bool HeaderAllowed(const FrameHeader& header, bool from_puller);

}  // namespace ray::objects
