// A store with its object manager, the gate of its node, and what a test asks them.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "channel/network_proof.h"
#include "object_manager/line.h"
#include "object_manager/transfer_loop.h"
#include "plasma/fixture.h"

namespace ray::objects {

using plasma::Key;

// Accepts, reads the preamble, passes the connection on: what ray/_node/gate.py does.
class Gate {
 public:
  explicit Gate(const std::string& line_path) {
    static_cast<void>(TransferLine::Connect(line_path, &line_));
    listen_fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(a);
    if (bind(listen_fd_, reinterpret_cast<sockaddr*>(&a), length) != 0 || listen(listen_fd_, 64) != 0) std::abort();
    getsockname(listen_fd_, reinterpret_cast<sockaddr*>(&a), &length);
    address_ = {"127.0.0.1", ntohs(a.sin_port)};
    stop_fd_ = eventfd(0, EFD_CLOEXEC);
    std::string where;
    AppendAddress(&where, address_);
    static_cast<void>(line_->Ask(Line::kSelf, where));
    thread_ = std::thread([this] { Run(); });
  }
  ~Gate() {
    const uint64_t one = 1;
    if (write(stop_fd_, &one, sizeof(one)) < 0) std::abort();
    thread_.join();
    close(listen_fd_);
    close(stop_fd_);
  }
  const Address& address() const { return address_; }

 private:
  void Run() {
    for (;;) {
      pollfd p[2] = {{listen_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
      poll(p, 2, -1);
      if (p[1].revents != 0) return;
      const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
      char preamble[32];
      if (recv(fd, preamble, sizeof(preamble), MSG_WAITALL) == sizeof(preamble)) {
        static_cast<void>(line_->Adopt(fd));
      }
      close(fd);
    }
  }
  std::unique_ptr<TransferLine> line_;
  Address address_;
  int listen_fd_, stop_fd_;
  std::thread thread_;
};

struct Node {
  explicit Node(uint64_t pool_bytes = 64 << 20, char token = 'T', bool tls = false) : store(pool_bytes) {
    client = store.Connect();
    TransferOptions options;
    options.socket_path = folder.path() + "/o.sock";
    options.plasma_socket = store.socket();
    options.identity.role = 2;
    options.identity.tls = tls;
    std::memset(options.identity.token, token, sizeof(options.identity.token));
    options.identity.network_proof = [token] {
      uint8_t bytes[channel::kTokenBytes];
      std::memset(bytes, token, sizeof(bytes));
      return std::make_unique<channel::NetworkProof>(bytes);
    };
    if (!TransferLoop::Start(options, &loop).ok()) std::abort();
    gate = std::make_unique<Gate>(options.socket_path);
    address = gate->address();
    socket = options.socket_path;
    static_cast<void>(TransferLine::Connect(options.socket_path, &line));
  }
  void Die() {
    gate.reset();
    client.reset();
    store.Stop();
    loop.reset();
  }
  ~Node() { Die(); }

  uint64_t Pull(uint64_t n, std::vector<Address> sources, Urgency urgency = Urgency::kGet) {
    uint64_t request = 0;
    static_cast<void>(line->Pull({urgency, Key(n), std::move(sources)}, &request));
    return request;
  }
  // The next answer; type kPull if none came within `seconds`.
  LineEvent Next(double seconds = 20) {
    LineEvent event{Line::kPull, 0, ""};
    const int64_t end = NowNs() + static_cast<int64_t>(seconds * 1e9);
    while (!line->Next(&event)) {
      pollfd p{line->fd(), POLLIN, 0};
      const int64_t left = (end - NowNs()) / kNsPerMs;
      if (left <= 0 || poll(&p, 1, static_cast<int>(left)) <= 0 || !line->Receive().ok()) break;
    }
    return event;
  }
  bool Claim(uint64_t n, const Node& home) { return ClaimAt(n, home.address); }
  bool ClaimAt(uint64_t n, const Address& home) {
    static_cast<void>(line->Ask(Line::kClaim, FreePayload({Key(n), home})));
    const LineEvent e = Next();
    return e.type == Line::kClaimed && e.payload == std::string(1, '\1');
  }
  Stats Count() {
    static_cast<void>(line->Ask(Line::kStats, ""));
    const LineEvent e = Next();
    Stats stats{};
    if (e.type == Line::kStatsAre) std::memcpy(&stats, e.payload.data(), sizeof(stats));
    return stats;
  }
  bool Has(uint64_t n, uint64_t bytes) {
    plasma::Place place;
    if (plasma::Get(client.get(), n, &place) != plasma::Step::kDone) return false;
    const bool right = place.data_bytes == bytes && plasma::Right(place.address, bytes, n);
    client->Unpin(place.slot);
    return right;
  }

  plasma::TemporaryFolder folder;
  Address address;  // of the gate
  std::string socket;
  plasma::StoreThread store;
  std::shared_ptr<plasma::Client> client;
  std::unique_ptr<TransferLoop> loop;
  std::unique_ptr<Gate> gate;
  std::unique_ptr<TransferLine> line;
};

inline bool Here(const LineEvent& e) {
  return e.type == Line::kPulled && e.payload[0] == static_cast<char>(Outcome::kHere);
}
inline std::string Text(const LineEvent& e) { return e.payload.size() > 1 ? e.payload.substr(1) : ""; }

template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    usleep(5000);
  }
  return false;
}

}  // namespace ray::objects
