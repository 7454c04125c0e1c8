// Bytes of a peer that dials or was dialled: greeting, NetworkProof, frames. First byte of the input: which of them,
// and whether what comes is the input alone or stands behind a right greeting.
#include <sys/socket.h>

#include "channel/connection.h"
#include "channel/fixture.h"
#include "fuzz/input.h"

using namespace ray::channel;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

// A machine alone, without a socket: whoever does not know the token is not let in, however the bytes are cut.
void Network(Input* in, bool dialled) {
  const Identity self = MakeIdentity('A', 2), other = MakeIdentity('D', 2, 'x');
  const auto ours = dialled ? Handshake::Side::kDialled : Handshake::Side::kAccepted;
  Handshake handshake(self, std::make_unique<NetworkProof>(self.token), ours);
  const auto theirs = dialled ? Handshake::Side::kAccepted : Handshake::Side::kDialled;
  Handshake peer(other, std::make_unique<NetworkProof>(other.token), theirs);
  std::string bytes = in->Rest();
  // The input is laid over a stranger's hello, so that magic and version need not be found.
  std::string hello(reinterpret_cast<const char*>(peer.unsent()), peer.unsent_bytes());
  for (size_t i = 0; i < std::min(bytes.size(), hello.size()); ++i) hello[i] = static_cast<char>(hello[i] ^ bytes[i]);
  if (bytes.size() > hello.size()) hello += bytes.substr(hello.size());
  size_t at = 0;
  while (at < hello.size()) {
    const size_t piece = std::min<size_t>(hello.size() - at, 1 + static_cast<uint8_t>(hello[at]) % 40);
    const size_t used = handshake.Receive(reinterpret_cast<const uint8_t*>(hello.data()) + at, piece);
    Require(used <= piece, "no more is consumed than there is");
    at += used;
    if (used < piece) break;
  }
  Require(!handshake.verified(), "nobody proves a token that he does not know");
  Require(handshake.unsent_bytes() <= kHelloBytes + kProofBytes, "no more is sent than a greeting");
}

void Local(Input* in, bool greeted, uint8_t cut) {
  int both[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) == 0, "socketpair");
  auto connection = Connection::Adopt(both[1], MakeIdentity('A', 1));
  std::string stream = in->Rest();
  const size_t given = stream.size();
  if (greeted) stream = HelloBytes(MakeIdentity('D', 0)) + stream;
  Frame frame;
  size_t taken = 0;
  const auto take = [&] {
    const int filled = connection->Fill();
    while (connection->Next(&frame)) {
      Require(connection->greeted(), "no frame before the greeting");
      Require(reinterpret_cast<uintptr_t>(frame.data) % kFrameAlign == 0, "payloads are aligned");
      taken += frame.size;
      const std::string copy(reinterpret_cast<const char*>(frame.data), frame.size);  // every byte of it may be read
      Require(copy.size() == frame.size, "all of it");
      // An answer, so that the sending side has something to do too.
      if (uint8_t* p = connection->Reserve(frame.type, frame.flags, frame.size & 1023)) {
        std::memset(p, 7, frame.size & 1023);
        connection->Trim(frame.size & 255 & (frame.size & 1023));
      }
    }
    connection->Flush();
    return filled;
  };
  for (size_t at = 0; at < stream.size() && connection->alive();) {
    const ssize_t n = send(both[0], stream.data() + at, std::min<size_t>(stream.size() - at, 1 + size_t{cut} * 7),
                           MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) at += static_cast<size_t>(n);
    take();
    char answers[4096];
    while (recv(both[0], answers, sizeof(answers), MSG_DONTWAIT) > 0) {
    }
  }
  shutdown(both[0], SHUT_WR);
  while (take() >= 0) {
  }
  Require(taken <= given, "no more payload comes out than went in");
  Require(!connection->open() && connection->buffer_bytes() <= 4 * (stream.size() + 2 * kBufferBytes),
          "a connection that ended is closed, and held no more than what came");
  close(both[0]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input in(data, bytes);
  const uint8_t kind = in.Byte();
  if (kind % 4 == 0) {
    Network(&in, kind & 4);
  } else {
    Local(&in, kind % 4 != 1, in.Byte());
  }
  return 0;
}
