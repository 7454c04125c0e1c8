// Other stores: connections, what they ask of us, what they send us.
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>

#include "channel/limits.h"
#include "channel/sockets.h"
#include "common/clock.h"
#include "object_manager/transfer_loop.h"

namespace ray::objects {

using plasma::kNoSlot;
using plasma::Place;

// ---- connections

TransferLoop::PeerConn* TransferLoop::Dial(const Address& address, Status* status) {
  if (const auto at = links_.find(address); at != links_.end()) return &peers_.find(at->second)->second;
  if (peers_.size() >= kPeersMax) return nullptr;
  const int fd = channel::ConnectTcp(address.host, address.port, status);
  if (fd < 0) return nullptr;
  channel::TuneSocket(fd, false);
  const uint64_t id = next_id_++;
  PeerConn& peer = peers_[id];
  const Tag wanted = StoreTag(address);
  peer.stream = std::make_unique<Stream>(id, fd, options_.identity, &wanted, this);
  peer.where = address;
  peer.hello_deadline_ns = NowNs() + channel::kHelloDeadlineNs;
  peer.watched_write = true;
  Watch(fd, id, true, true);
  links_.emplace(address, id);
  return &peer;
}

void TransferLoop::Adopt(int fd) {
  if (peers_.size() >= kPeersMax) {
    close(fd);
    return;
  }
  channel::TuneSocket(fd, false);
  const uint64_t id = next_id_++;
  PeerConn& peer = peers_[id];
  peer.stream = std::make_unique<Stream>(id, fd, options_.identity, nullptr, this);
  peer.hello_deadline_ns = NowNs() + channel::kHelloDeadlineNs;
  Watch(fd, id, false, true);
}

void TransferLoop::PeerEvent(uint64_t id, uint32_t events) {
  const auto peer = peers_.find(id);
  Stream& stream = *peer->second.stream;
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !stream.Readable()) return PeerGone(id, stream.why());
  Pump(id, peer->second);  // its end, should there be one, is seen by Act
}

void TransferLoop::Pump(uint64_t id, PeerConn& peer) {
  if (peer.stream->wants_write()) peer.stream->Writable();
  const bool wants = peer.stream->wants_write();
  if (wants != peer.watched_write) {
    peer.watched_write = wants;
    Watch(peer.stream->fd(), id, wants, false);
  }
}

void TransferLoop::PeerGone(uint64_t id, const std::string& why) {
  const auto node = peers_.extract(id);
  if (node.empty()) return;
  const PeerConn& peer = node.mapped();
  if (peer.stream->misbehaved()) {
    ++bad_frames_;
    std::fprintf(stderr, "plasma_store: closed the connection %s %s: %s\n", peer.stream->dialled() ? "to" : "from",
                 peer.where ? peer.where->Text().c_str() : "another store", why.c_str());
  }
  if (peer.stream->dialled()) links_.erase(*peer.where);
  for (const auto& [key, count] : peer.claims) {
    for (uint32_t i = 0; i < count; ++i) store_->UnpinKey(key);
    store_->Unpinned(key);
  }
  std::vector<uint64_t> unanswered;
  for (const auto& [claim, claiming] : claiming_) {
    if (claiming.peer == id) unanswered.push_back(claim);
  }
  for (const uint64_t claim : unanswered) Claimed(claim, false);
  std::vector<TransferId> lost;
  for (const auto& [transfer, asked] : asked_of_) {
    if (asked == id) lost.push_back(transfer);
  }
  for (const TransferId transfer : lost) asked_of_.erase(transfer);
  // Who closes as soon as he has our answer has judged it: another token. Who does so late has not got it in time.
  const bool refused = peer.stream->half_way() && peer.hello_deadline_ns - NowNs() > channel::kHelloDeadlineNs / 2;
  const bool for_good = refused || peer.stream->misbehaved() || peer.stream->nobody_listens();
  if (const auto owed = peer.stream->dialled() ? owed_.find(*peer.where) : owed_.end(); owed != owed_.end()) {
    if (for_good) {
      DropOwed(owed);
    } else {
      owed->second.again_ns = NowNs() + kPauseMaxNs;
    }
  }
  if (peer.stream->dialled() && peer.stream->proved() && !for_good) {
    ClaimAgain(*peer.where);
    EndAgain(*peer.where);
  }
  for (const TransferId transfer : lost) {
    for_good ? pulls_.SourceLost(transfer, why, NowNs()) : pulls_.SourceBroken(transfer, why, NowNs());
  }
  pushes_.PeerGone(id);
  for (auto at = servings_.lower_bound({id, 0}); at != servings_.end() && at->first.peer == id;
       at = servings_.lower_bound({id, 0})) {
    ForgetServing(at->first);
  }
  turn_.erase(id);
}

