// TLS 1.3 over one connected TCP socket, between two processes that know one token. Used by Connection and by the
// object manager's Stream where they would call recv and send. Nothing here waits.
//
// There is no certificate: both sides prove the token as an external pre-shared key (RFC 8446, 4.2.11; derived by
// HMAC-SHA256 under the token of a label of its own), with a fresh Diffie-Hellman exchange (psk_dhe_ke), so a token
// that leaks later opens nothing that was recorded. The key's name in the ClientHello is the preamble
// (network_proof.h): for whom the connection is. The accepting side takes only its own, and the name is under the
// binder, so who changes the preamble in transit gets a connection that ends.
//
// The end of the socket is the end of the connection, with or without close_notify: frames have lengths, so what is cut
// is seen to be cut. Bytes that were changed, inserted or left out end the connection (EPROTO).
//
// One owner, as of the socket; not thread-safe. The descriptor stays the owner's, non-blocking.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "channel/network_proof.h"
#include "channel/openssl.h"
#include "channel/proof.h"

namespace ray::channel {

// The reasons that callers tell apart, since they say that the two sides differ in their setting.
extern const char kPeerWithoutTls[];  // we speak TLS, the peer doesn't
extern const char kPeerWithTls[];     // the reverse; said by Handshake

// The first byte of TLS records: a ClientHello, an alert. Neither is a hello's (handshake.h) or a preamble's.
constexpr uint8_t kTlsHandshakeRecord = 0x16;
constexpr uint8_t kTlsAlertRecord = 0x15;
// An alert in plain text, protocol_version: what either side answers to a peer whose setting differs from its own.
constexpr uint8_t kTlsOtherSetting[7] = {kTlsAlertRecord, 3, 3, 0, 2, 2, 70};
// Tells a peer that speaks TLS that this side doesn't, in its own language. Whether it arrives changes nothing here.
void TellOtherSetting(int fd);

class Tls {
 public:
  // The largest record: how many bytes may have come of which nothing can be handed out yet.
  static constexpr size_t kRecordBytesMax = 5 + (16u << 10) + 256;
  // What one send moves at most, and one receive takes off the socket: four records.
  static constexpr size_t kBatchBytes = 64u << 10;

  // Null and a Status if this machine has no OpenSSL, or it failed. preamble: what is, or was to be, sent before it.
  static std::unique_ptr<Tls> Make(int fd, bool dialled, const uint8_t token[kTokenBytes],
                                   const uint8_t preamble[kPreambleBytes], Status* status);
  ~Tls();
  Tls(const Tls&) = delete;
  Tls& operator=(const Tls&) = delete;

  // As recv() of a non-blocking socket; > 0: so many bytes, 0: the peer ended, -1 and errno: EAGAIN, EPROTO (see
  // why()), or the socket's. Goes on with the handshake first. Takes up to `fetch` bytes off the socket, with one recv,
  // and only if what came before doesn't do: with fetch <= bytes - kRecordBytesMax nothing that could be handed out
  // stays behind.
  ssize_t Recv(void* to, size_t bytes, size_t fetch = kBatchBytes);
  // Whether the next Recv may have something without the socket's being readable.
  bool hidden() const { return hidden_; }

  // As sendmsg(), but all or nothing of what it takes at a time: EAGAIN until the last of it has gone to the kernel,
  // and until then the next call must begin with the same bytes. EAGAIN also until the handshake is done.
  ssize_t Send(const iovec* parts, size_t count);
  ssize_t Send(const void* data, size_t bytes) {
    const iovec part{const_cast<void*>(data), bytes};
    return Send(&part, 1);
  }

  // Goes on with the handshake as far as is possible without the peer. False and errno as of Recv: it is over.
  bool Drive();
  bool done() const { return done_; }  // both sides have proved themselves
  // Whether something waits for the socket to be writable.
  bool wants_write() const { return out_sent_ < out_.size(); }

  const char* why() const { return why_; }  // a literal, after EPROTO

 private:
  using Ssl = OpenSsl::Ssl;

  Tls(const OpenSsl& openssl, int fd, bool dialled, const uint8_t* token, const uint8_t* preamble);
  bool Begin();
  bool Shake();
  bool FlushOut();
  ssize_t Fetch(size_t most);
  bool JudgeFirstBytes();
  bool Fail(const char* why);
  OpenSsl::Session* Key();

  static int UsePsk(Ssl* ssl, const evp_md_st*, const unsigned char** id, size_t* id_bytes, OpenSsl::Session** out);
  static int FindPsk(Ssl* ssl, const unsigned char* id, size_t id_bytes, OpenSsl::Session** out);
  static int BioWrite(bio_st* bio, const char* data, int bytes);
  static int BioRead(bio_st* bio, char* to, int bytes);
  static long BioControl(bio_st* bio, int what, long, void*);
  static OpenSsl::Context* ContextOf(const OpenSsl& openssl);
  static const bio_method_st* BioMethod(const OpenSsl& openssl);

  const OpenSsl& openssl_;
  const int fd_;
  const bool dialled_;
  uint8_t preamble_[kPreambleBytes];
  uint8_t key_[kTokenBytes];
  Ssl* ssl_ = nullptr;
  bool begun_ = false;   // the peer's first bytes have been looked at
  bool done_ = false;    // the handshake
  bool failed_ = false;  // for good
  bool ended_ = false;   // the peer said close_notify
  bool hidden_ = false;
  const char* why_ = "";

  std::unique_ptr<uint8_t[]> in_;  // came and not given to OpenSSL yet: [in_at_, in_end_); no memory while empty
  size_t in_at_ = 0, in_end_ = 0;
  std::string out_;  // records that wait for the socket, from out_sent_ on
  size_t out_sent_ = 0;
  size_t claimed_ = 0;  // bytes of the caller's that are in out_ and that it hasn't been told of
};

}  // namespace ray::channel
