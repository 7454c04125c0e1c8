// Connecting, and what the client asks the store. See client.h.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/clock.h"
#include "plasma/client.h"
#include "plasma/crash_point.h"

namespace ray::plasma {

namespace {
constexpr int64_t kPatientNs = int64_t{365} * 86400 * kNsPerS;  // of StartRoom: until cancelled
constexpr int64_t kAnswerGraceNs = 10 * kNsPerS;                // beyond the time given to the store itself

// Counts how often this process is a forked child's child: a Client of another count is our parent's.
std::atomic<uint64_t> fork_count{0};

void CountForks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1); });
  static_cast<void>(registered);
}

Status RefusedAs(const Answer& answer) {
  if (answer.payload.empty()) return {StatusCode::kProtocol, "the plasma store refused without a reason"};
  return {static_cast<StatusCode>(answer.payload[0]), answer.payload.substr(1)};
}

Status Unexpected() { return {StatusCode::kProtocol, "the plasma store gave an answer of the wrong kind"}; }

Status RestoredAs(const Answer& answer) {
  if (answer.type == Message::kRefused) return RefusedAs(answer);
  return answer.type == Message::kDone ? Status::Ok() : Unexpected();
}

// Receives Welcome and its descriptors.
Status ReceiveWelcome(int fd, Welcome* welcome, int* fds) {
  char frame[sizeof(FrameHeader) + sizeof(Welcome)];
  iovec part{frame, sizeof(frame)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kWelcomeFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
  } while (n < 0 && errno == EINTR);
  const cmsghdr* rights = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (rights == nullptr || rights->cmsg_type != SCM_RIGHTS || rights->cmsg_len != CMSG_LEN(sizeof(int) * kWelcomeFds)) {
    return {StatusCode::kDisconnected, "the plasma store closed the connection instead of answering"};
  }
  std::memcpy(fds, CMSG_DATA(rights), sizeof(int) * kWelcomeFds);
  FrameHeader header;
  std::memcpy(&header, frame, sizeof(header));
  std::memcpy(welcome, frame + sizeof(header), sizeof(*welcome));
  if (n != static_cast<ssize_t>(sizeof(frame)) || header.type != static_cast<uint16_t>(Message::kWelcome)) {
    return {StatusCode::kProtocol, "what answers is no plasma store of this version"};
  }
  return Status::Ok();
}
}  // namespace

bool Client::Forked() const { return fork_count.load(std::memory_order_relaxed) != fork_count_; }

Status Client::Connect(const std::string& socket_path, const Patience& patience, std::shared_ptr<Client>* out) {
  if (socket_path.empty() || socket_path.size() > kUnixPathBytesMax) {
    return {StatusCode::kInvalidArgument,
            "socket path '" + socket_path + "' must have 1 to " + std::to_string(kUnixPathBytesMax) + " bytes"};
  }
  CountForks();
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Status::FromErrno("socket", errno);
  std::shared_ptr<Client> client(new Client());
  client->connection_ = std::make_unique<StoreConnection>(fd);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, kUnixPathBytesMax);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Status::FromErrno("connecting to the plasma store at " + socket_path, errno);
  }
  ucred peer{};
  socklen_t length = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return Status::FromErrno("SO_PEERCRED", errno);
  if (peer.uid != geteuid()) {
    return {StatusCode::kPermission, "the plasma store at " + socket_path + " runs as uid " + std::to_string(peer.uid) +
                                         ", this process as uid " + std::to_string(geteuid())};
  }
  client->death_fd_ = static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0));
  // Blocking until Welcome, but not for ever.
  const int64_t wait_ns =
      std::min(patience.deadline_ns == INT64_MAX ? kAnswerGraceNs : patience.deadline_ns - NowNs(), kAnswerGraceNs);
  timeval timeout{};
  timeout.tv_sec = std::max<int64_t>(wait_ns, kNsPerMs) / kNsPerS;
  timeout.tv_usec = std::max<int64_t>(wait_ns, kNsPerMs) % kNsPerS / 1000;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  const Hello hello{kHelloMagic, kProtocolVersion, 0};
  if (Status s = client->connection_->Tell(Message::kHello, 0, &hello, sizeof(hello)); !s.ok()) return s;
  Welcome welcome;
  int fds[kWelcomeFds] = {-1, -1, -1, -1};
  Status status = ReceiveWelcome(fd, &welcome, fds);
  if (status.ok()) status = client->Map(welcome, fds);
  for (int i = 0; i < kWelcomeFds - 1; ++i) {
    if (fds[i] >= 0) close(fds[i]);  // the mappings keep the memory
  }
  if (!status.ok()) {
    if (fds[kWelcomeFds - 1] >= 0) close(fds[kWelcomeFds - 1]);
    return status;
  }
  client->doorbell_fd_ = fds[kWelcomeFds - 1];
  *out = std::move(client);
  return Status::Ok();
}

