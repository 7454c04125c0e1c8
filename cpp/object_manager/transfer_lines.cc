// What local processes ask: the Unix socket, its frames, their answers.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "common/clock.h"
#include "object_manager/limits.h"
#include "object_manager/transfer_loop.h"

namespace ray::objects {

namespace {
constexpr size_t kPassedMax = 64;  // descriptors in one message
}

void TransferLoop::AcceptLines() {
  for (;;) {
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;  // none left, or no descriptor: those who wait are accepted when one is free
    ucred peer{};
    socklen_t length = sizeof(peer);
    const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
    if (!known || peer.uid != geteuid() || lines_.size() >= kLinesMax) {
      close(fd);
      continue;
    }
    const uint64_t id = next_id_++;
    if (!Watch(fd, id, false, true)) {
      close(fd);
      continue;
    }
    lines_[id].fd = fd;
  }
}

void TransferLoop::LineReadable(uint64_t id) {
  LineConn& line = lines_.find(id)->second;
  if (!line.out.empty()) FlushLine(id, line);
  char buffer[kLineBytesMax];
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kPassedMax)];
  iovec part{buffer, sizeof(buffer)};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = recvmsg(line.fd, &message, MSG_CMSG_CLOEXEC);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  for (cmsghdr* c = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr; c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
      line.fds.push_back(fd);
    }
  }
  if (n <= 0) return LineGone(id);
  line.reader.Feed(buffer, static_cast<size_t>(n));
  FrameHeader header;
  std::span<const uint8_t> payload;
  while (line.reader.Next(&header, &payload)) {
    if (!OnLine(id, line, header, payload)) {
      ++bad_frames_;
      std::fprintf(stderr,
                   "plasma_store: closed a local connection to the object manager: a malformed frame (type %u)\n",
                   header.type);
      return LineGone(id);
    }
    if (lines_.count(id) == 0) return;
  }
  if (line.reader.broken()) {
    ++bad_frames_;
    LineGone(id);
  }
}

bool TransferLoop::OnLine(uint64_t id, LineConn& line, const FrameHeader& header, std::span<const uint8_t> payload) {
  switch (static_cast<Line>(header.type)) {
    case Line::kPull: {
      const auto pull = ReadPull(payload);
      if (!pull) return false;
      const PullAsker asker{id, header.request};
      if (pins_.count(asker) != 0) return false;  // that number is in use
      plasma::Place place;
      if (PinHere(pull->key, &place)) {
        pins_[asker] = place.slot;
        const char here = static_cast<char>(Outcome::kHere);
        Answer(id, Line::kPulled, header.request, &here, 1);
        return true;
      }
      pulls_.Want(asker, *pull, NowNs());
      return true;
    }
    case Line::kLetGo: {
      const auto node = pins_.extract({id, header.request});
      if (node.empty()) {
        pulls_.LetGo({id, header.request});
      } else {
        store_->Unpin(node.mapped());
      }
      return true;
    }
    case Line::kHold: {
      if (payload.size() != ObjectId::kBytes) return false;
      const char held = Hold(ObjectId::FromBytes(payload.data())) ? 1 : 0;
      Answer(id, Line::kHeld, header.request, &held, 1);
      return true;
    }
    case Line::kFree: {
      const auto body = ReadFree(payload);
      if (!body) return false;
      if (body->home) {
        Forget(line.owned, body->key, *body->home);
        FreeAt(*body->home, body->key);
      } else {
        Free(body->key);
      }
      return true;
    }
    case Line::kOwn: {
      const auto body = ReadFree(payload);
      if (!body || !body->home) return false;
      line.owned[body->key].push_back(*body->home);
      if (const auto ended = ended_.find(body->key); ended != ended_.end()) {  // it was made again
        std::erase_if(ended->second, [&](const Ended& e) { return e.home == *body->home; });
      }
      return true;
    }
    case Line::kClaim:
    case Line::kUnclaim: {
      const auto body = ReadFree(payload);
      if (!body || !body->home) return false;
      if (static_cast<Line>(header.type) == Line::kClaim) {
        line.claims[body->key].push_back(*body->home);
        const uint64_t claim = next_id_++;
        claiming_[claim] = {0, id, header.request};
        if (!Say(*body->home, Peer::kClaim, body->key, claim)) Claimed(claim, false);
      } else if (Forget(line.claims, body->key, *body->home)) {
        Say(*body->home, Peer::kUnclaim, body->key);
      }
      return true;
    }
    case Line::kLapse: {
      if (payload.size() != ObjectId::kBytes) return false;
      Lapse(ObjectId::FromBytes(payload.data()));
      return true;
    }
    case Line::kOwnerDead: {
      if (payload.empty() || payload.size() > Tag::kBytes) return false;
      const uint64_t count = OwnerDead(payload);
      Answer(id, Line::kCount, header.request, &count, sizeof(count));
      return true;
    }
    case Line::kAdopt: {
      if (!payload.empty() || line.fds.empty()) return false;
      const int fd = line.fds.front();
      line.fds.pop_front();
      Adopt(fd);
      return true;
    }
    case Line::kSelf: {
      auto address = ReadAddress(payload);
      if (!address) return false;
      ReachedAt(*address);
      return true;
    }
    case Line::kPeerDown: {
      const auto address = ReadAddress(payload);
      if (!address) return false;
      PeerDown(*address);
      return true;
    }
    case Line::kStats: {
      Act();  // whoever is answered knows that what he asked before is done
      const Stats stats = CountAll();
      Answer(id, Line::kStatsAre, header.request, &stats, sizeof(stats));
      return true;
    }
    default:
      return false;
  }
}