void TransferLoop::PeerDown(const Address& address) {
  const std::string why = "its node is down";
  pulls_.SourceDown(address, why, NowNs());
  if (const auto at = links_.find(address); at != links_.end()) PeerGone(at->second, why);
  std::vector<uint64_t> theirs;  // that it has dialled: what they were served is gone with them
  for (const auto& [id, peer] : peers_) {
    if (peer.where == address) theirs.push_back(id);
  }
  for (const uint64_t id : theirs) PeerGone(id, why);
  if (const auto owed = owed_.find(address); owed != owed_.end()) DropOwed(owed);
  std::erase_if(lapsing_, [&](const Lapsing& due) { return due.home == address; });
  for (auto& [id, line] : lines_) {  // nothing is left there to free or to let go of
    for (Places* places : {&line.owned, &line.claims}) {
      for (auto at = places->begin(); at != places->end();) {
        std::erase(at->second, address);
        at = at->second.empty() ? places->erase(at) : std::next(at);
      }
    }
  }
}

std::map<Address, TransferLoop::Owed>::iterator TransferLoop::DropOwed(std::map<Address, Owed>::iterator owed) {
  for (const Said& said : owed->second.frames) {
    if (said.what == Peer::kClaim) Claimed(said.request, false);
  }
  return owed_.erase(owed);
}

void TransferLoop::ClaimAgain(const Address& home) {
  for (const auto& [id, line] : lines_) {
    for (const auto& [key, homes] : line.claims) {
      for (auto n = std::count(homes.begin(), homes.end(), home); n > 0; --n) {
        Owe(home, {Peer::kClaim, key, 0});
      }
    }
  }
}

void TransferLoop::EndAgain(const Address& home) {
  for (auto& [key, ended] : ended_) {
    for (const Ended& e : ended) {
      if (e.home == home) Owe(home, {e.what, key, 0});
    }
    std::erase_if(ended, [&](const Ended& e) { return e.home == home; });
  }
}

void TransferLoop::Owe(const Address& home, const Said& said) {
  Owed& owed = owed_[home];
  owed.frames.push_back(said);
  owed.since_ns = NowNs();
  owed.again_ns = owed.since_ns + kPauseMinNs;
}

void TransferLoop::DialOwed(int64_t now_ns) {
  for (auto at = owed_.begin(); at != owed_.end();) {
    auto& [home, owed] = *at;
    Status status;
    if (owed.again_ns != 0 && owed.again_ns <= now_ns) {
      owed.again_ns = 0;
      if (Dial(home, &status) == nullptr) owed.again_ns = now_ns + kPauseMaxNs;
    }
    // A home that nobody has said to be down, and nobody finds: it is none any more.
    const bool over = status.code() == StatusCode::kDisconnected || now_ns - owed.since_ns >= kBrokenNs;
    at = over ? DropOwed(at) : std::next(at);
  }
}

void TransferLoop::Proved(Stream& stream) {
  PeerConn& peer = peers_.find(stream.id())->second;
  peer.hello_deadline_ns = 0;
  if (!stream.dialled()) return;
  if (self_) {
    std::string where;
    AppendAddress(&where, *self_);
    stream.Send(Peer::kWhere, 0, where);
  }
  if (const auto owed = owed_.extract(*peer.where); !owed.empty()) {
    for (const Said& said : owed.mapped().frames) Send(peer, said);
  }
}

bool TransferLoop::OnFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload) {
  if (stream.dialled()) return OnServerFrame(stream, header, payload);
  return OnPullerFrame(stream, peers_.find(stream.id())->second, header, payload);
}

// ---- we pull

bool TransferLoop::OnServerFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload) {
  if (static_cast<Peer>(header.type) == Peer::kClaimed) {
    const auto claim = claiming_.find(header.request);
    if (claim != claiming_.end() && claim->second.peer == stream.id()) Claimed(header.request, payload[0] != 0);
    return true;
  }
  const auto asked = asked_of_.find(header.request);
  if (asked == asked_of_.end() || asked->second != stream.id()) return true;  // about a transfer that we have ended
  switch (static_cast<Peer>(header.type)) {
    case Peer::kSizes:
      pulls_.Sizes(header.request, *ReadBody<SizesBody>(payload), NowNs());
      return true;
    case Peer::kRefer: {
      auto to = ReadAddresses(payload, kReferralsMax);
      if (!to) return false;
      std::erase_if(*to, [&](const Address& a) { return a == self_; });
      pulls_.Refer(header.request, *to, NowNs());
      return true;
    }
    case Peer::kGone:
      pulls_.SourceLost(header.request, "it has not got the object", NowNs());
      return true;
    default:
      return false;
  }
}

