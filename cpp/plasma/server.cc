// Set-up and event loop of plasma_store; what each request does is in server_requests.cc.
#include "plasma/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>

#include "common/clock.h"

namespace ray::plasma {

namespace {
constexpr size_t kConnectionsMax = 4096;
constexpr int64_t kHelloTimeoutNs = 5 * kNsPerS;
constexpr size_t kOutBytesMax =
    32 << 20;  // unsent answers and events of one connection; more: it does not read, it goes
constexpr int kEventsPerWait = 64;

// epoll keys: connection << 1 | is its pidfd; these few are below any connection's.
enum Key : uint64_t {
  kListenKey = 0,
  kDoorbellKey,
  kStopKey,
  kSignalKey,
  kLifelineKey,
  kParentKey,
  kTouchKey,
  kSpillKey,
  kFirstFree = 16
};

int PidFd(pid_t pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

bool Watch(int epoll_fd, int fd, uint64_t key, uint32_t events) {
  epoll_event e{};
  e.events = events;
  e.data.u64 = key;
  return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) == 0;
}

void ReadCounter(int fd) {
  uint64_t n;
  // EAGAIN: somebody's write was merged with one already read. Nothing else can happen to an eventfd.
  while (read(fd, &n, sizeof(n)) < 0 && errno == EINTR) {
  }
}
}  // namespace

Status Server::Create(const ServerOptions& options, std::unique_ptr<Server>* out) {
  std::unique_ptr<Server> server(new Server(options));
  server->next_connection_ = kFirstFree;
  if (Status s = Pool::Create(options.pool, &server->pool_); !s.ok()) return s;
  if (Status s = server->CreateTable(); !s.ok()) return s;
  if (Status s = server->Listen(); !s.ok()) return s;
  if (Status s = server->WatchFds(); !s.ok()) return s;
  if (!options.spill.limits.directories.empty()) {
    if (Status s = Spiller::Create(options.spill, server->store_.get(), server->pool_.get(), &server->spiller_);
        !s.ok())
      return s;
    if (!Watch(server->epoll_fd_, server->spiller_->event_fd(), kSpillKey, EPOLLIN))
      return Status::FromErrno("watching the spill threads", errno);
  }
  server->pool_->RequestTouched(0);
  *out = std::move(server);
  return Status::Ok();
}

Status Server::CreateTable() {
  const uint64_t pool_bytes = pool_->bytes();
  const uint32_t slots =
      static_cast<uint32_t>(std::clamp<uint64_t>(pool_bytes / kPoolBytesPerSlot, kSlotsMin, kSlotsMax));
  const uint32_t buckets = ObjectTable::BucketsFor(slots);
  control_bytes_ = ControlBytes(slots, buckets);
  control_fd_ = memfd_create("plasma-table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (control_fd_ < 0) return Status::FromErrno("memfd_create", errno);
  if (ftruncate(control_fd_, static_cast<off_t>(control_bytes_)) != 0 ||
      fcntl(control_fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Status::FromErrno("the object table's memory", errno);
  }
  control_ = mmap(nullptr, control_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, control_fd_, 0);
  if (control_ == MAP_FAILED) {
    control_ = nullptr;
    return Status::FromErrno("mapping the object table", errno);
  }
  ObjectTable::Format(control_, slots, buckets, pool_bytes);
  table_ = ObjectTable(control_);
  table_.header()->server_pid = getpid();
  pthread_mutexattr_t attr;
  pthread_mutexattr_init(&attr);
  pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&table_.header()->life, &attr);
  pthread_mutexattr_destroy(&attr);
  pthread_mutex_lock(&table_.header()->life);  // for life
  store_ = std::make_unique<Store>(table_, pool_bytes);
  seal_watches_ = std::make_unique<SealWatches>(table_.header());
  return Status::Ok();
}

Status Server::Listen() {
  const std::string& path = options_.socket_path;
  if (path.empty() || path.size() > kUnixPathBytesMax) {
    return {StatusCode::kInvalidArgument, "socket path '" + path + "' must have 1 to " +
                                              std::to_string(kUnixPathBytesMax) + " bytes, it has " +
                                              std::to_string(path.size())};
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, kUnixPathBytesMax);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  // A socket file that a killed store left behind is replaced; a living store's is not.
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return Status::FromErrno("socket", errno);
  const bool taken = connect(probe, generic, sizeof(address)) == 0;
  const int refused = errno;
  close(probe);
  if (taken) return {StatusCode::kAlreadyExists, "a store already serves " + path};
  struct stat st;
  if (refused == ECONNREFUSED && lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode)) unlink(path.c_str());
  listen_fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listen_fd_ < 0) return Status::FromErrno("socket", errno);
  const mode_t before = umask(0177);  // 0600 from its first moment
  const int bound = bind(listen_fd_, generic, sizeof(address));
  const int error = errno;
  umask(before);
  if (bound != 0) return Status::FromErrno("socket path " + path, error);
  bound_ = true;
  if (listen(listen_fd_, 1024) != 0) return Status::FromErrno("listen on " + path, errno);
  return Status::Ok();
}