Status Client::Map(const Welcome& welcome, const int* fds) {
  id_ = welcome.client;
  fork_count_ = fork_count.load();
  own_pid_ = getpid();
  control_bytes_ = welcome.control_bytes;
  pool_bytes_ = welcome.pool_bytes;
  journal_bytes_ = welcome.journal_bytes;
  const auto map = [](uint64_t bytes, int protection, int fd) -> void* {
    void* p = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
    return p == MAP_FAILED ? nullptr : p;
  };
  control_ = map(control_bytes_, PROT_READ | PROT_WRITE, fds[0]);
  readable_ = static_cast<uint8_t*>(map(pool_bytes_, PROT_READ, fds[1]));
  writable_ = static_cast<uint8_t*>(map(pool_bytes_, PROT_READ | PROT_WRITE, fds[1]));
  journal_ = static_cast<JournalHeader*>(map(journal_bytes_, PROT_READ | PROT_WRITE, fds[2]));
  if (control_ == nullptr || readable_ == nullptr || writable_ == nullptr || journal_ == nullptr) {
    return Status::FromErrno("mapping the plasma store's memory (is a limit on address space set? ulimit -v)", errno);
  }
  const auto* header = static_cast<const ControlHeader*>(control_);
  if (control_bytes_ < kPageBytes || header->magic != kControlMagic || header->version != kLayoutVersion ||
      header->control_bytes != control_bytes_ || ControlBytes(header->slots, header->buckets) != control_bytes_ ||
      JournalBytes(header->slots) != journal_bytes_) {
    return {StatusCode::kProtocol, "the plasma store's table is laid out by another version"};
  }
  // A forked child inherits the read-only pool and nothing that it could change.
  madvise(control_, control_bytes_, MADV_DONTFORK);
  madvise(journal_, journal_bytes_, MADV_DONTFORK);
  madvise(writable_, pool_bytes_, MADV_DONTFORK);
  madvise(readable_, pool_bytes_, MADV_DONTDUMP);
  madvise(writable_, pool_bytes_, MADV_DONTDUMP);
  pins_ = reinterpret_cast<std::atomic<uint64_t>*>(reinterpret_cast<char*>(journal_) + kPinsOffset);
  table_ = ObjectTable(control_);
  mapped_ = std::make_unique<MappedPages>(writable_, pool_bytes_, welcome.page_bytes);
  return Status::Ok();
}

Client::~Client() {
  // Closing the socket is the last thing that the store sees of us; from then on nothing here may be written.
  if (!Forked()) {  // a forked child has not got these, and may have other things at those addresses
    if (control_ != nullptr) munmap(control_, control_bytes_);
    if (journal_ != nullptr) munmap(journal_, journal_bytes_);
    if (writable_ != nullptr) munmap(writable_, pool_bytes_);
  }
  if (readable_ != nullptr) munmap(readable_, pool_bytes_);
  if (doorbell_fd_ >= 0) close(doorbell_fd_);
  if (death_fd_ >= 0) close(death_fd_);
}

Status Client::CheckRoom(uint64_t data_bytes, uint64_t metadata_bytes) const {
  if (died()) return {StatusCode::kDisconnected, "the plasma store has died"};
  if (data_bytes > pool_bytes_ || metadata_bytes > pool_bytes_) {
    return {StatusCode::kTooLarge, "an object of " + std::to_string(data_bytes) +
                                       " bytes can never fit into a store of " + std::to_string(pool_bytes_) +
                                       " bytes"};
  }
  return Status::Ok();
}

bool Client::AskForRoom(uint64_t bytes, bool exact, LendRequest* request) {
  // There may be room: another thread has brought some, or the key was just being evicted, which kSync waits out.
  // Else the rest of a used-up extent is given back with the request.
  std::lock_guard<std::mutex> lock(mutex_);
  if (exact) return std::any_of(own_.begin(), own_.end(), [&](const Extent& e) { return e.end - e.at == bytes; });
  if (extent_.end - extent_.at >= bytes && extent_.next_slot < extent_.slots.size()) return true;
  request->close_lease = std::exchange(extent_, Extent()).lease;
  return false;
}

