// What each request of a client does: decode, ask Store, encode. Part of Server; event-loop thread.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "common/clock.h"
#include "plasma/server.h"

namespace ray::plasma {

namespace {
constexpr size_t kRowsPerAnswer = 1024;  // 1024 * (80 + 16 * 4) bytes fit kAnswerBytesMax
constexpr size_t kEventsPerFrame = 2048;
static_assert(kRowsPerAnswer * (sizeof(Row) + 64) + sizeof(RowsAnswer) <= kAnswerBytesMax);
static_assert(kEventsPerFrame * sizeof(EventRow) <= kAnswerBytesMax);
constexpr int64_t kTimeoutNsMax = int64_t{3600} * 24 * 365 * kNsPerS;
}  // namespace

bool Server::Handle(uint64_t id, Connection& c, const FrameHeader& header, std::span<const uint8_t> payload) {
  const Message type = static_cast<Message>(header.type);
  if (type == Message::kHello) return HandleHello(id, c, payload);
  if (c.client == 0) return false;  // nothing is listened to before Hello
  switch (type) {
    case Message::kLend:
      return HandleLend(id, c, header.request, payload);
    case Message::kReturn: {
      const auto body = ReadBody<ReturnRequest>(payload);
      if (!body || !store_->CloseLease(c.client, body->lease)) return false;
      room_changed_ = true;
      return true;
    }
    case Message::kSync:
      store_->Drain();
      store_->ReclaimDeleted();
      room_changed_ = true;
      Send(id, Message::kDone, header.request, nullptr, 0);
      return true;
    case Message::kRestore:
      return HandleRestore(id, header.request, payload);
    case Message::kAhead:
      return HandleAhead(payload);
    case Message::kWatch:
      return HandleWatch(id, header.request, payload);
    case Message::kCancel:
      room_queue_.Forget({id, header.request});
      std::erase_if(restore_waiters_, [&](const auto& w) { return w.second.asker == Asker{id, header.request}; });
      seal_watches_->Forget({id, header.request});
      UpdateWatched();
      return true;
    case Message::kEvict: {
      const auto body = ReadBody<EvictRequest>(payload);
      if (!body) return false;
      const uint64_t freed = store_->Evict(body->bytes);
      room_changed_ = true;
      Send(id, Message::kNumber, header.request, &freed, sizeof(freed));
      return true;
    }
    case Message::kList: {
      const auto body = ReadBody<ListRequest>(payload);
      if (!body) return false;
      if (body->cursor == 0) {  // what was deleted and is pinned no more isn't there
        store_->Drain();
        store_->ReclaimDeleted();
        room_changed_ = true;
      }
      HandleList(id, header.request, body->cursor);
      return true;
    }
    case Message::kStats:
      HandleStats(id, header.request);
      return true;
    case Message::kAudit: {
      store_->Drain();
      store_->ReclaimDeleted();
      const std::string wrong = store_->Audit();
      Send(id, Message::kText, header.request, wrong.data(), wrong.size());
      return true;
    }
    case Message::kHolders: {
      const std::string text = store_->DescribeHolders();
      Send(id, Message::kText, header.request, text.data(), text.size());
      return true;
    }
    case Message::kSubscribe: {
      if (c.subscribed) return false;
      c.subscribed = true;
      ++subscribers_;
      UpdateWatched();
      // What is sealed already comes first, as events; what is sealed from here on is told (the flag is up).
      std::vector<EventRow> rows;
      for (const ObjectEvent& e : store_->SealedNow()) rows.push_back({e.key, 0, e.data_bytes, e.metadata_bytes});
      for (size_t i = 0; i < rows.size() || i == 0; i += kEventsPerFrame) {
        const size_t n = std::min(kEventsPerFrame, rows.size() - i);
        Send(id, Message::kEvents, header.request, rows.data() + i, n * sizeof(EventRow));
        if (n == 0) break;
      }
      return true;
    }
    default:
      return false;
  }
}

bool Server::HandleHello(uint64_t id, Connection& c, std::span<const uint8_t> payload) {
  const auto hello = ReadBody<Hello>(payload);
  if (!hello || hello->magic != kHelloMagic || hello->version != kProtocolVersion || c.client != 0) return false;
  const size_t journal_bytes = JournalBytes(store_->slots());
  const int journal_fd = memfd_create("plasma-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (journal_fd < 0) return false;
  void* journal = MAP_FAILED;
  if (ftruncate(journal_fd, static_cast<off_t>(journal_bytes)) == 0 &&
      fcntl(journal_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0) {
    journal = mmap(nullptr, journal_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, journal_fd, 0);
  }
  if (journal == MAP_FAILED) {
    std::fprintf(stderr, "plasma_store: no journal for pid %u: %s\n", c.pid, std::strerror(errno));
    close(journal_fd);
    return false;
  }
  c.journal = journal;
  c.client =
      store_->AddClient(c.pid, {static_cast<JournalHeader*>(journal),
                                reinterpret_cast<std::atomic<uint64_t>*>(static_cast<char*>(journal) + kPinsOffset)});
  const Welcome welcome{c.client, control_bytes_, pool_->bytes(), journal_bytes, pool_->page_bytes()};
  std::string frame;
  AppendFrame(&frame, Message::kWelcome, 0, &welcome, sizeof(welcome));
  iovec part{frame.data(), frame.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kWelcomeFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int) * kWelcomeFds);
  const int fds[kWelcomeFds] = {control_fd_, pool_->fd(), journal_fd, doorbell_fd_};
  std::memcpy(CMSG_DATA(rights), fds, sizeof(fds));
  const ssize_t sent = sendmsg(c.fd, &message, MSG_NOSIGNAL);
  close(journal_fd);
  // An empty socket takes a frame of this size whole; if not, the peer has gone.
  if (sent != static_cast<ssize_t>(frame.size())) Gone(id);
  return true;
}

bool Server::HandleLend(uint64_t id, Connection& c, uint64_t request, std::span<const uint8_t> payload) {
  const auto body = ReadBody<LendRequest>(payload);
  if (!body || body->exact > 1) return false;
  if (body->close_lease != 0) {
    if (!store_->CloseLease(c.client, body->close_lease)) return false;
    room_changed_ = true;
  }
  if (body->need_bytes == 0 || body->need_bytes > store_->extents().pool_bytes()) {
    const std::string error = pool_->error();
    Refuse({id, request}, StatusCode::kTooLarge,
           "an object of " + std::to_string(body->need_bytes) + " bytes can never fit into a store of " +
               std::to_string(store_->extents().pool_bytes()) + " bytes" + (error.empty() ? "" : " (" + error + ")"));
    return true;
  }
  const int64_t timeout = std::clamp<int64_t>(body->timeout_ns, 0, kTimeoutNsMax);
  const RoomWaiter waiter{{id, request}, body->need_bytes, body->exact == 1, NowNs() + timeout};
  // In order: what is being made for one who came before is not taken from him.
  if (!spilling_for_ && TryLend(waiter)) return true;
  if (timeout == 0) {
    Refuse(waiter.asker, StatusCode::kOutOfMemory, WhyFull());
    return true;
  }
  WaitForRoom(waiter);
  return true;
}

bool Server::TryLend(const RoomWaiter& w, uint64_t reserve_bytes) {
  const auto found = connections_.find(w.asker.connection);
  if (found == connections_.end() || found->second.fd < 0) return true;
  Lent lent;
  switch (store_->Lend(found->second.client, w.need_bytes, w.exact, &lent, reserve_bytes)) {
    case LendResult::kNoRoom:
      return false;
    case LendResult::kTooLarge:
      Refuse(w.asker, StatusCode::kTooLarge, "the store has become smaller than the object: " + pool_->error());
      return true;
    case LendResult::kLent:
      break;
  }
  const uint64_t end = lent.offset + lent.bytes;
  pool_->RequestTouched(end);
  if (end <= pool_->touched_bytes()) {
    AnswerLent(w.asker, lent);
  } else {
    touch_waiters_.push_back({w, std::move(lent)});
    if (!pool_->error().empty()) Touched();
  }
  return true;
}

void Server::Touched() {
  const uint64_t touched = pool_->touched_bytes();
  if (spiller_ != nullptr) AnswerRestored(spiller_->Touched());
  touch_waiters_.remove_if([&](const TouchWaiter& w) {
    if (w.lent.offset + w.lent.bytes > touched) return false;
    AnswerLent(w.waiter.asker, w.lent);
    return true;
  });
  const std::string error = pool_->error();
  if (error.empty()) return;
  // No more pages are to be had: what was lent beyond goes back, the pool ends here, and those writers ask again as if
  // they had just come: there may be something to evict.
  for (const TouchWaiter& w : std::exchange(touch_waiters_, {})) {
    const auto found = connections_.find(w.waiter.asker.connection);
    if (found == connections_.end()) continue;
    store_->CloseLease(found->second.client, w.lent.lease);
    WaitForRoom(w.waiter);
  }
  if (!pool_capped_) {
    std::fprintf(stderr, "plasma_store: %s\n", error.c_str());
    pool_capped_ = true;
  }
  store_->Cap(touched);
}

// Tried in Progress, at once and whenever something was freed.
void Server::WaitForRoom(const RoomWaiter& waiter) {
  // From here on an unpin rings the doorbell; one that came just before is seen by the first try.
  table_.header()->room_wanted.store(1, std::memory_order_seq_cst);
  room_queue_.Add(waiter);
  room_changed_ = true;
}

std::string Server::WhyFull() {
  const std::string error = pool_->error();
  return (error.empty() ? "" : error + ". ") + store_->DescribeHolders();
}

void Server::AnswerLent(Asker asker, const Lent& lent) {
  const LentAnswer answer{lent.lease, lent.offset, lent.bytes, static_cast<uint32_t>(lent.slots.size()), 0};
  Send(asker.connection, Message::kLent, asker.request, &answer, sizeof(answer), lent.slots.data(),
       lent.slots.size() * 4);
}

void Server::Refuse(Asker asker, StatusCode code, const std::string& text) {
  const uint8_t byte = static_cast<uint8_t>(code);
  Send(asker.connection, Message::kRefused, asker.request, &byte, 1, text.data(),
       std::min<size_t>(text.size(), kAnswerBytesMax - 1));
}

bool Server::HandleWatch(uint64_t id, uint64_t request, std::span<const uint8_t> payload) {
  if (payload.empty() || payload.size() % sizeof(ObjectId) != 0 || payload.size() / sizeof(ObjectId) > kWatchKeysMax)
    return false;
  std::vector<ObjectId> keys(payload.size() / sizeof(ObjectId));
  std::memcpy(keys.data(), payload.data(), payload.size());
  if (!seal_watches_->Add({id, request}, keys)) return false;
  UpdateWatched();
  for (const ObjectId& key : keys) {
    const auto found = table_.Find(key, HashKey(key));
    if (!found || (StateOf(found->state) != State::kSealed && StateOf(found->state) != State::kSpilled)) continue;
    for (Asker asker : seal_watches_->Sealed(key)) Send(asker.connection, Message::kDone, asker.request, nullptr, 0);
  }
  UpdateWatched();
  return true;
}

void Server::HandleList(uint64_t id, uint64_t request, uint32_t cursor) {
  store_->Drain();
  store_->ReclaimDeleted();
  const std::vector<ObjectRow> rows = store_->List(&cursor, kRowsPerAnswer);
  std::string body;
  const RowsAnswer head{cursor, static_cast<uint32_t>(rows.size())};
  body.append(reinterpret_cast<const char*>(&head), sizeof(head));
  for (const ObjectRow& r : rows) {
    const Row row{r.key,
                  static_cast<uint32_t>(r.pinning_pids.size()),
                  r.data_bytes,
                  r.metadata_bytes,
                  r.pins,
                  r.created_ns,
                  r.sealed_ns,
                  r.creator_pid,
                  static_cast<uint32_t>(r.state)};
    body.append(reinterpret_cast<const char*>(&row), sizeof(row));
    body.append(reinterpret_cast<const char*>(r.pinning_pids.data()), r.pinning_pids.size() * 4);
  }
  Send(id, Message::kRows, request, body.data(), body.size());
}

void Server::HandleStats(uint64_t id, uint64_t request) {
  store_->Drain();
  store_->ReclaimDeleted();
  room_changed_ = true;
  const StoreUse u = store_->Use();
  const Spiller::Counts disk = spiller_ == nullptr ? Spiller::Counts() : spiller_->counts();
  const StatsAnswer answer{u.pool_bytes,
                           u.free_bytes,
                           u.largest_free_bytes,
                           pool_->touched_bytes(),
                           u.sealed_objects,
                           u.sealed_bytes,
                           u.unsealed_objects,
                           u.unsealed_bytes,
                           u.deleting_objects,
                           u.deleting_bytes,
                           u.slots,
                           u.slots_free,
                           connections_.size(),
                           room_queue_.size(),
                           seal_watches_->size(),
                           subscribers_,
                           u.evicted_objects,
                           u.evicted_bytes,
                           u.bad_entries,
                           connections_refused_,
                           u.spilled_objects,
                           u.spilled_bytes,
                           spiller_ == nullptr ? 0 : spiller_->files().objects(),
                           spiller_ == nullptr ? 0 : spiller_->files().bytes(),
                           disk.written_objects,
                           disk.written_bytes,
                           disk.restored_objects,
                           disk.restored_bytes,
                           disk.damaged_objects};
  Send(id, Message::kStatsAre, request, &answer, sizeof(answer));
}

void Server::Progress() {
  if (spiller_ != nullptr) spiller_->Sweep();  // first: who waits may wait for room on disk
  RetryRoom();
  const int64_t now = NowNs();
  RefuseLate(now);
  if (room_queue_.size() == 0 && table_.header()->room_wanted.load(std::memory_order_relaxed) != 0) {
    table_.header()->room_wanted.store(0, std::memory_order_seq_cst);
  }
  std::vector<uint64_t> late;
  for (const auto& [id, c] : connections_) {
    if (c.client == 0 && c.hello_deadline_ns <= now) late.push_back(id);
  }
  for (uint64_t id : late) Expel(id, "said nothing for 5 seconds");
  const std::vector<ObjectEvent> events = store_->TakeEvents();
  if (events.empty()) return;
  std::vector<EventRow> rows;
  for (const ObjectEvent& e : events) {
    rows.push_back({e.key, e.deleted ? 1u : 0u, e.data_bytes, e.metadata_bytes});
    if (e.deleted) continue;
    for (Asker asker : seal_watches_->Sealed(e.key)) Send(asker.connection, Message::kDone, asker.request, nullptr, 0);
  }
  UpdateWatched();
  if (subscribers_ == 0) return;
  std::vector<uint64_t> subscribed;
  for (const auto& [id, c] : connections_) {
    if (c.subscribed && c.fd >= 0) subscribed.push_back(id);
  }
  for (uint64_t id : subscribed) {
    for (size_t i = 0; i < rows.size(); i += kEventsPerFrame) {
      Send(id, Message::kEvents, 0, rows.data() + i, std::min(kEventsPerFrame, rows.size() - i) * sizeof(EventRow));
    }
  }
}

}  // namespace ray::plasma
