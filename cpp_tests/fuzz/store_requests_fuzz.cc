// The store's socket from both ends: what a client asks of a whole server behind a right hello, and what a client makes
// of the answers of a store that sends anything.
#include <sys/socket.h>
#include <sys/un.h>

#include "fuzz/input.h"
#include "plasma/fixture.h"
#include "plasma/store_connection.h"

using namespace ray::plasma;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

// One for all inputs: what a client leaves is undone when it goes, and Audit says so.
StoreThread& TheStore() {
  static StoreThread store(1 << 20);
  return store;
}

std::string Frames(Input* in, uint16_t first, uint16_t types) {
  std::string out;
  while (!in->empty()) {
    const uint16_t type = static_cast<uint16_t>(first + in->Byte() % types);
    const uint64_t request = in->Byte() % 8;
    const std::string body = in->Bytes(in->Byte());
    AppendFrame(&out, static_cast<Message>(type), request, body.data(), body.size());
  }
  return out;
}

void ToServer(Input* in, bool structured) {
  std::string bytes;
  const Hello hello{kHelloMagic, kProtocolVersion, 0};
  AppendFrame(&bytes, Message::kHello, 0, &hello, sizeof(hello));
  bytes += structured ? Frames(in, 1, 15) : in->Rest();
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  TheStore().socket().copy(address.sun_path, sizeof(address.sun_path) - 1);
  Require(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0, "the store accepts");
  send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  shutdown(fd, SHUT_WR);
  char buffer[4096];
  while (recv(fd, buffer, sizeof(buffer), 0) > 0) {
  }
  close(fd);
  static auto witness = TheStore().Connect();
  Require(witness != nullptr, "and goes on");
  static unsigned count;
  if (++count % 64 == 0) {
    const std::string wrong = Audit(witness.get());
    Require(wrong.empty(), wrong.c_str());
  }
}

void ToClient(Input* in, bool structured) {
  int both[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) == 0, "socketpair");
  {
    StoreConnection connection(both[1]);
    uint64_t requests[3];
    for (uint64_t& request : requests) {
      Require(connection.Start(Message::kSync, nullptr, 0, &request).ok(), "a request is sent");
    }
    connection.Cancel(requests[1]);
    const std::string bytes = structured ? Frames(in, 64, 9) : in->Rest();
    send(both[0], bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    shutdown(both[0], SHUT_WR);
    while (connection.Receive().ok()) {
    }
    Answer answer;
    for (uint64_t request : requests) connection.Take(request, &answer);
    const Patience none{0, nullptr};
    while (connection.NextUnasked(none, &answer).ok()) {
    }
  }
  close(both[0]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes > 16384) return 0;
  Input in(data, bytes);
  const uint8_t kind = in.Byte();
  if (kind & 1) {
    ToClient(&in, kind & 2);
  } else {
    ToServer(&in, kind & 2);
  }
  return 0;
}