Status Client::RoomFrom(const Answer& answer, bool exact) {
  if (answer.type == Message::kRefused) return RefusedAs(answer);
  const std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(answer.payload.data()),
                                         answer.payload.size());
  const auto lent = ReadBody<LentAnswer>(payload);
  if (answer.type != Message::kLent || !lent || payload.size() != sizeof(*lent) + uint64_t{lent->slot_count} * 4 ||
      lent->slot_count == 0 || lent->offset > pool_bytes_ || lent->bytes > pool_bytes_ - lent->offset) {
    return Unexpected();
  }
  Extent extent{lent->lease, lent->offset, lent->offset + lent->bytes, std::vector<uint32_t>(lent->slot_count), 0};
  std::memcpy(extent.slots.data(), payload.data() + sizeof(*lent), extent.slots.size() * 4);
  RAY_CRASH_POINT();
  uint64_t unused = 0;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (exact) {
      own_.push_back(std::move(extent));
    } else {
      unused = std::exchange(extent_, std::move(extent)).lease;  // another thread has asked at the same time
    }
  }
  if (unused == 0) return Status::Ok();
  const ReturnRequest back{unused};
  return connection_->Tell(Message::kReturn, 0, &back, sizeof(back));
}

Status Client::MakeRoom(uint64_t data_bytes, uint64_t metadata_bytes, const Patience& patience) {
  if (Status s = CheckRoom(data_bytes, metadata_bytes); !s.ok()) return s;
  const uint64_t bytes = ObjectExtentBytes(data_bytes, metadata_bytes);
  const bool exact = ExactRoom(data_bytes, metadata_bytes);
  LendRequest request{bytes, 0, std::max<int64_t>(0, patience.deadline_ns - NowNs()), exact ? 1u : 0u, 0};
  const bool room = AskForRoom(bytes, exact, &request);
  Patience wait = patience;
  // The store says when it is too late, since it goes on as long as spilling makes room; its death ends the wait too.
  wait.deadline_ns = INT64_MAX;
  if (room) return Sync(wait);
  Answer answer;
  if (Status s = connection_->Call(Message::kLend, &request, sizeof(request), wait, &answer); !s.ok()) return s;
  return RoomFrom(answer, exact);
}

Status Client::StartRoom(uint64_t data_bytes, uint64_t metadata_bytes, uint64_t* request) {
  *request = 0;
  if (Status s = CheckRoom(data_bytes, metadata_bytes); !s.ok()) return s;
  const uint64_t bytes = ObjectExtentBytes(data_bytes, metadata_bytes);
  const bool exact = ExactRoom(data_bytes, metadata_bytes);
  LendRequest lend{bytes, 0, kPatientNs, exact ? 1u : 0u, 0};
  if (AskForRoom(bytes, exact, &lend)) return Sync(Patience{});  // answered at once: the store waits for nobody here
  return connection_->Start(Message::kLend, &lend, sizeof(lend), request);
}

bool Client::TakeRoom(uint64_t request, bool exact, Status* status) {
  Answer answer;
  if (!connection_->Take(request, &answer)) return false;
  *status = RoomFrom(answer, exact);
  return true;
}

Status Client::Sync(const Patience& patience) {
  Answer answer;
  return connection_->Call(Message::kSync, nullptr, 0, patience, &answer);
}

Status Client::Restore(const Patience& patience, Place* place, int64_t give_up_ns) {
  const RestoreRequest request{place->generation, std::max<int64_t>(0, patience.deadline_ns - NowNs()), place->slot, 0};
  Answer answer;
  // As with room: the store says when there was none for too long. How long the whole takes, with the disk, is not its
  // matter.
  Status s =
      connection_->Call(Message::kRestore, &request, sizeof(request), {give_up_ns, patience.interrupted}, &answer);
  if (s.ok()) s = RestoredAs(answer);
  if (s.ok()) {
    Describe(place->slot, place);
  } else {
    Unpin(place->slot);
  }
  return s;
}

Status Client::StartRestore(const Place& place, uint64_t* request) {
  const RestoreRequest body{place.generation, kPatientNs, place.slot, 0};
  return connection_->Start(Message::kRestore, &body, sizeof(body), request);
}

bool Client::TakeRestored(uint64_t request, Place* place, Status* status) {
  Answer answer;
  if (!connection_->Take(request, &answer)) return false;
  *status = RestoredAs(answer);
  if (status->ok()) {
    Describe(place->slot, place);
  } else {
    Unpin(place->slot);
  }
  return true;
}

Status Client::Ahead(const std::vector<ObjectId>& keys, size_t* spilled) {
  *spilled = 0;
  if (died()) return {StatusCode::kDisconnected, "the plasma store died"};
  std::vector<ObjectId> wanted;
  for (const ObjectId& key : keys) {
    const auto found = table_.Find(key, HashKey(key));
    if (found && StateOf(found->state) == State::kSpilled) wanted.push_back(key);
  }
  *spilled = wanted.size();
  for (size_t i = 0; i < wanted.size(); i += kWatchKeysMax) {
    const size_t n = std::min<size_t>(kWatchKeysMax, wanted.size() - i);
    if (Status s = connection_->Tell(Message::kAhead, 0, wanted.data() + i, n * sizeof(ObjectId)); !s.ok()) return s;
  }
  return Status::Ok();
}