Status Server::WatchFds() {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  doorbell_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  spare_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (epoll_fd_ < 0 || doorbell_fd_ < 0 || stop_fd_ < 0 || spare_fd_ < 0)
    return Status::FromErrno("descriptors", errno);
  bool ok = Watch(epoll_fd_, listen_fd_, kListenKey, EPOLLIN) &&
            Watch(epoll_fd_, doorbell_fd_, kDoorbellKey, EPOLLIN) && Watch(epoll_fd_, stop_fd_, kStopKey, EPOLLIN) &&
            Watch(epoll_fd_, pool_->event_fd(), kTouchKey, EPOLLIN);
  if (options_.handle_signals) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    ok = ok && signal_fd_ >= 0 && Watch(epoll_fd_, signal_fd_, kSignalKey, EPOLLIN);
  }
  if (options_.lifeline_fd >= 0) {
    // A pidfd, not PR_SET_PDEATHSIG, which would follow the parent's thread. The pipe covers a parent that is replaced.
    parent_fd_ = PidFd(getppid());
    ok = ok && (parent_fd_ < 0 || Watch(epoll_fd_, parent_fd_, kParentKey, EPOLLIN)) &&
         Watch(epoll_fd_, options_.lifeline_fd, kLifelineKey, EPOLLIN);
  }
  return ok ? Status::Ok() : Status::FromErrno("watching descriptors", errno);
}

Server::~Server() {
  while (!connections_.empty()) Gone(connections_.begin()->first);
  if (bound_) unlink(options_.socket_path.c_str());
  for (int fd : {control_fd_, listen_fd_, epoll_fd_, doorbell_fd_, stop_fd_, signal_fd_, parent_fd_, spare_fd_}) {
    if (fd >= 0) close(fd);
  }
  if (control_ != nullptr) {
    // Clients that outlive a store which was stopped must see it dead as those of a killed one do.
    pthread_mutex_unlock(&table_.header()->life);
    LifeWord(table_.header())->store(FUTEX_OWNER_DIED, std::memory_order_release);
    munmap(control_, control_bytes_);
  }
}

void Server::Stop() {
  const uint64_t one = 1;
  if (write(stop_fd_, &one, sizeof(one)) < 0) return;  // EAGAIN: stopped already, many times
}

int Server::TimeoutMs() const {
  // While something is on its way to or from a disk nobody is refused; its end wakes the loop.
  std::optional<int64_t> next;
  if (spiller_ == nullptr || !spiller_->busy()) next = room_queue_.next_deadline_ns();
  for (const auto& [id, c] : connections_) {
    if (c.client == 0 && c.fd >= 0 && (!next || c.hello_deadline_ns < *next)) next = c.hello_deadline_ns;
  }
  if (!next) return -1;
  const int64_t ms = (*next - NowNs() + kNsPerMs - 1) / kNsPerMs;
  return static_cast<int>(std::clamp<int64_t>(ms, 0, INT_MAX));
}

Status Server::Run() {
  epoll_event events[kEventsPerWait];
  while (!stopping_) {
    const int n = epoll_wait(epoll_fd_, events, kEventsPerWait, TimeoutMs());
    if (n < 0 && errno != EINTR) return Status::FromErrno("epoll_wait", errno);
    for (int i = 0; i < n; ++i) {
      const uint64_t key = events[i].data.u64;
      switch (key) {
        case kListenKey:
          Accept();
          break;
        case kDoorbellKey:
          ReadCounter(doorbell_fd_);
          store_->Drain();
          store_->ReclaimDeleted();
          room_changed_ = true;
          break;
        case kTouchKey:
          ReadCounter(pool_->event_fd());
          Touched();
          break;
        case kSpillKey:
          ReadCounter(spiller_->event_fd());
          AnswerRestored(spiller_->Finish());
          room_changed_ = true;
          break;
        case kStopKey:
        case kSignalKey:
        case kParentKey:
        case kLifelineKey:
          stopping_ = true;
          break;
        default: {
          const uint64_t id = key >> 1;
          const auto found = connections_.find(id);
          if (found == connections_.end()) break;  // ended by an earlier event of this batch
          if ((key & 1) != 0) {
            Gone(id);
          } else {
            if ((events[i].events & EPOLLOUT) != 0) Flush(id, found->second);
            if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Readable(id);
          }
        }
      }
    }
    Progress();
  }
  return Status::Ok();
}