// A home that cannot be reached at this moment hears of it later: nobody else would free the object there.
void TransferLoop::FreeAt(const Address& home, const ObjectId& key) {
  if (home == self_) return Free(key);
  Say(home, Peer::kFree, key);
}

bool TransferLoop::Say(const Address& to, Peer what, const ObjectId& key, uint64_t request) {
  Status status;
  PeerConn* peer = Dial(to, &status);
  if (peer != nullptr && peer->stream->proved()) {
    Send(*peer, {what, key, request});
    return true;
  }
  if (peer == nullptr && status.code() == StatusCode::kDisconnected) return false;
  Owed& owed = owed_[to];
  owed.frames.push_back({what, key, request});
  if (owed.since_ns == 0) owed.since_ns = NowNs();
  if (peer == nullptr && owed.again_ns == 0) owed.again_ns = NowNs() + kPauseMinNs;
  return true;
}

void TransferLoop::Send(PeerConn& peer, const Said& said) {
  peer.stream->Send(said.what, said.request, said.key.bytes, ObjectId::kBytes);
  if (said.what == Peer::kFree || said.what == Peer::kLapse) Remember(*peer.where, said);
  if (const auto claim = claiming_.find(said.request); said.what == Peer::kClaim && claim != claiming_.end()) {
    claim->second.peer = peer.stream->id();
  }
}

// Nobody answers these, and nobody else says them: a connection that has ended already, unseen, swallows them.
void TransferLoop::Remember(const Address& home, const Said& said) {
  const int64_t now = NowNs();
  ended_[said.key].push_back({now, home, said.what});
  ended_at_.emplace_back(now, said.key);
  while (ended_at_.size() > kEndedMax || ended_at_.front().first + kEndedNs <= now) {
    const auto [at_ns, key] = ended_at_.front();
    ended_at_.pop_front();
    const auto at = ended_.find(key);
    if (at == ended_.end()) continue;
    std::erase_if(at->second, [&](const Ended& e) { return e.at_ns <= at_ns; });
    if (at->second.empty()) ended_.erase(at);
  }
}

void TransferLoop::Claimed(uint64_t claim, bool kept) {
  const auto node = claiming_.extract(claim);
  const char answer = kept ? 1 : 0;
  if (!node.empty()) Answer(node.mapped().line, Line::kClaimed, node.mapped().request, &answer, 1);
}

bool TransferLoop::Forget(Places& places, const ObjectId& key, const Address& address) {
  const auto at = places.find(key);
  if (at == places.end()) return false;
  const auto found = std::find(at->second.begin(), at->second.end(), address);
  if (found == at->second.end()) return false;
  at->second.erase(found);
  if (at->second.empty()) places.erase(at);
  return true;
}

Stats TransferLoop::CountAll() const {
  Stats s{};
  s.pulls = pulls_.started();
  s.pulls_joined = pulls_.joined();
  s.pulls_done = pulls_.done();
  s.pulls_failed = pulls_.failed();
  s.pulls_now = pulls_.size();
  s.resumed = pulls_.resumed();
  s.bytes_in = bytes_in_;
  s.bytes_out = bytes_out_;
  s.served = pushes_.served();
  s.referred = pushes_.referred();
  s.serving_now = pushes_.serving();
  s.held = holds_.size();
  s.links = peers_.size();
  s.lines = lines_.size();
  s.bad_frames = bad_frames_;
  s.freed = freed_;
  return s;
}

void TransferLoop::Answer(uint64_t id, Line type, uint64_t request, const void* body, size_t bytes) {
  const auto at = lines_.find(id);
  if (at == lines_.end()) return;
  const FrameHeader header{static_cast<uint32_t>(bytes), static_cast<uint16_t>(type), 0, request};
  at->second.out.append(reinterpret_cast<const char*>(&header), sizeof(header));
  at->second.out.append(static_cast<const char*>(body), bytes);
  FlushLine(id, at->second);
}

// Its end, should the send find it, is seen by the poll.
void TransferLoop::FlushLine(uint64_t id, LineConn& line) {
  while (!line.out.empty()) {
    const ssize_t n = send(line.fd, line.out.data(), line.out.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    line.out.erase(0, static_cast<size_t>(n));
  }
  if (line.out.size() > kOutBytesMax) {
    shutdown(line.fd, SHUT_RDWR);  // it does not read; the poll sees its end
    line.out.clear();
  }
  const bool wants = !line.out.empty();
  if (wants != line.wants_write) {
    line.wants_write = wants;
    Watch(line.fd, id, wants, false);
  }
}

void TransferLoop::LineGone(uint64_t id) {
  const auto node = lines_.extract(id);
  if (node.empty()) return;
  close(node.mapped().fd);
  for (const int fd : node.mapped().fds) close(fd);
  for (const auto& [key, homes] : node.mapped().owned) {
    for (const Address& home : homes) lapsing_.push_back({NowNs() + kLapseDelayNs, home, key});
  }
  for (const auto& [key, homes] : node.mapped().claims) {
    for (const Address& home : homes) Say(home, Peer::kUnclaim, key);
  }
  pulls_.LineGone(id);
  for (auto at = pins_.lower_bound({id, 0}); at != pins_.end() && at->first.line == id;) {
    store_->Unpin(at->second);
    at = pins_.erase(at);
  }
}

}  // namespace ray::objects
