// Copies of every awkward size and alignment.
#include "common/copy.h"

#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "testing.h"

namespace ray {
namespace {

TEST(Copy, CopiesAllAndOnlyTheBytesAskedFor) {
  std::vector<uint8_t> from(70000), to(70000);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 31 + 7);
  for (size_t bytes : {0, 1, 63, 64, 65, 127, 4096, 65537}) {
    for (size_t from_at : {0, 1, 17}) {
      for (size_t to_at : {0, 1, 63, 64}) {
        std::memset(to.data(), 0, to.size());
        StreamCopy(to.data() + to_at, from.data() + from_at, bytes);
        EXPECT_EQ(std::memcmp(to.data() + to_at, from.data() + from_at, bytes), 0);
        for (size_t i = 0; i < to_at; ++i) EXPECT_EQ(to[i], 0);
        EXPECT_EQ(to[to_at + bytes], 0);
      }
    }
  }
}

TEST(Copy, PreparesEachByteOnceInParallel) {
  const size_t bytes = 3 * kBytesPerCopyThread + 12345;
  std::vector<uint8_t> from(bytes), to(bytes);
  for (size_t i = 0; i < bytes; ++i) from[i] = static_cast<uint8_t>(i * 131 >> 3);
  struct Seen {
    std::mutex mutex;
    std::set<std::pair<size_t, size_t>> parts;
  } seen;
  ParallelCopy(
      to.data(), from.data(), bytes,
      [](void* context, size_t begin, size_t end) {
        auto* s = static_cast<Seen*>(context);
        std::lock_guard<std::mutex> lock(s->mutex);
        s->parts.emplace(begin, end);
      },
      &seen);
  EXPECT_TRUE(from == to);
  size_t at = 0;
  for (const auto& [begin, end] : seen.parts) {
    EXPECT_EQ(begin, at);
    at = end;
  }
  EXPECT_EQ(at, bytes);
}

}  // namespace
}  // namespace ray

RAY_TEST_MAIN()
