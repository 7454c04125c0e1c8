// The thread: its poll, and what it does of what the queues have decided. transfer_loop.h says who owns what.
#include "object_manager/transfer_loop.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>

#include "common/clock.h"

namespace ray::objects {

namespace {
constexpr int kEventsPerWait = 64;
enum Key : uint64_t { kListenKey = 0, kStopKey = 1, kStoreKey = 2 };  // connections are 16 and up
}  // namespace

Status TransferLoop::Start(const TransferOptions& options, std::unique_ptr<TransferLoop>* out) {
  std::unique_ptr<TransferLoop> loop(new TransferLoop(options));
  if (options.reached_at) loop->ReachedAt(*options.reached_at);
  if (Status s = loop->Open(); !s.ok()) return s;
  // Signals are the main thread's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  loop->thread_ = std::thread([raw = loop.get()] { raw->Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  *out = std::move(loop);
  return Status::Ok();
}

void TransferLoop::ReachedAt(const Address& address) {
  self_ = address;
  std::memcpy(options_.identity.tag, StoreTag(address).bytes, Tag::kBytes);
}

Status TransferLoop::Open() {
  const std::string& path = options_.socket_path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return {StatusCode::kInvalidArgument, "the object manager's socket path '" + path + "' must have 1 to 107 bytes"};
  }
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  listen_fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listen_fd_ < 0) return Status::FromErrno("socket", errno);
  // That a store lives already at this place was found out when plasma's own socket was bound.
  struct stat st;
  if (lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) unlink(path.c_str());
  if (bind(listen_fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Status::FromErrno("binding " + path, errno);
  }
  bound_ = true;
  if (chmod(path.c_str(), 0600) != 0 || listen(listen_fd_, 1024) != 0) {
    return Status::FromErrno("listening on " + path, errno);
  }
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (epoll_fd_ < 0 || stop_fd_ < 0) return Status::FromErrno("epoll, eventfd", errno);
  if (!Watch(listen_fd_, kListenKey, false, true) || !Watch(stop_fd_, kStopKey, false, true)) {
    return Status::FromErrno("epoll_ctl", errno);
  }
  return Status::Ok();
}

TransferLoop::~TransferLoop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    if (write(stop_fd_, &one, sizeof(one)) < 0) std::perror("plasma_store: waking the object manager");
    thread_.join();
  }
  for (auto& [id, line] : lines_) {
    close(line.fd);
    for (const int fd : line.fds) close(fd);
  }
  for (const int fd : {listen_fd_, epoll_fd_, stop_fd_}) {
    if (fd >= 0) close(fd);
  }
  if (bound_) unlink(options_.socket_path.c_str());
}

bool TransferLoop::Watch(int fd, uint64_t id, bool write, bool fresh) {
  epoll_event e{};
  e.events = write ? EPOLLIN | EPOLLOUT : EPOLLIN;
  e.data.u64 = id;
  return epoll_ctl(epoll_fd_, fresh ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &e) == 0;
}

int TransferLoop::TimeoutMs() const {
  int64_t next = INT64_MAX;
  if (const auto d = pulls_.next_deadline_ns()) next = *d;
  for (const auto& [id, peer] : peers_) {
    if (peer.hello_deadline_ns != 0) next = std::min(next, peer.hello_deadline_ns);
  }
  for (const auto& [home, owed] : owed_) {
    if (owed.again_ns != 0) next = std::min(next, owed.again_ns);
  }
  if (!lapsing_.empty()) next = std::min(next, lapsing_.front().at_ns);
  if (next == INT64_MAX) return -1;
  const int64_t left = std::max<int64_t>(0, next - NowNs());
  return static_cast<int>(std::min<int64_t>((left + kNsPerMs - 1) / kNsPerMs, INT_MAX));
}

void TransferLoop::Run() {
  epoll_event events[kEventsPerWait];
  for (;;) {
    const int n = epoll_wait(epoll_fd_, events, kEventsPerWait, TimeoutMs());
    for (int i = 0; i < n; ++i) {
      const uint64_t id = events[i].data.u64;
      if (id == kStopKey) return;
      if (id == kListenKey) {
        AcceptLines();
      } else if (id == kStoreKey) {
        // Its end is the end of this process; RoomsAnswered finds nothing more.
        if (!store_->Receive().ok()) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, store_->connection_fd(), nullptr);
      } else if (lines_.count(id) != 0) {
        LineReadable(id);
      } else if (peers_.count(id) != 0) {
        PeerEvent(id, events[i].events);
      }
      Act();
    }
    const int64_t now = NowNs();
    pulls_.Tick(now);
    DialOwed(now);
    std::vector<uint64_t> late;
    for (const auto& [id, peer] : peers_) {
      if (peer.hello_deadline_ns != 0 && peer.hello_deadline_ns <= now) late.push_back(id);
    }
    while (!lapsing_.empty() && lapsing_.front().at_ns <= now) {
      const Lapsing due = std::move(lapsing_.front());
      lapsing_.pop_front();
      Say(due.home, Peer::kLapse, due.key);
    }
    for (const uint64_t id : late) PeerGone(id, "it could not be reached, or did not prove itself, within 5 s");
    Act();
  }
}

