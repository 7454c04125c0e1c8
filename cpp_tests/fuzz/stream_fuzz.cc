// Bytes of another store's object manager, to one who has dialled it or was dialled: greeting, TLS, frames, chunks.
//
// First byte of the input: which role, whether through TLS, and what the input is - the whole stream (of a stranger,
// who must never be let in), what stands behind a right greeting, or changes to the records of a peer that is right.
// The second byte cuts the stream into pieces. TLS is between this stream and a Tls of the test's, so that the input is
// what a peer says inside; with changes it is what somebody between the two makes of it.
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "channel/fixture.h"
#include "channel/handoff.h"
#include "fuzz/input.h"
#include "object_manager/stream.h"

using namespace ray::objects;
using ray::Tag;
using ray::channel::Handshake;
using ray::channel::Identity;
using ray::channel::NetworkProof;
using ray::channel::Tls;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

constexpr uint64_t kObjectBytes = 3000;

Identity Who(char tag, bool tls) {
  Identity identity = ray::channel::MakeIdentity(tag, 2);
  ray::channel::ProveOverNetwork(&identity);
  identity.tls = tls;
  return identity;
}

// Takes three transfers' chunks, of which one was let go, and answers each frame with a chunk.
class Taker : public Stream::Handler {
 public:
  bool OnFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload) override {
    Require(stream.proved(), "no frame before the proof");
    Require(HeaderAllowed(header, !stream.dialled()), "only frames that have a place here");
    Require(payload.size() == header.payload_bytes && payload.size() <= kControlBytesMax, "whole and bounded");
    uint8_t sum = 0;
    for (const uint8_t b : payload) sum = static_cast<uint8_t>(sum + b);
    frames_ += 1 + (sum & 0);
    if (!stream.dialled() && to_send_ < 4) {
      ++to_send_;
      stream.Wake();
    }
    return !(payload.size() == 28 && payload[0] == 0xff);  // it "does not fit its type"
  }
  uint8_t* ChunkRoom(Stream& stream, uint64_t transfer, uint64_t* room) override {
    Require(stream.proved() && stream.dialled(), "chunks come to who pulls");
    if (transfer >= 3) {
      *room = 0;  // let go
      return nullptr;
    }
    *room = kObjectBytes - got_[transfer];
    return *room == 0 ? nullptr : object_[transfer].data() + got_[transfer];
  }
  void ChunkCame(Stream&, uint64_t transfer, uint64_t bytes) override {
    Require(transfer < 3 && bytes <= kObjectBytes - got_[transfer], "no more comes than there is room for");
    got_[transfer] += bytes;
  }
  bool NextChunk(Stream& stream, uint64_t* transfer, const uint8_t** data, uint32_t* bytes) override {
    Require(stream.proved(), "no chunk before the proof");
    if (stream.dialled() || to_send_ == 0) return false;
    *transfer = 7;
    *data = source_.data();
    *bytes = static_cast<uint32_t>(source_.size());
    return true;
  }
  void ChunkSent(Stream&, uint64_t transfer, uint32_t bytes) override {
    Require(transfer == 7 && bytes == source_.size() && to_send_ > 0, "what was to be sent was");
    --to_send_;
  }
  void Proved(Stream& stream) override {
    Require(!proved_, "once");
    proved_ = true;
    if (stream.dialled()) stream.Send(Peer::kWhere, 0, "where");
  }
  bool proved() const { return proved_; }

 private:
  std::array<std::array<uint8_t, kObjectBytes>, 3> object_{};
  std::array<uint64_t, 3> got_{};
  std::array<uint8_t, 40'000> source_{};
  int to_send_ = 0;
  uint64_t frames_ = 0;
  bool proved_ = false;
};

// The other end: a right greeting, then the input.
struct Far {
  int fd;
  std::unique_ptr<Tls> tls;
  std::unique_ptr<Handshake> greeting;
  bool plain_first;  // the preamble is to be taken off

