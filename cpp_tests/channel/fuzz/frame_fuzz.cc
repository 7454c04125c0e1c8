// Random streams behind a right hello, in random pieces: the connection hands out exactly the frames that a plain
// reading of the format finds, ends exactly where that reading meets nonsense, and reads nothing outside its buffer
// (AddressSanitizer).
#include "channel/connection.h"
#include "channel/counters.h"
#include "channel/fixture.h"
#include "channel/fuzz/fuzz.h"

namespace ray::channel {
namespace {

// The format as wire_format.md words it, read from a string without any of the connection's code.
struct Reading {
  std::vector<OwnFrame> frames;
  bool malformed = false;

  explicit Reading(const std::string& bytes) {
    size_t at = 0;
    while (bytes.size() - at >= 8) {
      const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[at + i]); };
      const uint64_t size = byte(0) | byte(1) << 8 | byte(2) << 16 | uint64_t{byte(3)} << 24;
      if (byte(6) != 0 || byte(7) != 0 || size > 512u * 1024 * 1024) {
        malformed = true;
        return;
      }
      const uint64_t padded = (size + 7) / 8 * 8;
      if (bytes.size() - at < 8 + padded) return;
      frames.push_back({byte(4), byte(5), bytes.substr(at + 8, size)});
      at += 8 + padded;
    }
  }
};

std::string RandomStream(Random& random) {
  std::string bytes;
  for (size_t n = Below(random, 20); n > 0; --n) {
    const size_t kind = Below(random, 50);
    const size_t size = kind == 0 ? Below(random, 300'000) : kind < 5 ? Below(random, 5'000) : Below(random, 64);
    bytes += FrameString(static_cast<uint8_t>(random()), static_cast<uint8_t>(random()),
                         std::string(size, static_cast<char>(random())));
  }
  return bytes;
}

}  // namespace

TEST(FrameFuzz, HandsOutWhatAPlainReadingFindsAndEndsWhereItEnds) {
  Fuzz("frames", [&](Random& random) {
    std::string bytes = RandomStream(random);
    Mutate(random, &bytes);
    const Reading expected(bytes);

    int both[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both), 0);
    Raw raw(both[0]);
    auto connection = Connection::Adopt(both[1], MakeIdentity('A', 1));
    const std::string stream = HelloBytes(MakeIdentity('D', 0)) + bytes;

    std::vector<OwnFrame> got;
    Frame frame;
    const auto take = [&] {
      int filled = connection->Fill();
      while (connection->Next(&frame)) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.data) % kFrameAlign, 0u);
        got.push_back({frame.type, frame.flags, std::string(reinterpret_cast<const char*>(frame.data), frame.size)});
      }
      return filled;
    };
    size_t at = 0;
    while (at < stream.size() && connection->alive()) {
      const size_t piece = std::min(stream.size() - at, 1 + Below(random, Below(random, 3) ? 200'000 : 40));
      const ssize_t n = send(raw.fd(), stream.data() + at, piece, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) at += static_cast<size_t>(n);
      take();
    }
    if (Below(random, 2)) {
      raw.Close();
    } else {
      shutdown(raw.fd(), SHUT_RDWR);
    }
    while (take() >= 0) {
    }
    EXPECT_EQ(got.size(), expected.frames.size());
    EXPECT_TRUE(got == expected.frames);
    EXPECT_EQ(connection->error() == EPROTO, expected.malformed);
    EXPECT_LE(connection->buffer_bytes(), 4 * (stream.size() + kBufferBytes));
  });
}

TEST(FrameFuzz, AnyFirstBytesAreEitherAHelloOrRefusedAndNeverAFrame) {
  Fuzz("first bytes", [&](Random& random) {
    std::string stream = HelloBytes(MakeIdentity('D', 0)) + FrameString(20, 0, "payload");
    const std::string right = stream;
    Mutate(random, &stream);
    int both[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both), 0);
    Raw raw(both[0]);
    auto connection = Connection::Adopt(both[1], MakeIdentity('A', 1));
    raw.Write(stream);
    raw.Close();
    Frame frame;
    while (connection->Fill() >= 0) {
      while (connection->Next(&frame)) EXPECT_TRUE(connection->greeted());
    }
    if (connection->greeted()) EXPECT_TRUE(stream.compare(32, 32, right, 32, 32) == 0);
    EXPECT_FALSE(connection->open());
  });
}

}  // namespace ray::channel
