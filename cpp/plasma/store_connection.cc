// Waiting together on one socket; see store_connection.h.
#include "plasma/store_connection.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "common/clock.h"

namespace ray::plasma {

namespace {
constexpr size_t kUnaskedMax = 1 << 14;  // frames of up to 2,048 events each

Status Died() { return {StatusCode::kDisconnected, "the plasma store has died or closed the connection"}; }

// >0 readable, 0 time is up, -1 interrupted and told to give up.
int PollFor(int fd, const Patience& patience) {
  for (;;) {
    int ms = -1;
    if (patience.deadline_ns != INT64_MAX) {
      const int64_t left = std::max<int64_t>(0, patience.deadline_ns - NowNs());
      ms = static_cast<int>(std::min<int64_t>((left + kNsPerMs - 1) / kNsPerMs, INT_MAX));
    }
    pollfd p{fd, POLLIN, 0};
    const int n = poll(&p, 1, ms);
    if (n > 0) return 1;
    if (n == 0) return 0;
    if (errno == EINTR && patience.interrupted != nullptr && patience.interrupted()) return -1;
  }
}
}  // namespace

StoreConnection::StoreConnection(int fd) : fd_(fd) {}
StoreConnection::~StoreConnection() { close(fd_); }

Status StoreConnection::Tell(Message type, uint64_t request, const void* body, size_t bytes) {
  std::string frame;
  AppendFrame(&frame, type, request, body, bytes);
  std::lock_guard<std::mutex> lock(send_mutex_);
  for (size_t at = 0; at < frame.size();) {
    const ssize_t n = send(fd_, frame.data() + at, frame.size() - at, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Died();
    at += static_cast<size_t>(n);
  }
  return Status::Ok();
}

Status StoreConnection::Call(Message type, const void* body, size_t bytes, const Patience& patience, Answer* answer) {
  Pending pending;
  std::unique_lock<std::mutex> lock(mutex_);
  if (dead_) return Died();
  const uint64_t request = next_request_++;
  pending_.emplace(request, &pending);
  lock.unlock();
  Status status = Tell(type, request, body, bytes);
  lock.lock();
  if (status.ok()) status = WaitFor(&pending, &lock, patience);
  pending_.erase(request);
  if (pending.wake_fd >= 0) close(pending.wake_fd);
  if (pending.done) {
    *answer = std::move(pending.answer);
    return Status::Ok();
  }
  lock.unlock();
  // If the answer is on its way already, Dispatch finds nobody waiting for it, and gives back what it grants.
  if (status.code() != StatusCode::kDisconnected) static_cast<void>(Tell(Message::kCancel, request, nullptr, 0));
  return status;
}

Status StoreConnection::Start(Message type, const void* body, size_t bytes, uint64_t* request) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (dead_) return Died();
    *request = next_request_++;
    started_.emplace(*request, std::nullopt);
  }
  return Tell(type, *request, body, bytes);
}

Status StoreConnection::Receive() {
  char buffer[64 << 10];
  std::lock_guard<std::mutex> lock(mutex_);
  if (dead_) return Died();
  if (receiving_) return Status::Ok();  // another thread reads, for us too
  const ssize_t n = recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT);
  const Status status = Feed(buffer, n, errno);
  WakeOne();
  return status;
}

bool StoreConnection::Take(uint64_t request, Answer* answer) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = started_.find(request);
  if (found == started_.end() || !found->second) return false;
  *answer = std::move(*found->second);
  started_.erase(found);
  return true;
}

void StoreConnection::Cancel(uint64_t request) {
  Answer answer;
  const bool answered = Take(request, &answer);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    started_.erase(request);
  }
  if (!answered) {
    // A store that has died keeps nothing.
    static_cast<void>(Tell(Message::kCancel, request, nullptr, 0));
  } else if (answer.type == Message::kLent) {
    const auto* payload = reinterpret_cast<const uint8_t*>(answer.payload.data());
    if (const auto lent = ReadBody<LentAnswer>({payload, answer.payload.size()})) {
      const ReturnRequest back{lent->lease};
      static_cast<void>(Tell(Message::kReturn, 0, &back, sizeof(back)));
    }
  }
}

