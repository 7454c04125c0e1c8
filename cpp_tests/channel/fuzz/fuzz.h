// Seeded random trials for a bounded time. RAY_FUZZ_SEED replays a run, RAY_FUZZ_SECONDS makes it longer (default 2 per
// test). The seed of each run is printed, and a failing trial prints its own.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "common/clock.h"
#include "testing.h"

namespace ray::channel {

using Random = std::mt19937_64;

inline size_t Below(Random& random, size_t bound) { return static_cast<size_t>(random() % bound); }

template <typename Trial>
void Fuzz(const char* name, Trial trial) {
  const char* seconds = std::getenv("RAY_FUZZ_SECONDS");
  const char* given = std::getenv("RAY_FUZZ_SEED");
  const uint64_t first = given ? std::strtoull(given, nullptr, 10) : std::random_device()();
  const int64_t until = NowNs() + static_cast<int64_t>((seconds ? std::atof(seconds) : 2.0) * kNsPerS);
  uint64_t seed = first;
  do {
    Random random(seed);
    trial(random);
    if (testing::FailuresInThisTest() > 0) {
      std::fprintf(stderr, "%s: replay with RAY_FUZZ_SEED=%llu\n", name, static_cast<unsigned long long>(seed));
      return;
    }
    ++seed;
  } while (NowNs() < until);
  std::printf("%s: %llu trials from seed %llu\n", name, static_cast<unsigned long long>(seed - first),
              static_cast<unsigned long long>(first));
}

// Changes bytes in place, or cuts, repeats, inserts and removes.
inline void Mutate(Random& random, std::string* bytes) {
  for (size_t n = Below(random, 4); n > 0 && !bytes->empty(); --n) {
    const size_t at = Below(random, bytes->size());
    const size_t length = Below(random, std::min<size_t>(bytes->size() - at, 16) + 1);
    switch (Below(random, 6)) {
      case 0:
        (*bytes)[at] = static_cast<char>(random());
        break;
      case 1:
        (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << Below(random, 8)));
        break;
      case 2:
        bytes->resize(at);
        break;
      case 3:
        bytes->insert(at, bytes->substr(at, length));
        break;
      case 4:
        bytes->erase(at, length);
        break;
      default:
        bytes->insert(at, std::string(length, static_cast<char>(random())));
        break;
    }
  }
}

}  // namespace ray::channel
