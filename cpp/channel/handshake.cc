// The hello's state machine; handshake.h has the drawing and who speaks when.
#include "channel/handshake.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "channel/tls.h"

namespace ray::channel {

const char kNoSuchProcess[] = "the peer's node says that the process is gone";

namespace {
constexpr char kNotWanted[] =
    "the peer is another process than the one that was dialled (its address is somebody else's now, or the connection "
    "was led elsewhere)";
}  // namespace

Handshake::Handshake(const Identity& self, std::unique_ptr<Proof> proof, Side side, const uint8_t* wanted)
    : proof_(std::move(proof)),
      side_(side),
      wanted_(wanted != nullptr ? std::optional(Tag::FromBytes(wanted)) : std::nullopt) {
  std::memcpy(out_, kHelloMagic, sizeof kHelloMagic);
  std::memcpy(out_ + kVersionAt, &kHelloVersion, sizeof kHelloVersion);
  out_[kRoleAt] = self.role;
  out_[kSideAt] = side == Side::kAccepted;
  std::memcpy(out_ + kTagAt, self.tag, sizeof self.tag);
  proof_->Offer(out_ + kProofAt);
  if (side_ == Side::kDialled) {
    ready_ = kHelloBytes;
    frames_may_follow_ = !proof_->answers();
  }
}

size_t Handshake::Receive(const uint8_t* data, size_t bytes) {
  size_t used = 0;
  if (step_ == Step::kHello) {
    used = std::min(bytes, kHelloBytes - received_);
    if (used > 0) std::memcpy(theirs_ + received_, data, used);
    received_ += used;
    // A stranger is shown the door at its first wrong byte: it may never send 64.
    const size_t said = std::min(received_, sizeof kHelloMagic);
    if (std::memcmp(theirs_, kHelloMagic, said) != 0) {
      if (side_ == Side::kDialled && std::memcmp(theirs_, kGoneMagic, said) == 0) {
        if (said == sizeof kGoneMagic) Refuse(kNoSuchProcess);
        return used;
      }
      if (theirs_[0] == kTlsHandshakeRecord || theirs_[0] == kTlsAlertRecord) {
        Refuse(kPeerWithTls);
        return used;
      }
      Refuse("the peer's first bytes are not this channel's hello (another program, or another protocol?)");
      return used;
    }
    if (received_ < kHelloBytes) return used;
    JudgeHello();
  }
  if (step_ == Step::kAnswer) {
    const size_t more = std::min(bytes - used, kProofBytes - received_);
    if (more > 0) std::memcpy(answer_ + received_, data + used, more);
    received_ += more;
    used += more;
    if (received_ == kProofBytes) JudgeAnswer();
  }
  return used;
}

void Handshake::JudgeHello() {
  uint16_t version;
  std::memcpy(&version, theirs_ + kVersionAt, sizeof version);
  if (version != kHelloVersion) return Refuse("the peer speaks another version of the channel (two installations?)");
  if (theirs_[kRoleAt] > kRoleMax) return Refuse("the peer's hello names a role that doesn't exist");
  if (theirs_[kSideAt] != (side_ == Side::kDialled)) {
    return Refuse(
        "the peer's hello is that of the same side as ours (it was sent back, or carried here from elsewhere)");
  }
  for (size_t i = 0; i < kZeroBytes; ++i) {
    if (theirs_[kZeroAt + i] != 0) return Refuse("the peer's hello has bits set that must be zero");
  }
  // What it says here is proved with its answer.
  if (wanted_ && std::memcmp(wanted_->bytes, theirs_ + kTagAt, sizeof wanted_->bytes) != 0) return Refuse(kNotWanted);
  if (!proof_->AcceptOffer(theirs_ + kProofAt)) return Refuse("the peer's hello doesn't carry this session's token");
  if (!proof_->answers()) return Verify();
  step_ = Step::kAnswer;
  received_ = 0;
  ready_ = kHelloBytes;
  if (side_ == Side::kDialled) MakeAnswer();
}

void Handshake::JudgeAnswer() {
  if (!proof_->AcceptAnswer(out_, theirs_, answer_)) return Refuse("the peer could not prove that it knows the token");
  // Only now: an answer given to a peer that hasn't proved itself could be carried on to a third party.
  if (side_ == Side::kAccepted) MakeAnswer();
  Verify();
}

void Handshake::MakeAnswer() {
  proof_->Answer(out_, theirs_, out_ + kHelloBytes);
  ready_ = kHelloBytes + kProofBytes;
}

void Handshake::Verify() {
  step_ = Step::kVerified;
  std::memcpy(peer_tag_.bytes, theirs_ + kTagAt, sizeof peer_tag_.bytes);
  ready_ = std::max(ready_, kHelloBytes);
  frames_may_follow_ = true;
}

void Handshake::Refuse(const char* why) {
  step_ = Step::kRefused;
  refused_ = why;
  ready_ = sent_;  // not a byte more
  frames_may_follow_ = false;
}

}  // namespace ray::channel
