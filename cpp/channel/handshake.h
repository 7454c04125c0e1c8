// The hello: each side's first 64 bytes, checked before anything else that the peer sent is looked at. A state machine
// without I/O or clock: Connection feeds it bytes and sends what it wants sent; the fuzz test does the same.
//
//   offset 0   magic 8 bytes, differing in bits that 7-bit or newline-converting transports damage
//          8   u16 version, u8 role, u8 side (0 dialled, 1 accepted), u32 zero
//         16   tag, 16 bytes
//         32   proof, 32 bytes (proof.h)
//
// The dialling side speaks first. With a secret offer (the token, on Unix sockets) the accepting side answers with its
// own hello only after the dialler's was right: whoever connects without the token learns nothing. With a proof that
// answers (TCP) both hellos are public; the dialler answers first, then the accepting side. A dialler may send frames
// right behind a secret offer; behind a public one only when it has accepted the peer's answer.
//
// The side is in the hello because the answers are codes of both hellos: without it somebody between two processes that
// both dial him could let each prove itself to the other, and both would take the other for the one they had dialled.
// A dialler that knows the tag of whom it wants refuses everybody else, however well he proves himself: an address may
// have become somebody else's, or the connection may have been led elsewhere.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "channel/proof.h"
#include "common/ids.h"

namespace ray::channel {

constexpr uint8_t kHelloMagic[8] = {0x8f, 'r', 'a', 'y', '\r', '\n', 0x1a, '\n'};
constexpr uint16_t kHelloVersion = 2;
// What a node's gate says in a hello's place, before it closes: the process that the preamble names is gone. Said in
// the clear, whether there is TLS or not; who could put it there could as well end the connection.
constexpr uint8_t kGoneMagic[8] = {0x8f, 'r', 'a', 'y', 'g', 'o', 'n', 'e'};
extern const char kNoSuchProcess[];  // refused(), and the why of a Connection, because of that
constexpr uint8_t kRoleDriver = 0, kRoleWorker = 1;
constexpr uint8_t kRoleHandoff = 4;
constexpr uint8_t kRoleMax = kRoleHandoff;  // 0 driver, 1 worker, 2 node, 3 tool, 4 brings a descriptor (handoff.h)

// Who this process says it is. network_proof makes the proof for TCP connections; without it they are refused.
// tls: over TCP everything, the greeting too, goes through TLS (tls.h), and a peer without it is refused.
struct Identity {
  uint8_t token[kTokenBytes];
  uint8_t tag[16];
  uint8_t role;
  bool tls = false;
  ProofMaker network_proof;
};

class Handshake {
 public:
  enum class Side : uint8_t { kDialled, kAccepted };

  // wanted: the 16 bytes that must be the peer's tag; null: whoever proves himself.
  Handshake(const Identity& self, std::unique_ptr<Proof> proof, Side side, const uint8_t* wanted = nullptr);

  // Consumes up to `bytes` of the peer's stream and returns how many. Never more than the greeting: what follows are
  // frames. The same bytes in any pieces lead to the same state.
  size_t Receive(const uint8_t* data, size_t bytes);

  // What is to be sent now, oldest first; Sent() says how much of it was.
  const uint8_t* unsent() const { return out_ + sent_; }
  size_t unsent_bytes() const { return ready_ - sent_; }
  void Sent(size_t bytes) { sent_ += bytes; }

  bool verified() const { return step_ == Step::kVerified; }  // the peer proved itself
  bool half_way() const { return step_ == Step::kAnswer; }    // its hello has come, and it owes its answer
  const char* refused() const { return refused_; }            // why it did not, or null
  bool frames_may_follow() const { return frames_may_follow_; }

  const Tag& peer_tag() const { return peer_tag_; }
  uint8_t peer_role() const { return theirs_[kRoleAt]; }  // only once verified

 private:
  enum class Step : uint8_t { kHello, kAnswer, kVerified, kRefused };
  static constexpr size_t kVersionAt = 8, kRoleAt = 10, kSideAt = 11, kZeroAt = 12, kZeroBytes = 4, kTagAt = 16,
                          kProofAt = 32;

  void JudgeHello();
  void JudgeAnswer();
  void MakeAnswer();
  void Verify();
  void Refuse(const char* why);

  const std::unique_ptr<Proof> proof_;
  const Side side_;
  const std::optional<Tag> wanted_;
  Step step_ = Step::kHello;
  bool frames_may_follow_ = false;
  const char* refused_ = nullptr;
  size_t received_ = 0;  // of the 64 bytes of the hello, then of the answer's 32
  size_t ready_ = 0;     // out_[0, ready_) may go out; the rest isn't decided yet
  size_t sent_ = 0;
  Tag peer_tag_{};
  uint8_t theirs_[kHelloBytes] = {};
  uint8_t answer_[kProofBytes] = {};
  uint8_t out_[kHelloBytes + kProofBytes] = {};

  static_assert(kProofAt + kProofBytes == kHelloBytes && kZeroAt + kZeroBytes == kTagAt, "see the drawing above");
  static_assert(kHelloBytes % 8 == 0 && kProofBytes % 8 == 0, "frames behind the greeting start aligned");
};

}  // namespace ray::channel
