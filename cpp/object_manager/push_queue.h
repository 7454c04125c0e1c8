// Whom this store sends which object to, and whom it refers to others. Pure: events in, actions out; no clock.
//
// Object manager's thread. A transfer that was let go (kGo) is in exactly one of: sent now (at most kServedAtOnceMax of
// one object), waiting for the first byte to be sent to somebody whom it can be referred to. So a popular object
// spreads as a tree: the first two are served, later ones are sent to those, and whoever has got the object serves too.
// The end of a peer's connection ends its transfers.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "object_manager/pull_queue.h"

namespace ray::objects {

// A puller's transfer: its connection, and its own number for it.
struct PushId {
  uint64_t peer;
  TransferId transfer;
  friend auto operator<=>(const PushId&, const PushId&) = default;
};

struct Serve {
  PushId push;
};
struct ReferTo {
  PushId push;
  std::vector<Address> to;
};
using PushAction = std::variant<Serve, ReferTo>;

class PushQueue {
 public:
  // where: where the peer can be asked itself, if it has said so.
  void Go(PushId push, const ObjectId& key, bool must_serve, const std::optional<Address>& where);
  void Sent(PushId push);  // some bytes
  void End(PushId push);
  void PeerGone(uint64_t peer);
  // The object is freed: who has got it from us, to be told. Forgets them.
  std::vector<Address> TakeCopies(const ObjectId& key);
  // Of which objects, with an id that begins so, others have copies from us.
  std::vector<ObjectId> WithCopies(std::span<const uint8_t> prefix) const;

  std::vector<PushAction> TakeActions() { return std::exchange(actions_, {}); }
  size_t serving() const { return serving_; }
  uint64_t served() const { return served_; }
  uint64_t referred() const { return referred_; }
  std::string Check() const;

 private:
  struct Push {
    PushId id;
    bool must_serve;
    std::optional<Address> where;
    bool sent = false;
  };
  struct Object {
    std::vector<Push> now;
    std::deque<Push> waiting;
    size_t turn = 0;  // referrals begin with another each time
  };
  void Decide(const ObjectId& key, Object& object);
  void Start(const ObjectId& key, Object& object, Push push);
  std::vector<Address> Others(const ObjectId& key, Object& object, const Push& push);

  std::unordered_map<ObjectId, Object, KeyHash> objects_;  // with a transfer, now or waiting
  std::map<PushId, ObjectId> pushes_;
  std::unordered_map<ObjectId, std::vector<Address>, KeyHash> copies_;  // begun; most have it whole
  std::vector<PushAction> actions_;
  size_t serving_ = 0;
  uint64_t served_ = 0, referred_ = 0;
};

}  // namespace ray::objects
