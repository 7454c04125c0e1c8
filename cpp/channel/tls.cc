// OpenSSL between two buffers; tls.h is the manual.
#include "channel/tls.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "channel/handshake.h"
#include "common/sha256.h"

namespace ray::channel {

const char kPeerWithoutTls[] =
    "the peer speaks without TLS, and this side with it: the setting tls must be the same on all nodes of a cluster";
const char kPeerWithTls[] =
    "the peer speaks TLS, and this side does not: the setting tls must be the same on all nodes of a cluster";

namespace {

constexpr char kLabel[] = "ray channel, tls 1.3 key, 1";
constexpr char kNotProved[] =
    "the TLS handshake failed: the peer has another token, or the connection was meant for another process";

// OpenSSL's numbers, the same in 1.1.1 and 3.x.
constexpr int kTls13 = 0x0304, kControlMinVersion = 123, kControlMode = 33, kControlCacheMode = 44;
constexpr long kModeReleaseBuffers = 0x10, kCacheOff = 0;
constexpr int kVerifyPeer = 1;
constexpr int kErrorWantRead = 2, kErrorZeroReturn = 6;
constexpr int kBioSourceSink = 0x0400 | 0x80, kBioControlFlush = 11, kBioRetryRead = 0x01 | 0x08;
// AES first: the processor's own instructions do it. The key is bound to SHA-256, so no suite with another hash fits.
constexpr char kSuites[] = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
constexpr unsigned char kAes128GcmSha256[2] = {0x13, 0x01};

constexpr size_t kRecordPayloadBytes = 16u << 10;

}  // namespace

void TellOtherSetting(int fd) {
  (void)!send(fd, kTlsOtherSetting, sizeof kTlsOtherSetting, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// --- making one

OpenSsl::Context* Tls::ContextOf(const OpenSsl& f) {
  static OpenSsl::Context* const context = [&f]() -> OpenSsl::Context* {
    OpenSsl::Context* made = f.SSL_CTX_new(f.TLS_method());
    if (made == nullptr) return nullptr;
    if (f.SSL_CTX_ctrl(made, kControlMinVersion, kTls13, nullptr) != 1 ||
        f.SSL_CTX_set_ciphersuites(made, kSuites) != 1 || f.SSL_CTX_set_num_tickets(made, 0) != 1) {
      f.SSL_CTX_free(made);
      return nullptr;
    }
    f.SSL_CTX_ctrl(made, kControlCacheMode, kCacheOff, nullptr);
    f.SSL_CTX_ctrl(made, kControlMode, kModeReleaseBuffers, nullptr);  // an idle connection holds 34 KiB less
    f.SSL_CTX_set_psk_use_session_callback(made, &Tls::UsePsk);
    f.SSL_CTX_set_psk_find_session_callback(made, &Tls::FindPsk);
    return made;
  }();
  return context;
}

const bio_method_st* Tls::BioMethod(const OpenSsl& f) {
  static const bio_method_st* const method = [&f]() -> const bio_method_st* {
    bio_method_st* made = f.BIO_meth_new(kBioSourceSink, "ray channel");
    if (made == nullptr) return nullptr;
    f.BIO_meth_set_write(made, &Tls::BioWrite);
    f.BIO_meth_set_read(made, &Tls::BioRead);
    f.BIO_meth_set_ctrl(made, &Tls::BioControl);
    return made;
  }();
  return method;
}

Tls::Tls(const OpenSsl& openssl, int fd, bool dialled, const uint8_t* token, const uint8_t* preamble)
    : openssl_(openssl), fd_(fd), dialled_(dialled) {
  std::memcpy(preamble_, preamble, sizeof preamble_);
  const Sha256Digest key =
      HmacSha256(token, kTokenBytes, reinterpret_cast<const uint8_t*>(kLabel), sizeof(kLabel) - 1, nullptr, 0);
  static_assert(sizeof(key) == sizeof(key_));
  std::memcpy(key_, key.data(), sizeof key_);
}

std::unique_ptr<Tls> Tls::Make(int fd, bool dialled, const uint8_t token[kTokenBytes],
                               const uint8_t preamble[kPreambleBytes], Status* status) {
  const OpenSsl* openssl = OpenSsl::Load(status);
  if (openssl == nullptr) return nullptr;
  std::unique_ptr<Tls> made(new Tls(*openssl, fd, dialled, token, preamble));
  if (made->Begin()) return made;
  *status = Status(StatusCode::kSystem, "OpenSSL can't make a TLS 1.3 connection (its configuration forbids it?)");
  return nullptr;
}

bool Tls::Begin() {
  OpenSsl::Context* context = ContextOf(openssl_);
  const bio_method_st* method = BioMethod(openssl_);
  if (context == nullptr || method == nullptr) return false;
  ssl_ = openssl_.SSL_new(context);
  bio_st* bio = ssl_ != nullptr ? openssl_.BIO_new(method) : nullptr;
  if (bio == nullptr) return false;
  openssl_.BIO_set_data(bio, this);
  openssl_.BIO_set_init(bio, 1);
  openssl_.SSL_set_bio(ssl_, bio, bio);  // takes it over
  openssl_.SSL_set_ex_data(ssl_, 0, this);
  if (!dialled_) {
    openssl_.SSL_set_accept_state(ssl_);  // and without a certificate there is no handshake but by the key
    return true;
  }
  openssl_.SSL_set_connect_state(ssl_);
  // Nobody has a certificate, nor is there an authority that could vouch for one: a server that would rather show one
  // than prove the key is refused (see Drive, too).
  openssl_.SSL_set_verify(ssl_, kVerifyPeer, nullptr);
  return true;
}

Tls::~Tls() {
  if (ssl_ != nullptr) openssl_.SSL_free(ssl_);  // says nothing to the peer: it may be a forked child's copy
  explicit_bzero(key_, sizeof key_);
}

// --- the key

OpenSsl::Session* Tls::Key() {
  OpenSsl::Session* key = openssl_.SSL_SESSION_new();
  const ssl_cipher_st* cipher = openssl_.SSL_CIPHER_find(ssl_, kAes128GcmSha256);
  if (key != nullptr && cipher != nullptr && openssl_.SSL_SESSION_set1_master_key(key, key_, sizeof key_) == 1 &&
      openssl_.SSL_SESSION_set_cipher(key, cipher) == 1 &&
      openssl_.SSL_SESSION_set_protocol_version(key, kTls13) == 1) {
    return key;
  }
  if (key != nullptr) openssl_.SSL_SESSION_free(key);
  return nullptr;
}

int Tls::UsePsk(Ssl* ssl, const evp_md_st*, const unsigned char** id, size_t* id_bytes, OpenSsl::Session** out) {
  Status status;
  auto* self = static_cast<Tls*>(OpenSsl::Load(&status)->SSL_get_ex_data(ssl, 0));
  *out = self->Key();  // OpenSSL's from now on
  if (*out == nullptr) return 0;
  *id = self->preamble_;
  *id_bytes = sizeof self->preamble_;
  return 1;
}

// 1 without a key: none of that name, which ends the handshake since there is no other way to prove oneself.
int Tls::FindPsk(Ssl* ssl, const unsigned char* id, size_t id_bytes, OpenSsl::Session** out) {
  Status status;
  auto* self = static_cast<Tls*>(OpenSsl::Load(&status)->SSL_get_ex_data(ssl, 0));
  *out = nullptr;
  if (id_bytes != sizeof self->preamble_ || std::memcmp(id, self->preamble_, id_bytes) != 0) return 1;
  *out = self->Key();
  return *out != nullptr;
}

// --- what OpenSSL reads and writes

int Tls::BioWrite(bio_st* bio, const char* data, int bytes) {
  Status status;
  const OpenSsl* f = OpenSsl::Load(&status);
  static_cast<Tls*>(f->BIO_get_data(bio))->out_.append(data, static_cast<size_t>(bytes));
  return bytes;
}

int Tls::BioRead(bio_st* bio, char* to, int bytes) {
  Status status;
  const OpenSsl* f = OpenSsl::Load(&status);
  auto* self = static_cast<Tls*>(f->BIO_get_data(bio));
  f->BIO_clear_flags(bio, kBioRetryRead);
  const size_t take = std::min(static_cast<size_t>(bytes), self->in_end_ - self->in_at_);
  if (take == 0) {
    f->BIO_set_flags(bio, kBioRetryRead);
    return -1;
  }
  std::memcpy(to, self->in_.get() + self->in_at_, take);
  self->in_at_ += take;
  return static_cast<int>(take);
}

long Tls::BioControl(bio_st*, int what, long, void*) { return what == kBioControlFlush ? 1 : 0; }

// --- the socket

// Errno as of send(). True: nothing waits any more.
bool Tls::FlushOut() {
  while (out_sent_ < out_.size()) {
    const ssize_t n = send(fd_, out_.data() + out_sent_, out_.size() - out_sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    out_sent_ += static_cast<size_t>(n);
  }
  out_.clear();
  out_sent_ = 0;
  return true;
}

ssize_t Tls::Fetch(size_t most) {
  if (in_ == nullptr) in_ = std::make_unique_for_overwrite<uint8_t[]>(kBatchBytes);
  ssize_t n;
  do {
    n = recv(fd_, in_.get(), std::min(most, kBatchBytes), MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  in_at_ = 0;
  in_end_ = n > 0 ? static_cast<size_t>(n) : 0;
  return n;
}

// --- both directions

bool Tls::Fail(const char* why) {
  failed_ = true;
  hidden_ = false;
  why_ = why;
  const bool told = FlushOut();  // the alert, if OpenSSL wrote one
  (void)told;                    // the socket's end says as much
  errno = EPROTO;
  return false;
}

// A peer without TLS is told apart, and told, by its first byte.
bool Tls::JudgeFirstBytes() {
  if (begun_ || in_at_ == in_end_) return true;
  begun_ = true;
  const uint8_t* first = in_.get() + in_at_;
  const size_t bytes = in_end_ - in_at_;
  if (dialled_) {
    if (bytes >= sizeof kGoneMagic && std::memcmp(first, kGoneMagic, sizeof kGoneMagic) == 0) {
      return Fail(kNoSuchProcess);
    }
    if (*first != kTlsHandshakeRecord && *first != kTlsAlertRecord) return Fail(kPeerWithoutTls);
    if (bytes >= sizeof kTlsOtherSetting && std::memcmp(first, kTlsOtherSetting, sizeof kTlsOtherSetting) == 0) {
      return Fail(kPeerWithoutTls);
    }
  } else if (*first != kTlsHandshakeRecord) {
    out_.assign(reinterpret_cast<const char*>(kTlsOtherSetting), sizeof kTlsOtherSetting);
    return Fail(kPeerWithoutTls);
  }
  return true;
}

bool Tls::Drive() {
  if (failed_) {
    errno = EPROTO;
    return false;
  }
  if (!done_ && !Shake()) return false;
  return FlushOut() || errno == EAGAIN || errno == EWOULDBLOCK;
}

// False and EPROTO: it failed.
bool Tls::Shake() {
  if (!JudgeFirstBytes()) return false;
  openssl_.ERR_clear_error();
  const int did = openssl_.SSL_do_handshake(ssl_);
  if (did != 1 && openssl_.SSL_get_error(ssl_, did) != kErrorWantRead) return Fail(kNotProved);
  if (did == 1) {
    if (openssl_.SSL_session_reused(ssl_) != 1) return Fail("the TLS handshake went without the token");
    done_ = true;
  }
  return true;
}

ssize_t Tls::Recv(void* to, size_t bytes, size_t fetch) {
  auto* at = static_cast<uint8_t*>(to);
  size_t got = 0;
  bool fetched = false;
  // Between calls OpenSSL holds nothing that it could hand out unless the last one filled its buffer, and it takes no
  // more from `in_` than the record it hands out: so it is asked neither before anything came nor once more at the end.
  // Each such question costs 0.25 us, of the 2 that a small message takes.
  bool held = std::exchange(hidden_, false);
  for (;;) {
    if (!done_ && !Drive()) return -1;
    if (failed_) {
      errno = EPROTO;
      return -1;
    }
    while (done_ && got < bytes && !ended_ && (held || in_at_ < in_end_)) {
      held = false;
      openssl_.ERR_clear_error();
      const int n = openssl_.SSL_read(ssl_, at + got, static_cast<int>(std::min<size_t>(bytes - got, 1u << 30)));
      if (n > 0) {
        got += static_cast<size_t>(n);
        continue;
      }
      const int error = openssl_.SSL_get_error(ssl_, n);
      if (error == kErrorZeroReturn) {
        ended_ = true;
      } else if (error != kErrorWantRead) {
        Fail("what came was not what the peer sent: it was changed on the way, or the peer is broken");
        return got > 0 ? static_cast<ssize_t>(got) : -1;
      } else {
        break;
      }
    }
    if (got == bytes) hidden_ = true;  // perhaps: OpenSSL may hold more of the last record
    if (got > 0 || ended_) {
      if (in_at_ == in_end_) in_.reset();
      if (wants_write()) FlushOut();  // an answer to a change of keys; what doesn't go now goes with the next Send
      return static_cast<ssize_t>(got);
    }
    if (fetched || fetch == 0) {
      in_.reset();
      errno = EAGAIN;
      return -1;
    }
    const ssize_t n = Fetch(fetch);
    if (n <= 0) {
      const int error = errno;
      in_.reset();
      errno = error;
      return n;
    }
    fetched = true;
  }
}

ssize_t Tls::Send(const iovec* parts, size_t count) {
  if (!Drive()) return -1;
  if (!FlushOut()) return -1;
  if (!done_) {
    errno = EAGAIN;
    return -1;
  }
  if (claimed_ == 0) {
    for (size_t i = 0; i < count; ++i) {
      const auto* data = static_cast<const uint8_t*>(parts[i].iov_base);
      for (size_t at = 0; at < parts[i].iov_len && out_.size() < kBatchBytes;) {
        const size_t piece = std::min(parts[i].iov_len - at, kRecordPayloadBytes);
        const int n = openssl_.SSL_write(ssl_, data + at, static_cast<int>(piece));
        if (n <= 0) {
          Fail("OpenSSL could not encrypt what was to be sent");
          return -1;
        }
        at += static_cast<size_t>(n);
        claimed_ += static_cast<size_t>(n);
      }
      if (out_.size() >= kBatchBytes) break;
    }
    if (!FlushOut()) return -1;
    if (out_.capacity() > kBatchBytes * 2) out_.shrink_to_fit();
  }
  const size_t taken = claimed_;
  claimed_ = 0;
  return static_cast<ssize_t>(taken);
}

}  // namespace ray::channel
