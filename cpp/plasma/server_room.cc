// Writers and readers that wait for room: retried in order, helped by spilling, refused when their time is up. Part of
// Server; event-loop thread.
#include <algorithm>
#include <cstring>

#include "common/clock.h"
#include "plasma/server.h"

namespace ray::plasma {

namespace {
constexpr int64_t kTimeoutNsMax = int64_t{3600} * 24 * 365 * kNsPerS;
constexpr int kRoundsMax = 16;  // of making room without a disk; each frees what the one before could not
constexpr uint64_t kAheadBytesMax =
    64 << 20;                    // on their way from disk, beyond which nothing more is begun that nobody waits for
constexpr int kReadOnMax = 256;  // objects that are looked at behind one that is read
constexpr size_t kPlannedForMax = 8;  // waiters for whom a plan is made, if none can be for those before
}  // namespace

bool Server::HandleRestore(uint64_t id, uint64_t request, std::span<const uint8_t> payload) {
  const auto body = ReadBody<RestoreRequest>(payload);
  if (!body) return false;
  RoomWaiter waiter{{id, request}, 0, true, NowNs() + std::clamp<int64_t>(body->timeout_ns, 0, kTimeoutNsMax)};
  waiter.restore_slot = body->slot;
  waiter.restore_generation = body->generation;
  if (spilling_for_ || !TryRestore(waiter)) WaitForRoom(waiter);
  return true;
}

// A hint: nothing is moved for it, nobody waits for it, and it takes no room from those who do.
bool Server::HandleAhead(std::span<const uint8_t> payload) {
  if (payload.empty() || payload.size() % sizeof(ObjectId) != 0 || payload.size() / sizeof(ObjectId) > kWatchKeysMax)
    return false;
  if (spiller_ == nullptr || spilling_for_ || room_queue_.size() > 0) return true;
  for (size_t at = 0; at < payload.size() && spiller_->reading_bytes() < kAheadBytesMax; at += sizeof(ObjectId)) {
    ObjectId key;
    std::memcpy(&key, payload.data() + at, sizeof(key));
    const auto found = table_.Find(key, HashKey(key));
    if (!found || StateOf(found->state) != State::kSpilled) continue;
    if (spiller_->Restore(found->slot, GenerationOf(found->state)) == RestoreStep::kNoRoom) break;
  }
  return true;
}

bool Server::TryRestore(const RoomWaiter& w) {
  const auto found = connections_.find(w.asker.connection);
  if (found == connections_.end() || found->second.fd < 0) return true;
  const RestoreStep step =
      spiller_ == nullptr ? RestoreStep::kGone : spiller_->Restore(w.restore_slot, w.restore_generation);
  switch (step) {
    case RestoreStep::kHere:
      Send(w.asker.connection, Message::kDone, w.asker.request, nullptr, 0);
      return true;
    case RestoreStep::kGone:
      Refuse(w.asker, StatusCode::kNotFound, "the object was deleted, or its copy on disk is damaged");
      return true;
    case RestoreStep::kNoRoom:
      return false;
    default:
      restore_waiters_.emplace(w.restore_slot, w);
      ReadOn(w);
      return true;
  }
}

// He waits for a disk: if he takes one object after the other, as they lie there, those behind are begun before he
// asks.
void Server::ReadOn(const RoomWaiter& w) {
  const auto at = store_->PlaceOf(w.restore_slot);
  if (!at || spilling_for_ || room_queue_.size() > 0) return;
  ReadAhead& reader = read_ahead_[w.asker.connection];
  const auto before = store_->OnDiskBefore(*at);
  uint64_t bytes = reader.Asked(*at, before ? std::optional(before->place) : std::nullopt);
  auto next = store_->OnDiskAfter(*at);
  for (int n = 0; n < kReadOnMax && next && next->bytes <= bytes && spiller_->reading_bytes() < kAheadBytesMax; ++n) {
    if (next->spilled && spiller_->Restore(next->slot, *next->spilled) == RestoreStep::kNoRoom) return;
    reader.Began(next->place);
    bytes -= next->bytes;
    next = store_->OnDiskAfter(next->place);
  }
}

void Server::AnswerRestored(const std::vector<Spiller::Restored>& restored) {
  for (const Spiller::Restored& r : restored) {
    const auto [first, last] = restore_waiters_.equal_range(r.slot);
    std::vector<RoomWaiter> waiters;
    for (auto i = first; i != last; ++i) waiters.push_back(i->second);
    restore_waiters_.erase(first, last);
    // Each finds out by asking once more: here, gone, or (the pool has turned out smaller) to be begun anew.
    for (const RoomWaiter& w : waiters) {
      if (r.retry || !TryRestore(w)) WaitForRoom(w);
    }
  }
}

void Server::ForgetRestores(uint64_t connection) {
  read_ahead_.erase(connection);
  std::erase_if(restore_waiters_, [&](const auto& w) { return w.second.asker.connection == connection; });
}

void Server::RetryRoom() {
  for (int round = 0; round < kRoundsMax && std::exchange(room_changed_, false); ++round) {
    // While something is written, for the first in the queue, nobody behind may take what that frees bit by bit.
    bool helping = false;
    const bool writing = spiller_ != nullptr && spiller_->writing();
    if (!writing) spilling_for_.reset();
    size_t planned_for = 0;
    room_queue_.Retry([&](const RoomWaiter& w) {
      if (helping) return false;
      if (TryRoom(w)) return true;
      if (writing) {
        helping = true;
        return false;
      }
      if (spiller_ == nullptr || ++planned_for > kPlannedForMax) return false;
      switch (MakeRoomFor(w)) {
        case Help::kDone:
          return true;
        case Help::kNone:
          return false;  // it waits for somebody to let go of something
        case Help::kComing:
          break;
      }
      spilling_for_ = w.asker;
      helping = true;
      if (!spiller_->writing()) room_changed_ = true;
      return false;
    });
  }
  if (spiller_ == nullptr || !spiller_->writing()) spilling_for_.reset();
}

Server::Help Server::MakeRoomFor(const RoomWaiter& w) {
  if (w.restore_slot != kNoSlot) {
    const uint64_t bytes = store_->SpilledBytes(w.restore_slot);
    if (bytes == 0 || !spiller_->MakeRoom(bytes)) return Help::kNone;
    return !spiller_->writing() && TryRestore(w) ? Help::kDone : Help::kComing;
  }
  const uint64_t reserve = store_->ReserveBytes();
  if (spiller_->MakeRoom(w.need_bytes + reserve)) {
    return !spiller_->writing() && TryLend(w) ? Help::kDone : Help::kComing;
  }
  // The store is too small, or too full of what is being read, to leave the reserve. It may be used as long as the disk
  // has room: then whoever reads can be helped by spilling what was written here.
  if (reserve == 0 || !spiller_->disk_full().empty()) return Help::kNone;
  if (TryLend(w, 0)) return Help::kDone;
  if (!spiller_->MakeRoom(w.need_bytes)) return Help::kNone;
  return !spiller_->writing() && TryLend(w, 0) ? Help::kDone : Help::kComing;
}

void Server::RefuseLate(int64_t now_ns) {
  if (spiller_ != nullptr && spiller_->busy()) return;
  room_queue_.Retry([&](const RoomWaiter& w) {
    if (w.deadline_ns > now_ns) return false;
    if (spiller_ != nullptr && !spiller_->disk_full().empty()) {
      Refuse(w.asker, StatusCode::kOutOfDisk, spiller_->disk_full() + ". " + WhyFull());
    } else {
      Refuse(w.asker, StatusCode::kOutOfMemory, WhyFull());
    }
    return true;
  });
}

}  // namespace ray::plasma
