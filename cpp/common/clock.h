// Time as the whole project counts it: nanoseconds of CLOCK_MONOTONIC, the same in every process of a machine, never
// set back. Any thread; no system call (vDSO).
#pragma once

#include <cstdint>
#include <ctime>

namespace ray {

constexpr int64_t kNsPerS = 1'000'000'000;
constexpr int64_t kNsPerMs = 1'000'000;

inline int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * kNsPerS + t.tv_nsec;
}

}  // namespace ray
