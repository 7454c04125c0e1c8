// Bytes from outside: the store must survive all of them, drop who sends them, and go on serving the others.
#include <sys/socket.h>
#include <sys/un.h>

#include <random>

#include "fixture.h"
#include "testing.h"

namespace ray::plasma {
namespace {

int Dial(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, kUnixPathBytesMax);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return -1;
  return fd;
}

// A store that drops us closes the socket while we write: what counts is that it does not mind.
void SendAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (n <= 0) return;
    at += static_cast<size_t>(n);
  }
}

bool SeesTheEnd(int fd) {
  char buffer[4096];
  ssize_t n;
  while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0) {
  }
  return n == 0 || errno == ECONNRESET;
}

std::string HelloFrame() {
  const Hello hello{kHelloMagic, kProtocolVersion, 0};
  std::string frame;
  AppendFrame(&frame, Message::kHello, 0, &hello, sizeof(hello));
  return frame;
}

std::string RandomBytes(std::mt19937_64* random, size_t n) {
  std::string bytes(n, 0);
  for (char& c : bytes) c = static_cast<char>((*random)());
  return bytes;
}

TEST(Fuzz, DropsWhoeverBeginsWithGarbage) {
  StoreThread store(4 << 20);
  auto witness = store.Connect();
  EXPECT_TRUE(Put(witness.get(), 1, 1000) == Step::kDone);
  std::mt19937_64 random(1);
  for (int round = 0; round < 300; ++round) {
    const int fd = Dial(store.socket());
    ASSERT_GE(fd, 0);
    std::string bytes = RandomBytes(&random, 16 + random() % 200);
    // Half of them with a header that passes, so that the body is looked at.
    if (round % 2 == 0) {
      bytes.clear();
      const std::string body = RandomBytes(&random, random() % 100);
      AppendFrame(&bytes, static_cast<Message>(random() % 80), random(), body.data(), body.size());
    }
    SendAll(fd, bytes);
    shutdown(fd, SHUT_WR);
    EXPECT_TRUE(SeesTheEnd(fd));
    close(fd);
  }
  Place place;
  EXPECT_TRUE(Get(witness.get(), 1, &place) == Step::kDone);
  EXPECT_TRUE(Right(place.address, 1000, 1));
  witness->Unpin(place.slot);
  EXPECT_EQ(Audit(witness.get()), "");
}

TEST(Fuzz, DropsAClientThatSendsGarbageAfterAGoodHello) {
  StoreThread store(4 << 20);
  auto witness = store.Connect();
  std::mt19937_64 random(2);
  for (int round = 0; round < 400; ++round) {
    const int fd = Dial(store.socket());
    ASSERT_GE(fd, 0);
    std::string bytes = HelloFrame();
    for (int frames = 0; frames < 5; ++frames) {
      std::string body = RandomBytes(&random, random() % 120);
      // Small numbers reach further than random ones.
      for (char& c : body) {
        if (random() % 3 != 0) c = static_cast<char>(random() % 3);
      }
      AppendFrame(&bytes, static_cast<Message>(random() % 14), random() % 4, body.data(), body.size());
    }
    if (round % 5 == 0) bytes += RandomBytes(&random, 100);
    SendAll(fd, bytes);
    shutdown(fd, SHUT_WR);
    EXPECT_TRUE(SeesTheEnd(fd));
    close(fd);
  }
  EXPECT_TRUE(Put(witness.get(), 1, 1000) == Step::kDone);
  EXPECT_EQ(Audit(witness.get()), "");
  EXPECT_EQ(Stats(witness.get()).unsealed_objects, 0u);
}

TEST(Fuzz, DropsAClientThatAnnouncesAFrameLongerThanAllowed) {
  StoreThread store(4 << 20);
  const int fd = Dial(store.socket());
  const FrameHeader header{kRequestBytesMax + 1, static_cast<uint16_t>(Message::kSync), 0, 1};
  SendAll(fd, HelloFrame() + std::string(reinterpret_cast<const char*>(&header), sizeof(header)));
  EXPECT_TRUE(SeesTheEnd(fd));
  close(fd);
}

TEST(Fuzz, ReadsFramesThatComeByteByByte) {
  StoreThread store(4 << 20);
  const int fd = Dial(store.socket());
  for (char c : HelloFrame()) SendAll(fd, std::string(1, c));
  char answer[sizeof(FrameHeader) + sizeof(Welcome)];
  EXPECT_EQ(recv(fd, answer, sizeof(answer), MSG_WAITALL), static_cast<ssize_t>(sizeof(answer)));
  close(fd);
}

TEST(Fuzz, DropsAClientThatReadsNoAnswers) {
  StoreThread store(4 << 20);
  auto witness = store.Connect();
  for (uint64_t n = 0; n < 900; ++n) ASSERT_TRUE(Put(witness.get(), n, 1) == Step::kDone);
  const int fd = Dial(store.socket());
  std::string requests = HelloFrame();
  const ListRequest list{0, 0};
  for (int i = 0; i < 1000; ++i) AppendFrame(&requests, Message::kList, i + 1, &list, sizeof(list));
  SendAll(fd, requests);
  while (Stats(witness.get()).connections_refused == 0) std::this_thread::yield();
  close(fd);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
