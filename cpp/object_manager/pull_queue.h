// What this store is fetching, from where, and what to do next. Pure: events in, actions out; the clock is given.
//
// Object manager's thread. One pull per object however many ask. A pull is in exactly one of
//
//     ASKING    a source was asked what it has                          transfer != 0
//     PAUSED    no source can be reached at this moment                 until deadline_ns
//     QUEUED    sizes known; waits until room may be asked for
//     ROOM      the store was asked for room
//     FLOWING   a source sends from `received` on; there is an extent   transfer != 0
//
// and leaves by Seal (all bytes came), by Abort (no source left, no room ever, nobody waits any more). Whatever a
// source does - closes, falls silent, has less than we - the pull goes on at `received` with another: bytes once
// received are never asked for again. Rooms are asked for in order of arrival, gets before prefetches; how long a room
// takes is the store's affair (it evicts what is not pinned, and else waits).
//
// A source may itself be receiving. It is taken only if it has more than we have; as whoever is fed by us has at most
// that much, no ring of pulls that wait for one another can arise.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "object_manager/wire.h"
#include "plasma/layout.h"

namespace ray::objects {

using TransferId = uint64_t;  // never 0, never reused

struct PullAsker {
  uint64_t line;
  uint64_t request;
  friend auto operator<=>(const PullAsker&, const PullAsker&) = default;
};

struct KeyHash {
  size_t operator()(const ObjectId& key) const { return plasma::HashKey(key); }
};

// What is to be done, in this order. Doing it may bring events at once; they are to be fed after the list is through.
struct SendAsk {
  TransferId transfer;
  Address source;
  ObjectId key;
  uint64_t offset;
};
struct SendGo {
  TransferId transfer;
  uint64_t offset;
  bool must_serve;
};
struct SendEnd {
  TransferId transfer;  // and forget it
};
struct MakeRoom {
  ObjectId key;
  uint64_t data_bytes, metadata_bytes;
};
struct DropRoom {  // it is not wanted any more: cancel the request, or undo the extent
  ObjectId key;
};
struct Seal {
  ObjectId key;
};
struct Tell {
  PullAsker asker;
  ObjectId key;
  Outcome outcome;
  std::string text;
};
using PullAction = std::variant<SendAsk, SendGo, SendEnd, MakeRoom, DropRoom, Seal, Tell>;

class PullQueue {
 public:
  // ---- events. The object is not here (the caller has looked).
  void Want(PullAsker asker, const PullBody& what, int64_t now_ns);
  void LetGo(PullAsker asker);
  void LineGone(uint64_t line);

  void Sizes(TransferId transfer, const SizesBody& sizes, int64_t now_ns);
  void Refer(TransferId transfer, const std::vector<Address>& to, int64_t now_ns);
  // The source has not got it (any more), or is none. `why` for a person.
  void SourceLost(TransferId transfer, const std::string& why, int64_t now_ns);
  // Its connection ended, or could not be made: others are asked, and it again after a pause.
  void SourceBroken(TransferId transfer, const std::string& why, int64_t now_ns);
  // Nobody is at that address any more: no pull asks there again, and one that does now asks the next.
  void SourceDown(const Address& address, const std::string& why, int64_t now_ns);
  // So many bytes more are in the extent.
  void Got(TransferId transfer, uint64_t bytes, int64_t now_ns);

  void RoomMade(const ObjectId& key, int64_t now_ns);
  // Never: larger than the store, or an object of that key is being written here.
  void RoomRefused(const ObjectId& key, const std::string& why);
  // It came by another way meanwhile, sealed: no extent was made.
  void CameOtherwise(const ObjectId& key);

  // The owner has freed it, or makes it anew: a pull of it is over.
  void Freed(const ObjectId& key);

  // Leaves sources that were silent for too long.
  void Tick(int64_t now_ns);
  std::optional<int64_t> next_deadline_ns() const;

  std::vector<PullAction> TakeActions() { return std::exchange(actions_, {}); }

  // Bytes at the front of the extent that are there; none: no extent.
  std::optional<uint64_t> Received(const ObjectId& key) const;
  bool Knows(const ObjectId& key) const { return pulls_.count(key) != 0; }
  std::optional<ObjectId> KeyOf(TransferId transfer) const;
  // Bytes that the transfer may still bring; 0: not flowing.
  uint64_t Missing(TransferId transfer) const;
  size_t size() const { return pulls_.size(); }
  uint64_t started() const { return started_; }
  uint64_t joined() const { return joined_; }
  uint64_t done() const { return done_; }
  uint64_t failed() const { return failed_; }
  uint64_t resumed() const { return resumed_; }

  // Derives every index anew; "" or what is wrong.
  std::string Check() const;

 private:
  enum class State : uint8_t { kAsking, kPaused, kQueued, kRoom, kFlowing };
  struct Source {
    Address address;
    bool lost = false;      // said no, or is unreachable: not asked again
    bool silent = false;    // in this round
    bool broken = false;    // silent because it can't be reached
    bool referred = false;  // has referred us to others: if asked again, it must serve
    std::string why;
  };
  struct Pull {
    State state = State::kAsking;
    uint64_t arrival = 0;
    std::vector<std::pair<PullAsker, Urgency>> askers;
    std::vector<Source> sources;  // in the order to try
    size_t source = 0;            // in use, if transfer != 0
    TransferId transfer = 0;
    bool sizes_known = false;
    uint64_t data_bytes = 0, metadata_bytes = 0;
    uint64_t received = 0;
    bool has_extent = false;
    int rounds = 0;
    int64_t broken_since_ns = 0;  // no source has answered since then; 0: one has
    int64_t pause_ns = 0;         // the last
    int64_t deadline_ns = 0;      // while a source owes us something, or of the pause
    bool urgent() const;
    uint64_t total() const { return data_bytes + metadata_bytes; }
  };
  using Pulls = std::unordered_map<ObjectId, Pull, KeyHash>;

  Pull* Find(TransferId transfer, ObjectId* key);
  void AskNext(const ObjectId& key, Pull& pull, int64_t now_ns);
  bool Pause(Pull& pull, int64_t now_ns);
  void Leave(Pull& pull, bool tell_source);  // the source in use
  void Drop(const ObjectId& key, Pull& pull);
  void Go(Pull& pull, int64_t now_ns);
  void Finish(const ObjectId& key, Pull& pull);
  void Fail(const ObjectId& key, Pull& pull, Outcome outcome, const std::string& text);
  void Admit();
  static void AddSources(Pull& pull, const std::vector<Address>& addresses, bool first);

  Pulls pulls_;
  std::unordered_map<TransferId, ObjectId> transfers_;
  std::vector<PullAction> actions_;
  size_t queued_ = 0;  // pulls in kQueued
  TransferId next_transfer_ = 1;
  uint64_t next_arrival_ = 1;
  uint64_t started_ = 0, joined_ = 0, done_ = 0, failed_ = 0, resumed_ = 0;
};

}  // namespace ray::objects
