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
constexpr size_t kDeadOwnersMax = 4096;  // of more, some copies stay until they are evicted

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

bool TransferLoop::PinHere(const ObjectId& key, Place* place, bool* spilled) {
  plasma::Client* store = Store();
  if (store == nullptr) return false;
  const Step step = Decided(store, [&] { return store->TryGet(key, place); });
  if (spilled != nullptr) *spilled = step == Step::kSpilled;
  return step == Step::kDone || step == Step::kSpilled;
}

void TransferLoop::Bring(const ObjectId& key, const Place& place) {
  for (const auto& [request, brought] : restores_) {
    if (brought.first == key && brought.second.slot == place.slot) return store_->Unpin(place.slot);
  }
  uint64_t request = 0;
  if (store_->StartRestore(place, &request).ok()) {
    restores_[request] = {key, place};
  } else {
    store_->Unpin(place.slot);  // the store is ending, and this process with it
  }
}

void TransferLoop::RestoresAnswered() {
  std::vector<std::pair<ObjectId, Place>> here;
  std::vector<ObjectId> gone;
  for (auto at = restores_.begin(); at != restores_.end();) {
    Status status;
    if (!store_->TakeRestored(at->first, &at->second.second, &status)) {
      ++at;
      continue;
    }
    if (status.ok()) {
      here.push_back(at->second);
    } else {
      gone.push_back(at->second.first);
    }
    at = restores_.erase(at);
  }
  for (const auto& [key, place] : here) {
    ServePinned(key, place);
    loose_pins_.push_back(place.slot);
  }
  for (const ObjectId& key : gone) PartialGone(key);
}

void TransferLoop::ServePinned(const ObjectId& key, const Place& place) {
  const auto served = partial_.extract(key);
  if (served.empty()) return;
  for (const PushId& push : served.mapped()) {
    Serving& s = servings_.find(push)->second;
    store_->PinAgain(place.slot);
    s.base = place.address;
    s.data_bytes = place.data_bytes;
    s.metadata_bytes = place.metadata_bytes;
    s.slot = place.slot;
    if (s.asked) SendSizes(push, s);
    if (s.flowing) peers_.find(push.peer)->second.stream->Wake();
  }
}

void TransferLoop::DeleteHere(const ObjectId& key) {
  plasma::Client* store = Store();
  if (store != nullptr && Decided(store, [&] { return store->TryDelete(key); }) == Step::kDone) ++freed_;
}

void TransferLoop::LapseHere(const ObjectId& key) {
  plasma::Client* store = Store();
  if (store != nullptr && Decided(store, [&] { return store->TryLapse(key); }) == Step::kDone) ++freed_;
}

bool TransferLoop::Hold(const ObjectId& key) {
  if (holds_.count(key) != 0) return true;
  plasma::Client* store = Store();
  if (store == nullptr) return false;
  if (Decided(store, [&] { return store->TryPin(key); }) != Step::kDone) return false;
  const auto freed = freed_unheld_.extract(key);
  if (!freed.empty() && GenerationHere(key) == freed.mapped()) {  // else it was made again
    store->UnpinKey(key);
    store->Unpinned(key);
    return false;
  }
  holds_.insert(key);
  return true;
}

std::optional<uint64_t> TransferLoop::GenerationHere(const ObjectId& key) {
  Place place;
  if (!PinHere(key, &place)) return std::nullopt;
  store_->Unpin(place.slot);
  return place.generation;
}

void TransferLoop::Free(const ObjectId& key) {
  FreeCopies(key);
  if (holds_.erase(key) != 0) store_->UnpinKey(key);
  DeleteHere(key);
}

void TransferLoop::FreeCopies(const ObjectId& key) {
  for (const Address& copy : pushes_.TakeCopies(key)) {
    // One that cannot be reached any more frees it by eviction.
    Status ignored;
    PeerConn* peer = Dial(copy, &ignored);
    if (peer != nullptr) peer->stream->Send(Peer::kLapse, 0, key.bytes, ObjectId::kBytes);
  }
  pulls_.Freed(key);
}

void TransferLoop::FreedByOwner(const ObjectId& key) {
  FreeCopies(key);
  if (holds_.erase(key) != 0) {
    store_->UnpinKey(key);
  } else if (const auto generation = GenerationHere(key)) {
    // The worker that made it has still to ask that it be held, and has it pinned until then.
    std::erase_if(freed_unheld_, [&](const auto& freed) { return GenerationHere(freed.first) != freed.second; });
    freed_unheld_[key] = *generation;
  }
  LapseHere(key);
}

uint64_t TransferLoop::OwnerDead(std::span<const uint8_t> prefix) {
  std::string owner(reinterpret_cast<const char*>(prefix.data()), prefix.size());
  if (dead_owners_.insert(owner).second) died_.push_back(std::move(owner));
  if (died_.size() > kDeadOwnersMax) {
    dead_owners_.erase(died_.front());
    died_.pop_front();
  }
  std::vector<ObjectId> dead;
  for (const ObjectId& key : holds_) {
    if (std::memcmp(key.bytes, prefix.data(), prefix.size()) == 0) dead.push_back(key);
  }
  for (const ObjectId& key : dead) Lapse(key);
  // What it had put here itself: our node sees to that (ray/_node/orphans.py); the copies at other nodes are ours to
  // tell.
  for (const ObjectId& key : pushes_.WithCopies(prefix)) Lapse(key);
  return dead.size();
}

bool TransferLoop::IsOrphan(const ObjectId& key) const {
  const std::string bytes(reinterpret_cast<const char*>(key.bytes), Tag::kBytes);
  return dead_owners_.count(bytes) != 0 || dead_owners_.count(bytes.substr(0, sizeof(uint32_t))) != 0;
}

void TransferLoop::Lapse(const ObjectId& key) {
  for (const Address& copy : pushes_.TakeCopies(key)) Say(copy, Peer::kLapse, key);
  if (holds_.erase(key) != 0) store_->UnpinKey(key);
  LapseHere(key);
}

bool TransferLoop::Claim(PeerConn& peer, const ObjectId& key) {
  plasma::Client* store = Store();
  if (store == nullptr || Decided(store, [&] { return store->TryPin(key); }) != Step::kDone) return false;
  ++peer.claims[key];
  return true;
}

void TransferLoop::Unclaim(PeerConn& peer, const ObjectId& key) {
  const auto at = peer.claims.find(key);
  if (at == peer.claims.end()) return;  // it was gone when it was claimed
  if (--at->second == 0) peer.claims.erase(at);
  store_->UnpinKey(key);
  store_->Unpinned(key);
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
  ServePinned(key, place);
  loose_pins_.push_back(place.slot);  // until those who wait have pinned it each for himself
}

}  // namespace ray::objects