void Server::Accept() {
  for (;;) {
    int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && errno == EINTR) continue;
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
      // Out of descriptors: take the connection with the spare one, so that it sees an end instead of waiting for ever.
      close(spare_fd_);
      fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (fd >= 0) close(fd);
      spare_fd_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
      ++connections_refused_;
      std::fprintf(stderr, "plasma_store: out of file descriptors, a connection was refused; raise ulimit -n\n");
      return;
    }
    if (fd < 0) return;  // EAGAIN, or a peer that has gone again
    ucred peer{};
    socklen_t length = sizeof(peer);
    const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
    if (!known || peer.uid != geteuid() || connections_.size() >= kConnectionsMax) {
      ++connections_refused_;
      std::fprintf(stderr, "plasma_store: refused pid %d of uid %u (%zu connections)\n", peer.pid, peer.uid,
                   connections_.size());
      close(fd);
      continue;
    }
    const uint64_t id = next_connection_++;
    Connection& c = connections_[id];
    c.fd = fd;
    c.pid = static_cast<uint32_t>(peer.pid);
    c.hello_deadline_ns = NowNs() + kHelloTimeoutNs;
    c.pid_fd = PidFd(peer.pid);
    // A kernel or sandbox without pidfds: the end of the socket must do (a forked child could hold that back).
    const bool sandboxed = c.pid_fd < 0 && errno != ESRCH;
    if (!Watch(epoll_fd_, fd, id << 1, EPOLLIN) ||
        (!sandboxed && (c.pid_fd < 0 || !Watch(epoll_fd_, c.pid_fd, id << 1 | 1, EPOLLIN)))) {
      Gone(id);
    }
  }
}

void Server::Readable(uint64_t id) {
  char buffer[kRequestBytesMax];
  const auto found = connections_.find(id);
  if (found == connections_.end() || found->second.fd < 0) return;
  Connection& c = found->second;
  const ssize_t n = recv(c.fd, buffer, sizeof(buffer), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return Gone(id);
  c.reader.Feed(buffer, static_cast<size_t>(n));
  FrameHeader header;
  std::span<const uint8_t> payload;
  while (c.reader.Next(&header, &payload)) {
    if (!Handle(id, c, header, payload)) return Expel(id, "sent what the protocol forbids");
    if (const auto still = connections_.find(id); still == connections_.end() || still->second.fd < 0) return;
  }
  if (c.reader.broken()) Expel(id, "sent a frame that is too long");
}

void Server::Send(uint64_t id, Message type, uint64_t request, const void* body, size_t bytes, const void* tail,
                  size_t tail_bytes) {
  const auto found = connections_.find(id);
  if (found == connections_.end() || found->second.fd < 0) return;
  Connection& c = found->second;
  AppendFrame(&c.out, type, request, body, bytes, tail, tail_bytes);
  if (!c.wants_write) Flush(id, c);
  if (c.out.size() > kOutBytesMax) {
    c.out.clear();
    Expel(id, "does not read its answers");
  }
}

void Server::Flush(uint64_t id, Connection& c) {
  while (!c.out.empty()) {
    const ssize_t n = send(c.fd, c.out.data(), c.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) break;  // full; or it has gone, as its socket is about to say
    c.out.erase(0, static_cast<size_t>(n));
  }
  const bool wants_write = !c.out.empty();
  if (wants_write == c.wants_write) return;
  c.wants_write = wants_write;
  epoll_event e{};
  e.events = wants_write ? EPOLLIN | EPOLLOUT : EPOLLIN;
  e.data.u64 = id << 1;
  epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, c.fd, &e);
}

void Server::Expel(uint64_t id, const char* why) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection& c = found->second;
  ++connections_refused_;
  std::fprintf(stderr, "plasma_store: closed the connection of pid %u: it %s\n", c.pid, why);
  if (c.client == 0 || c.pid_fd < 0) return Gone(id);
  // It may still read what it has pinned: that stays until its process has ended (pidfd).
  shutdown(c.fd, SHUT_RDWR);
  close(c.fd);
  c.fd = -1;
  room_queue_.ForgetConnection(id);
  ForgetRestores(id);
  seal_watches_->ForgetConnection(id);
}

void Server::Gone(uint64_t id) {
  const auto node = connections_.extract(id);
  if (node.empty()) return;
  const Connection& c = node.mapped();
  if (c.fd >= 0) close(c.fd);
  if (c.pid_fd >= 0) close(c.pid_fd);
  room_queue_.ForgetConnection(id);
  ForgetRestores(id);
  seal_watches_->ForgetConnection(id);
  touch_waiters_.remove_if(
      [&](const TouchWaiter& w) { return w.waiter.asker.connection == id; });  // its leases end below
  if (c.subscribed) --subscribers_;
  UpdateWatched();
  if (c.client != 0) store_->ClientGone(c.client);
  if (c.journal != nullptr) munmap(c.journal, JournalBytes(store_->slots()));
  room_changed_ = true;
}

void Server::UpdateWatched() {
  table_.header()->subscribers.store(static_cast<uint32_t>(subscribers_), std::memory_order_seq_cst);
  store_->set_watched(subscribers_ != 0 || seal_watches_->size() != 0);
}

}  // namespace ray::plasma