uint8_t* TransferLoop::ChunkRoom(Stream& stream, uint64_t transfer, uint64_t* room) {
  *room = 0;
  const auto asked = asked_of_.find(transfer);
  if (asked == asked_of_.end() || asked->second != stream.id()) return nullptr;
  *room = pulls_.Missing(transfer);
  if (*room == 0) return nullptr;
  const ObjectId key = *pulls_.KeyOf(transfer);
  Extent& extent = extents_.find(key)->second;
  const uint64_t at = *pulls_.Received(key);
  uint8_t* to = extent.place.address + at;
  if (at + std::min<uint64_t>(*room, kChunkBytes) > extent.prepared) {
    const uint64_t ahead = std::min<uint64_t>(*room, kTurnBytes);
    store_->Prepare(to, ahead);
    extent.prepared = at + ahead;
  }
  return to;
}

void TransferLoop::ChunkCame(Stream&, uint64_t transfer, uint64_t bytes) {
  bytes_in_ += bytes;
  const ObjectId key = *pulls_.KeyOf(transfer);
  pulls_.Got(transfer, bytes, NowNs());
  PartialGrew(key);
}

// ---- we serve

bool TransferLoop::OnPullerFrame(Stream& stream, PeerConn& peer, const FrameHeader& header,
                                 std::span<const uint8_t> payload) {
  const PushId push{stream.id(), header.request};
  const auto at = servings_.find(push);
  switch (static_cast<Peer>(header.type)) {
    case Peer::kWhere:
      peer.where = ReadAddress(payload);
      return peer.where.has_value();
    case Peer::kAsk:
      return at == servings_.end() && Asked(stream, header.request, *ReadBody<AskBody>(payload));
    case Peer::kGo: {
      const GoBody go = *ReadBody<GoBody>(payload);
      if (at == servings_.end()) return true;  // our kGone is on its way
      Serving& s = at->second;
      if (s.base == nullptr || s.flowing || go.offset > s.total()) return false;
      s.at = go.offset;
      pushes_.Go(push, s.key, go.must_serve != 0, peer.where);
      return true;
    }
    case Peer::kEnd:
      if (at != servings_.end()) {
        const ObjectId key = at->second.key;
        EndServing(push);
        // Whoever keeps it has pinned the copy; and when our own goes, nobody tells the copies any more.
        if (peer.where && IsOrphan(key)) Say(*peer.where, Peer::kLapse, key);
      }
      return true;
    case Peer::kFree:
      FreedByOwner(ObjectId::FromBytes(payload.data()));
      return true;
    case Peer::kClaim: {
      const char kept = Claim(peer, ObjectId::FromBytes(payload.data())) ? 1 : 0;
      stream.Send(Peer::kClaimed, header.request, &kept, 1);
      return true;
    }
    case Peer::kUnclaim:
      Unclaim(peer, ObjectId::FromBytes(payload.data()));
      return true;
    case Peer::kLapse:
      Lapse(ObjectId::FromBytes(payload.data()));
      return true;
    default:
      return false;
  }
}

bool TransferLoop::Asked(Stream& stream, uint64_t transfer, const AskBody& ask) {
  const PushId push{stream.id(), transfer};
  Serving s;
  s.key = ask.key;
  s.at = ask.offset;
  Place place;
  bool spilled = false;
  if (PinHere(ask.key, &place, &spilled) && !spilled) {
    s.base = place.address;
    s.data_bytes = place.data_bytes;
    s.metadata_bytes = place.metadata_bytes;
    s.slot = place.slot;
    SendSizes(push, servings_.emplace(push, s).first->second);
  } else if (spilled) {
    s.asked = true;
    servings_.emplace(push, s);
    partial_[ask.key].push_back(push);
    Bring(ask.key, place);
  } else if (pulls_.Knows(ask.key)) {
    s.asked = true;
    servings_.emplace(push, s);
    partial_[ask.key].push_back(push);
    PartialGrew(ask.key);
  } else {
    stream.Send(Peer::kGone, transfer);
  }
  return true;
}