void TransferLoop::Act() {
  for (;;) {
    RoomsAnswered();
    RestoresAnswered();
    const std::vector<PullAction> pulls = pulls_.TakeActions();
    const std::vector<PushAction> pushes = pushes_.TakeActions();
    if (pulls.empty() && pushes.empty()) break;
    for (const PullAction& action : pulls) Do(action);
    for (const PushAction& action : pushes) Do(action);
  }
  for (const uint32_t slot : loose_pins_) store_->Unpin(slot);
  loose_pins_.clear();
  // What they have queued leaves now; a stream that ends thereby brings new actions.
  std::vector<uint64_t> ended;
  for (auto& [id, peer] : peers_) {
    if (peer.stream->wants_write() && !peer.watched_write) Pump(id, peer);
    if (!peer.stream->why().empty()) ended.push_back(id);
  }
  for (const uint64_t id : ended) {
    const auto at = peers_.find(id);
    if (at != peers_.end()) PeerGone(id, at->second.stream->why());
  }
  if (!ended.empty()) Act();
}

void TransferLoop::Do(const PullAction& action) {
  if (const auto* ask = std::get_if<SendAsk>(&action)) {
    Status status;
    PeerConn* peer = Dial(ask->source, &status);
    if (peer == nullptr && status.code() == StatusCode::kDisconnected) {
      return pulls_.SourceLost(ask->transfer, status.message(), NowNs());
    }
    if (peer == nullptr) return pulls_.SourceBroken(ask->transfer, "it cannot be reached", NowNs());
    asked_of_[ask->transfer] = peer->stream->id();
    const AskBody body{ask->key, 0, ask->offset};
    peer->stream->Send(Peer::kAsk, ask->transfer, &body, sizeof(body));
  } else if (const auto* go = std::get_if<SendGo>(&action)) {
    const auto at = asked_of_.find(go->transfer);
    const auto peer = at == asked_of_.end() ? peers_.end() : peers_.find(at->second);
    if (peer == peers_.end()) return;  // its end was fed already
    const GoBody body{go->offset, go->must_serve ? 1u : 0u, 0};
    peer->second.stream->Send(Peer::kGo, go->transfer, &body, sizeof(body));
  } else if (const auto* end = std::get_if<SendEnd>(&action)) {
    const auto node = asked_of_.extract(end->transfer);
    const auto peer = node.empty() ? peers_.end() : peers_.find(node.mapped());
    if (peer != peers_.end()) peer->second.stream->Send(Peer::kEnd, end->transfer);
  } else if (const auto* room = std::get_if<MakeRoom>(&action)) {
    TryRoom({room->key, room->data_bytes, room->metadata_bytes});
  } else if (const auto* drop = std::get_if<DropRoom>(&action)) {
    ForgetRoom(drop->key);
  } else if (const auto* seal = std::get_if<Seal>(&action)) {
    SealPulled(seal->key);
  } else if (const auto* tell = std::get_if<Tell>(&action)) {
    Outcome outcome = tell->outcome;
    std::string text = tell->text;
    plasma::Place place;
    if (outcome == Outcome::kHere) {
      if (PinHere(tell->key, &place)) {
        pins_[tell->asker] = place.slot;
      } else {
        outcome = Outcome::kNoSource;
        text = "it was deleted as soon as it was here";
      }
    }
    const std::string body = std::string(1, static_cast<char>(outcome)) + text;
    Answer(tell->asker.line, Line::kPulled, tell->asker.request, body.data(), body.size());
  }
}

void TransferLoop::Do(const PushAction& action) {
  if (const auto* serve = std::get_if<Serve>(&action)) {
    const auto at = servings_.find(serve->push);
    if (at == servings_.end()) return;
    at->second.flowing = true;
    peers_.find(serve->push.peer)->second.stream->Wake();
  } else if (const auto* refer = std::get_if<ReferTo>(&action)) {
    const auto peer = peers_.find(refer->push.peer);
    if (peer == peers_.end()) return;
    peer->second.stream->Send(Peer::kRefer, refer->push.transfer, AddressesBody(refer->to));
  }
}

}  // namespace ray::objects