  ssize_t Send(const void* data, size_t bytes) {
    return tls ? tls->Send(data, bytes) : send(fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  ssize_t Recv(void* to, size_t bytes) { return tls ? tls->Recv(to, bytes) : recv(fd, to, bytes, MSG_DONTWAIT); }

  // Goes on with the greeting as far as it can. True: it is over, and was right.
  bool Greet() {
    if (plain_first) {
      uint8_t preamble[ray::channel::kPreambleBytes];
      if (recv(fd, preamble, sizeof preamble, MSG_DONTWAIT) != sizeof preamble) return false;
      plain_first = false;
    }
    uint8_t byte;
    while (!greeting->verified() && greeting->refused() == nullptr) {
      if (greeting->unsent_bytes() > 0) {
        const ssize_t n = Send(greeting->unsent(), greeting->unsent_bytes());
        if (n > 0) greeting->Sent(static_cast<size_t>(n));
        if (n > 0) continue;
      }
      if (Recv(&byte, 1) != 1) return false;
      greeting->Receive(&byte, 1);
    }
    while (greeting->unsent_bytes() > 0) {
      const ssize_t n = Send(greeting->unsent(), greeting->unsent_bytes());
      if (n <= 0) return false;
      greeting->Sent(static_cast<size_t>(n));
    }
    return greeting->verified();
  }
};

struct Both {
  Taker taker;
  int fds[2];
  std::unique_ptr<Stream> stream;
  Far far;
  bool alive = true;

  Both(bool dialled, bool tls) {
    Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
    const Identity self = Who('A', tls), other = Who('B', tls);
    const Tag wanted = Tag::FromBytes(other.tag);
    stream = std::make_unique<Stream>(1, fds[0], self, dialled ? &wanted : nullptr, &taker);
    uint8_t preamble[ray::channel::kPreambleBytes];
    ray::channel::WritePreamble(ray::channel::Destination::kStore, nullptr, preamble);
    ray::Status status;
    if (tls) {
      far.tls = Tls::Make(fds[1], !dialled, other.token, preamble, &status);
      Require(far.tls != nullptr, "OpenSSL is there");
    }
    const auto side = dialled ? Handshake::Side::kAccepted : Handshake::Side::kDialled;
    far.fd = fds[1];
    far.greeting = std::make_unique<Handshake>(other, std::make_unique<NetworkProof>(other.token), side);
    far.plain_first = dialled;
  }
  ~Both() { close(fds[1]); }

  // As the poll has it: what is dialled is writable before there can be anything to read.
  void Step() {
    if (alive && stream->wants_write()) alive = stream->Writable();
    if (alive) alive = stream->Readable();
    if (alive && stream->wants_write()) alive = stream->Writable();
  }
  bool Greet() {
    for (int i = 0; i < 20 && alive; ++i) {
      Step();
      if (far.Greet()) {
        Step();
        return alive;
      }
    }
    return false;
  }
  void TakeAnswers() {
    uint8_t answers[4096];
    while (far.Recv(answers, sizeof answers) > 0) {
    }
  }
};

// Says all of `said`, `step` bytes at a time, as long as the stream lives; then ends.
void Say(Both* both, const std::string& said, size_t step, bool inside) {
  int stalled = 0;
  for (size_t at = 0; at < said.size() && both->alive;) {
    const size_t piece = std::min(step, said.size() - at);
    const ssize_t n = inside ? both->far.Send(said.data() + at, piece)
                             : send(both->far.fd, said.data() + at, piece, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) at += static_cast<size_t>(n);
    stalled = n > 0 ? 0 : stalled + 1;
    Require(stalled < 1000, "a stream that lives takes what comes");
    both->Step();
    both->TakeAnswers();
  }
  shutdown(both->far.fd, SHUT_WR);
  for (int i = 0; i < 1000 && both->alive; ++i) {
    both->Step();
    both->TakeAnswers();
  }
  Require(!both->alive && !both->stream->why().empty(), "a stream whose peer has ended ends, and says why");
}

// What somebody in between makes of the records of a right peer: he may break them, and that is all.
void Meddle(Both* both, Input* in) {
  Require(both->Greet(), "a right peer is let in");
  const Peer type = both->stream->dialled() ? Peer::kGone : Peer::kEnd;
  const FrameHeader frame{0, static_cast<uint16_t>(type), 0, 5};
  // Into the hands of who is in between: through another pair, so that nothing has arrived yet.
  int between[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, between) == 0, "socketpair");
  const int kept = dup(both->far.fd);
  Require(kept >= 0 && dup2(between[0], both->far.fd) >= 0, "dup");
  for (int i = 0; i < 6; ++i) {  // a record each
    Require(both->far.Send(&frame, sizeof frame) == sizeof frame, "it fits");
  }
  uint8_t records[4096];
  const ssize_t n = recv(between[1], records, sizeof records, MSG_DONTWAIT);
  Require(n > 0 && dup2(kept, both->far.fd) >= 0, "there they are");
  for (const int fd : {between[0], between[1], kept}) close(fd);
  std::string said(reinterpret_cast<const char*>(records), static_cast<size_t>(n));
  const std::string whole = said;
  while (!in->empty()) {
    const uint8_t what = in->Byte();
    const size_t at = in->Below(static_cast<uint32_t>(said.size() + 1));
    if (what % 4 == 0) said.insert(at, in->Bytes(what / 4));
    if (what % 4 == 1) said.erase(at, what / 4);
    if (what % 4 == 2 && at < said.size()) said[at] = static_cast<char>(said[at] ^ in->Byte());
    if (what % 4 == 3) said += whole;  // sent once more
    if (said.size() > 8192) break;
  }
  Say(both, said, 1 + in->Byte(), false);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input in(data, bytes);
  const uint8_t kind = in.Byte();
  const bool dialled = kind & 1, tls = kind & 2;
  const size_t step = 1 + size_t{in.Byte()} * 5;
  Both both(dialled, tls);
  switch (kind >> 2 & 3) {
    case 0:
      Say(&both, in.Rest(), step, false);
      Require(!both.taker.proved(), "nobody is let in without the token");
      break;
    case 1:
      if (tls) {
        Meddle(&both, &in);
        break;
      }
      [[fallthrough]];
    default:
      Require(both.Greet(), "a right peer is let in");
      Say(&both, in.Rest(), step, true);
  }
  return 0;
}
