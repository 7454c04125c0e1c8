// What the object manager asks of its own store, as one client among others.
#include <sys/epoll.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "common/clock.h"
#include "object_manager/transfer_loop.h"

namespace ray::objects {

using plasma::Patience;
using plasma::Place;
using plasma::Step;

namespace {
constexpr uint64_t kStoreKey = 2;

// A step that the store must be asked about. It answers at once: nobody else's doing is waited for.
template <typename Try>
Step Decided(plasma::Client* store, Try step) {
  Step s = step();
  while (s == Step::kAsk && store->Sync(Patience{}).ok()) s = step();
  return s == Step::kAsk ? Step::kDied : s;
}
}  // namespace

plasma::Client* TransferLoop::Store() {
  if (store_ != nullptr) return store_.get();
  if (const Status s = plasma::Client::Connect(options_.plasma_socket, Patience{}, &store_); !s.ok()) {
    std::fprintf(stderr, "plasma_store: the object manager cannot reach its store: %s\n", s.message().c_str());
    store_.reset();
    return nullptr;
  }
  if (!Watch(store_->connection_fd(), kStoreKey, false, true)) std::perror("plasma_store: epoll_ctl");
  return store_.get();
}

bool TransferLoop::PinHere(const ObjectId& key, Place* place) {
  plasma::Client* store = Store();
  return store != nullptr && Decided(store, [&] { return store->TryGet(key, place); }) == Step::kDone;
}

void TransferLoop::DeleteHere(const ObjectId& key) {
  plasma::Client* store = Store();
  if (store != nullptr && Decided(store, [&] { return store->TryDelete(key); }) == Step::kDone) ++freed_;
}

bool TransferLoop::Hold(const ObjectId& key) {
  if (holds_.count(key) != 0) return true;
  Place place;
  if (!PinHere(key, &place)) return false;
  holds_.emplace(key, place.slot);
  return true;
}

void TransferLoop::Free(const ObjectId& key) {
  for (const Address& copy : pushes_.TakeCopies(key)) {
    // One that cannot be reached any more frees it by eviction.
    if (PeerConn* peer = Dial(copy); peer != nullptr) peer->stream->Send(Peer::kFree, 0, key.bytes, ObjectId::kBytes);
  }
  pulls_.Freed(key);
  if (const auto held = holds_.extract(key); !held.empty()) store_->Unpin(held.mapped());
  DeleteHere(key);
}

uint64_t TransferLoop::OwnerDead(std::span<const uint8_t> prefix) {
  std::vector<ObjectId> dead;
  for (const auto& [key, slot] : holds_) {
    if (std::memcmp(key.bytes, prefix.data(), prefix.size()) == 0) dead.push_back(key);
  }
  for (const ObjectId& key : dead) Free(key);
  // What it had put here itself: our node deletes that (ray/_node/orphans.py); the copies at other nodes are ours to
  // tell.
  for (const ObjectId& key : pushes_.WithCopies(prefix)) Free(key);
  return dead.size();
}

void TransferLoop::TryRoom(const Room& room) {
  plasma::Client* store = Store();
  if (store == nullptr) return pulls_.RoomRefused(room.key, "the object store does not answer");
  for (;;) {
    Place place;
    const Step step = store->TryCreate(room.key, room.data_bytes, room.metadata_bytes, &place);
    if (step == Step::kDone) {
      extents_[room.key] = {place, 0};
      pulls_.RoomMade(room.key, NowNs());
      return PartialGrew(room.key);
    }
    if (step == Step::kExists) {
      if (!PinHere(room.key, &place)) return pulls_.RoomRefused(room.key, "an object of that id is being written here");
      loose_pins_.push_back(place.slot);
      pulls_.CameOtherwise(room.key);
      PartialGone(room.key);
      return;
    }
    if (step == Step::kDied) return pulls_.RoomRefused(room.key, "the object store has died");
    uint64_t request = 0;
    const Status s = store->StartRoom(room.data_bytes, room.metadata_bytes, &request);
    if (!s.ok()) return pulls_.RoomRefused(room.key, s.message());
    if (request != 0) {
      rooms_.emplace(request, room);
      return;
    }
  }
}

void TransferLoop::RoomsAnswered() {
  std::vector<Room> again;
  for (auto at = rooms_.begin(); at != rooms_.end();) {
    const Room room = at->second;
    Status status;
    if (!store_->TakeRoom(at->first, plasma::Client::ExactRoom(room.data_bytes, room.metadata_bytes), &status)) {
      ++at;
      continue;
    }
    at = rooms_.erase(at);
    if (status.ok() || status.code() == StatusCode::kOutOfMemory) {
      again.push_back(room);  // room now, or the longest wait that the store knows is over
    } else {
      pulls_.RoomRefused(room.key, status.message());
    }
  }
  for (const Room& room : again) TryRoom(room);
}

void TransferLoop::ForgetRoom(const ObjectId& key) {
  for (auto at = rooms_.begin(); at != rooms_.end();) {
    if (at->second.key == key) {
      store_->CancelRoom(at->first);
      at = rooms_.erase(at);
    } else {
      ++at;
    }
  }
  PartialGone(key);
  const auto extent = extents_.extract(key);
  if (extent.empty()) return;
  Decided(store_.get(), [&] { return store_->TryAbort(key); });
  store_->Unpin(extent.mapped().place.slot);
}

void TransferLoop::SealPulled(const ObjectId& key) {
  const auto node = extents_.extract(key);
  if (node.empty()) return;
  const Place& place = node.mapped().place;
  Decided(store_.get(), [&] { return store_->TrySealSlot(place.slot, place.generation); });
  // Whoever is being served from it goes on with a pin of his own.
  if (const auto served = partial_.extract(key); !served.empty()) {
    for (const PushId& push : served.mapped()) {
      Serving& s = servings_.find(push)->second;
      store_->PinAgain(place.slot);
      s.slot = place.slot;
      if (s.asked) SendSizes(push, s);
      if (s.flowing) peers_.find(push.peer)->second.stream->Wake();
    }
  }
  loose_pins_.push_back(place.slot);  // until those who wait have pinned it each for himself
}

}  // namespace ray::objects
