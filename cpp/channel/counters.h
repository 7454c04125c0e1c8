// How often peers misbehaved, for stats and tests. One set per loaded library (each extension module links its own copy
// of ray_channel). Any thread; touched on cold paths only.
#pragma once

#include <atomic>
#include <cstdint>

namespace ray::channel {

struct Counters {
  std::atomic<uint64_t> hellos_refused{0};    // wrong magic, version, token, role or user
  std::atomic<uint64_t> hellos_late{0};       // no hello within kHelloDeadlineNs
  std::atomic<uint64_t> frames_malformed{0};  // connections closed because of an impossible frame header
  std::atomic<uint64_t> accepts_refused{0};   // connections dropped because this process is out of descriptors
};

inline Counters& counters() {
  static Counters all;
  return all;
}

}  // namespace ray::channel