uint64_t TransferLoop::Available(const Serving& s) const {
  if (s.base == nullptr) return 0;
  return s.slot != kNoSlot ? s.total() : pulls_.Received(s.key).value_or(0);
}

void TransferLoop::SendSizes(PushId push, Serving& s) {
  s.asked = false;
  const SizesBody body{s.data_bytes, s.metadata_bytes, Available(s)};
  peers_.find(push.peer)->second.stream->Send(Peer::kSizes, push.transfer, &body, sizeof(body));
}

bool TransferLoop::NextChunk(Stream& stream, uint64_t* transfer, const uint8_t** data, uint32_t* bytes) {
  const uint64_t peer = stream.id();
  const auto begin = servings_.lower_bound({peer, 0});
  if (begin == servings_.end() || begin->first.peer != peer) return false;
  auto at = servings_.upper_bound({peer, turn_[peer]});  // whose turn comes after the last one's
  const auto first = at;
  bool wrapped = false;
  for (;;) {
    if (at == servings_.end() || at->first.peer != peer) {
      if (wrapped) return false;
      wrapped = true;
      at = begin;
    }
    if (wrapped && at == first) return false;
    const Serving& s = at->second;
    if (s.flowing && !s.ended && Available(s) > s.at) {
      *transfer = turn_[peer] = at->first.transfer;
      *data = s.base + s.at;
      *bytes = static_cast<uint32_t>(std::min<uint64_t>(kChunkBytes, Available(s) - s.at));
      return true;
    }
    ++at;
  }
}

void TransferLoop::ChunkSent(Stream& stream, uint64_t transfer, uint32_t bytes) {
  bytes_out_ += bytes;
  const PushId push{stream.id(), transfer};
  const auto at = servings_.find(push);
  if (at == servings_.end()) return;
  at->second.at += bytes;
  if (at->second.ended) return ForgetServing(push);
  pushes_.Sent(push);
}

void TransferLoop::EndServing(PushId push) {
  pushes_.End(push);
  if (peers_.find(push.peer)->second.stream->sending() == push.transfer) {
    servings_.find(push)->second.ended = true;  // the bytes on their way must stay
  } else {
    ForgetServing(push);
  }
}

void TransferLoop::ForgetServing(PushId push) {
  const auto node = servings_.extract(push);
  if (node.empty()) return;
  if (node.mapped().slot != kNoSlot) return store_->Unpin(node.mapped().slot);
  const auto at = partial_.find(node.mapped().key);
  if (at == partial_.end()) return;
  std::erase(at->second, push);
  if (at->second.empty()) partial_.erase(at);
}

void TransferLoop::PartialGrew(const ObjectId& key) {
  const auto served = partial_.find(key);
  const auto extent = extents_.find(key);
  if (served == partial_.end() || extent == extents_.end()) return;
  for (const PushId& push : served->second) {
    Serving& s = servings_.find(push)->second;
    s.base = extent->second.place.address;
    s.data_bytes = extent->second.place.data_bytes;
    s.metadata_bytes = extent->second.place.metadata_bytes;
    if (s.asked && Available(s) > s.at) SendSizes(push, s);
    if (s.flowing) peers_.find(push.peer)->second.stream->Wake();
  }
}

// The pull is over without a copy of its own making: whoever hangs on it is told so, unless there is another copy.
void TransferLoop::PartialGone(const ObjectId& key) {
  const auto node = partial_.extract(key);
  if (node.empty()) return;
  for (const PushId& push : node.mapped()) {
    Stream& stream = *peers_.find(push.peer)->second.stream;
    Serving& s = servings_.find(push)->second;
    Place place;
    bool spilled = false;
    const bool pinned = s.base == nullptr && PinHere(key, &place, &spilled);
    if (spilled) {
      partial_[key].push_back(push);
      Bring(key, place);
      continue;
    }
    if (pinned) {
      s.base = place.address;
      s.data_bytes = place.data_bytes;
      s.metadata_bytes = place.metadata_bytes;
      s.slot = place.slot;
      SendSizes(push, s);
      continue;
    }
    pushes_.End(push);
    servings_.erase(push);
    // Half a chunk cannot be taken back: what follows it would be read as its rest.
    if (stream.sending() == push.transfer) {
      stream.Abandon("a copy that it was being sent is gone");
    } else {
      stream.Send(Peer::kGone, push.transfer);
    }
  }
}

}  // namespace ray::objects