Status Client::WaitSealed(const std::vector<ObjectId>& keys, const Patience& patience) {
  for (size_t i = 0; i < keys.size(); i += kWatchKeysMax) {
    const size_t n = std::min<size_t>(kWatchKeysMax, keys.size() - i);
    Answer answer;
    if (Status s = connection_->Call(Message::kWatch, keys.data() + i, n * sizeof(ObjectId), patience, &answer);
        !s.ok()) {
      return s;
    }
  }
  return Status::Ok();
}

Status Client::Evict(uint64_t bytes, const Patience& patience, uint64_t* freed) {
  const EvictRequest request{bytes};
  Answer answer;
  if (Status s = connection_->Call(Message::kEvict, &request, sizeof(request), patience, &answer); !s.ok()) return s;
  if (answer.type != Message::kNumber || answer.payload.size() != sizeof(*freed)) return Unexpected();
  std::memcpy(freed, answer.payload.data(), sizeof(*freed));
  return Status::Ok();
}

Status Client::Stats(const Patience& patience, StatsAnswer* out) {
  Answer answer;
  if (Status s = connection_->Call(Message::kStats, nullptr, 0, patience, &answer); !s.ok()) return s;
  if (answer.type != Message::kStatsAre || answer.payload.size() != sizeof(*out)) return Unexpected();
  std::memcpy(out, answer.payload.data(), sizeof(*out));
  return Status::Ok();
}

Status Client::Text(Message which, const Patience& patience, std::string* out) {
  Answer answer;
  if (Status s = connection_->Call(which, nullptr, 0, patience, &answer); !s.ok()) return s;
  if (answer.type != Message::kText) return Unexpected();
  *out = std::move(answer.payload);
  return Status::Ok();
}

Status Client::List(const Patience& patience, std::vector<std::pair<Row, std::vector<uint32_t>>>* out) {
  ListRequest request{0, 0};
  while (request.cursor < table_.slots()) {
    Answer answer;
    if (Status s = connection_->Call(Message::kList, &request, sizeof(request), patience, &answer); !s.ok()) return s;
    std::span<const uint8_t> payload(reinterpret_cast<const uint8_t*>(answer.payload.data()), answer.payload.size());
    const auto head = ReadBody<RowsAnswer>(payload);
    if (answer.type != Message::kRows || !head || head->next_cursor <= request.cursor) return Unexpected();
    payload = payload.subspan(sizeof(*head));
    for (uint32_t i = 0; i < head->row_count; ++i) {
      const auto row = ReadBody<Row>(payload);
      if (!row || (payload.size() - sizeof(*row)) / 4 < row->pid_count) return Unexpected();
      payload = payload.subspan(sizeof(*row));
      std::vector<uint32_t> pids(row->pid_count);
      if (!pids.empty()) std::memcpy(pids.data(), payload.data(), pids.size() * 4);
      payload = payload.subspan(pids.size() * 4);
      out->emplace_back(*row, std::move(pids));
    }
    request.cursor = head->next_cursor;
  }
  return Status::Ok();
}

Status Client::Subscribe() { return connection_->Tell(Message::kSubscribe, 0, nullptr, 0); }

Status Client::NextEvents(const Patience& patience, std::vector<EventRow>* out) {
  Answer answer;
  if (Status s = connection_->NextUnasked(patience, &answer); !s.ok()) return s;
  if (answer.payload.size() % sizeof(EventRow) != 0) return Unexpected();
  const size_t n = answer.payload.size() / sizeof(EventRow);
  const size_t before = out->size();
  out->resize(before + n);
  if (n > 0) std::memcpy(out->data() + before, answer.payload.data(), answer.payload.size());
  return Status::Ok();
}

void Client::Release() {
  if (Forked()) return;  // all of it is our parent's; and the lock may have been held when it forked
  std::vector<uint64_t> leases;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [key, slots] : plain_pins_) {
      for (uint32_t slot : slots) Unpin(slot, kKeeping);
    }
    plain_pins_.clear();
    if (extent_.lease != 0) leases.push_back(std::exchange(extent_, Extent()).lease);
    for (const Extent& own : std::exchange(own_, {})) leases.push_back(own.lease);
  }
  for (uint64_t lease : leases) {
    const ReturnRequest back{lease};
    // A store that has died takes nothing back, and needs not.
    if (!connection_->Tell(Message::kReturn, 0, &back, sizeof(back)).ok()) return;
  }
}

}  // namespace ray::plasma
