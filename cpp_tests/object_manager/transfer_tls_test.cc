// Transfers with somebody between the stores who cuts, changes or misleads connections, through TLS and without.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <functional>

#include "object_manager/transfer_fixture.h"
#include "testing.h"

namespace ray::objects {
namespace {

constexpr uint64_t kPool = 64 << 20;
constexpr uint64_t kBytes = 24 << 20;

Node Store(bool tls, char token = 'T') { return Node(kPool, token, tls); }

// Passes bytes on to a gate, and does to those of the answering side what a test wants.
class Middle {
 public:
  // meddle: is given what comes, and how much came before on that connection; false: the connection is cut.
  using Meddle = std::function<bool(std::string* data, uint64_t before)>;

  explicit Middle(const Address& gate, Meddle meddle = {}) : gate_(gate), meddle_(std::move(meddle)) {
    sockaddr_in a = Loopback(0);
    socklen_t length = sizeof(a);
    listen_fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listen_fd_, reinterpret_cast<sockaddr*>(&a), length) != 0 || listen(listen_fd_, 8) != 0) std::abort();
    getsockname(listen_fd_, reinterpret_cast<sockaddr*>(&a), &length);
    address_ = {"127.0.0.1", ntohs(a.sin_port)};
    thread_ = std::thread([this] { Run(); });
  }
  ~Middle() {
    stop_ = true;
    thread_.join();
    close(listen_fd_);
  }
  const Address& address() const { return address_; }

 private:
  static sockaddr_in Loopback(uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(port);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
  }
  // One connection after the other.
  void Run() {
    while (!stop_) {
      pollfd p{listen_fd_, POLLIN, 0};
      if (poll(&p, 1, 50) <= 0) continue;
      const int near = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
      const int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const sockaddr_in to = Loopback(gate_.port);
      if (connect(far, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0) Carry(near, far);
      close(near);
      close(far);
    }
  }
  void Carry(int near, int far) {
    uint64_t before = 0;
    std::string piece;
    while (!stop_) {
      pollfd p[2] = {{near, POLLIN, 0}, {far, POLLIN, 0}};
      poll(p, 2, 50);
      for (int i = 0; i < 2; ++i) {
        if (p[i].revents == 0) continue;
        piece.resize(256 << 10);
        const ssize_t n = recv(p[i].fd, piece.data(), piece.size(), 0);
        if (n <= 0) return;
        piece.resize(static_cast<size_t>(n));
        if (i == 1) {
          if (meddle_ && !meddle_(&piece, before)) return;
          before += static_cast<uint64_t>(n);
        }
        for (size_t at = 0; at < piece.size();) {
          const ssize_t sent = send(p[1 - i].fd, piece.data() + at, piece.size() - at, MSG_NOSIGNAL);
          if (sent <= 0) return;
          at += static_cast<size_t>(sent);
        }
      }
    }
  }

  const Address gate_;
  const Meddle meddle_;
  Address address_;
  int listen_fd_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// The store behind the middle must say that it is the one that is reached there.
void SayThatItIs(Node* node, const Address& address) {
  std::string where;
  AppendAddress(&where, address);
  static_cast<void>(node->line->Ask(Line::kSelf, where));
  node->Count();  // it has heard so
}

}  // namespace

TEST(TransferTls, BringsObjectsOfAllSizesBothWays) {
  Node a = Store(true), b = Store(true);
  const uint64_t sizes[] = {1, 16'384, 16'385, 100'001, 1 << 20, 20'000'001};
  for (const uint64_t bytes : sizes) {
    plasma::Put(a.client.get(), bytes, bytes);
    plasma::Put(b.client.get(), bytes + 50'000'000, bytes);
  }
  for (const uint64_t bytes : sizes) {
    b.Pull(bytes, {a.gate->address()});
    a.Pull(bytes + 50'000'000, {b.gate->address()});
  }
  for (size_t i = 0; i < std::size(sizes); ++i) EXPECT_TRUE(Here(a.Next()) && Here(b.Next()));
  for (const uint64_t bytes : sizes) EXPECT_TRUE(b.Has(bytes, bytes) && a.Has(bytes + 50'000'000, bytes));
  EXPECT_EQ(plasma::Audit(a.client.get()), "");
  EXPECT_EQ(plasma::Audit(b.client.get()), "");
}

TEST(TransferTls, WhoHasItOtherwiseIsRefusedAndSaysWhy) {
  for (const bool tls : {true, false}) {
    Node a = Store(tls), b = Store(!tls);
    plasma::Put(a.client.get(), 1, 1000);
    b.Pull(1, {a.gate->address()});
    const std::string why = Text(b.Next());
    EXPECT_TRUE(why.find(tls ? channel::kPeerWithTls : channel::kPeerWithoutTls) != std::string::npos);
    EXPECT_EQ(a.Count().served, 0u);
  }
}

TEST(TransferTls, AnotherTokenGetsNothing) {
  Node a = Store(true), b = Store(true, 'X');
  plasma::Put(a.client.get(), 1, 1000);
  b.Pull(1, {a.gate->address()});
  EXPECT_TRUE(Text(b.Next()).find("another token") != std::string::npos);
  EXPECT_EQ(a.Count().served, 0u);
}

// The address is another store's now, or somebody has led the connection there: it knows the token all the same.
TEST(TransferTls, AStoreThatIsNotTheOneThatWasDialledIsRefused) {
  for (const bool tls : {true, false}) {
    Node a = Store(tls), b = Store(tls);
    plasma::Put(a.client.get(), 1, 1000);
    Middle middle(a.gate->address());
    b.Pull(1, {middle.address()});
    EXPECT_TRUE(Text(b.Next()).find("than the one that was dialled") != std::string::npos);
    EXPECT_EQ(a.Count().served, 0u);
    SayThatItIs(&a, middle.address());
    b.Pull(1, {middle.address()});
    EXPECT_TRUE(Here(b.Next()));
  }
}

// The first source is cut off, or its bytes are changed, wherever in the stream that is: the rest comes from another,
// and what was brought is right to the last byte.
TEST(TransferTls, ACutOrChangedStreamIsMadeGoodFromAnotherCopy) {
  for (const bool cut : {true, false}) {
    for (const uint64_t at : {10, 300, 420, 700, 16'500, 1'000'000, 20'000'000}) {
      Node a = Store(true), b = Store(true), c = Store(true);
      plasma::Put(a.client.get(), 1, kBytes);
      plasma::Put(b.client.get(), 1, kBytes);
      std::atomic<int> struck = 0;
      Middle middle(a.gate->address(), [&](std::string* data, uint64_t before) {
        if (struck != 0 || before + data->size() <= at) return true;
        struck = 1;
        (*data)[at - before] ^= 4;
        return !cut;
      });
      SayThatItIs(&a, middle.address());
      c.Pull(1, {middle.address(), b.gate->address()});
      EXPECT_TRUE(Here(c.Next()));
      EXPECT_EQ(struck, 1);
      EXPECT_TRUE(c.Has(1, kBytes));
      EXPECT_EQ(b.Count().served, 1u);
      EXPECT_EQ(plasma::Audit(c.client.get()), "");
    }
  }
}

}  // namespace ray::objects

RAY_TEST_MAIN()