Status StoreConnection::NextUnasked(const Patience& patience, Answer* answer) {
  Pending pending;
  std::unique_lock<std::mutex> lock(mutex_);
  if (unasked_.empty()) {
    if (dead_) return Died();
    if (!pending_.emplace(0, &pending).second) {
      return {StatusCode::kInvalidArgument, "another thread waits for notifications already"};
    }
    Status status = WaitFor(&pending, &lock, patience);
    pending_.erase(0);
    if (pending.wake_fd >= 0) close(pending.wake_fd);
    if (unasked_.empty()) return status.ok() ? Died() : status;
  }
  answer->type = Message::kEvents;
  answer->payload = std::move(unasked_.begin()->second);
  unasked_.erase(unasked_.begin());
  return Status::Ok();
}

Status StoreConnection::WaitFor(Pending* pending, std::unique_lock<std::mutex>* lock, const Patience& patience) {
  Status status;
  while (!pending->done && !dead_ && status.ok()) {
    if (!receiving_) {
      receiving_ = true;
      status = ReceiveSome(lock, patience);
      receiving_ = false;
      WakeOne();
      continue;
    }
    if (pending->wake_fd < 0) pending->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const int wake_fd = pending->wake_fd;
    if (wake_fd < 0) return Status::FromErrno("eventfd", errno);
    lock->unlock();
    const int r = PollFor(wake_fd, patience);
    uint64_t n;
    const bool woken = r > 0 && read(wake_fd, &n, sizeof(n)) > 0;
    lock->lock();
    if (!woken && r == 0) status = {StatusCode::kTimedOut, "the plasma store did not answer in time"};
    if (r < 0) status = {StatusCode::kInterrupted, "interrupted"};
  }
  if (pending->done) return Status::Ok();
  return status.ok() ? Died() : status;
}

Status StoreConnection::ReceiveSome(std::unique_lock<std::mutex>* lock, const Patience& patience) {
  char buffer[64 << 10];
  lock->unlock();
  const int r = PollFor(fd_, patience);
  const ssize_t n = r > 0 ? recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT) : 0;
  const int error = errno;
  lock->lock();
  if (r == 0) return {StatusCode::kTimedOut, "the plasma store did not answer in time"};
  if (r < 0) return {StatusCode::kInterrupted, "interrupted"};
  return Feed(buffer, n, error);
}

// mutex_ held. What one recv has brought.
Status StoreConnection::Feed(const char* data, ssize_t bytes, int error) {
  if (bytes < 0 && (error == EAGAIN || error == EINTR)) return Status::Ok();
  if (bytes <= 0) {
    dead_ = true;
    return Died();
  }
  reader_.Feed(data, static_cast<size_t>(bytes));
  FrameHeader header;
  std::span<const uint8_t> payload;
  while (reader_.Next(&header, &payload)) Dispatch(header, payload);
  if (reader_.broken()) dead_ = true;
  return Status::Ok();
}

void StoreConnection::Dispatch(const FrameHeader& header, std::span<const uint8_t> payload) {
  const Message type = static_cast<Message>(header.type);
  std::string bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
  if (type == Message::kEvents) {
    if (unasked_.size() >= kUnaskedMax) {
      dead_ = true;  // nobody reads the notifications; a subscriber that is told so is better than one missing some
      return;
    }
    unasked_.emplace(next_unasked_++, std::move(bytes));
    if (const auto waiting = pending_.find(0); waiting != pending_.end()) waiting->second->done = true;
    return;
  }
  const auto found = pending_.find(header.request);
  if (found != pending_.end() && header.request != 0) {
    found->second->answer = {type, std::move(bytes)};
    found->second->done = true;
    return;
  }
  if (const auto started = started_.find(header.request); started != started_.end()) {
    started->second = Answer{type, std::move(bytes)};
    return;
  }
  // The answer to a cancelled request. A lease that nobody will use goes back.
  if (type != Message::kLent) return;
  if (const auto lent = ReadBody<LentAnswer>(payload)) {
    const ReturnRequest back{lent->lease};
    static_cast<void>(Tell(Message::kReturn, 0, &back, sizeof(back)));
  }
}

// The receiver leaves: those whose answer has come must learn of it, and if none is left to receive, one must begin to.
void StoreConnection::WakeOne() {
  const uint64_t one = 1;
  for (auto& [request, pending] : pending_) {
    if (pending->wake_fd < 0) continue;
    // A full counter means that it has been woken already.
    if (write(pending->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN) dead_ = true;
  }
}

}  // namespace ray::plasma
