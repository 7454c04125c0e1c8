// Streaming and parallel copies; copy.h has the measurements.
#include "common/copy.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace ray {

namespace {
int CoresWeMayUse() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}
}  // namespace

int CopyThreads(size_t bytes) {
  if (bytes < 2 * kBytesPerCopyThread) return 1;
  static const int cores = std::min(CoresWeMayUse(), kCopyThreadsMax);
  return static_cast<int>(std::min<size_t>(cores, bytes / kBytesPerCopyThread));
}

void StreamCopy(void* dest, const void* source, size_t bytes) {
#ifdef __SSE2__
  auto* to = static_cast<char*>(dest);
  auto* from = static_cast<const char*>(source);
  const size_t head = std::min(bytes, (64 - reinterpret_cast<uintptr_t>(to) % 64) % 64);
  std::memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  for (; bytes >= 64; bytes -= 64, to += 64, from += 64) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 48));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), a);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 16), b);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 32), c);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 48), d);
  }
  // Streamed stores are not ordered by a later release store (the seal); the fence is what orders them.
  _mm_sfence();
  std::memcpy(to, from, bytes);
#else
  std::memcpy(dest, source, bytes);
#endif
}

void ParallelCopy(void* dest, const void* source, size_t bytes, void (*prepare)(void*, size_t, size_t), void* context) {
  const auto part = [=](size_t from, size_t to) {
    if (prepare != nullptr) prepare(context, from, to);
    if (to - from >= kStreamBytesMin) {
      StreamCopy(static_cast<char*>(dest) + from, static_cast<const char*>(source) + from, to - from);
    } else {
      std::memcpy(static_cast<char*>(dest) + from, static_cast<const char*>(source) + from, to - from);
    }
  };
  const int threads = CopyThreads(bytes);
  const size_t share = (bytes / threads + 4095) / 4096 * 4096;
  std::vector<std::thread> helpers;
  size_t mine_ends = bytes;
  try {
    while (static_cast<int>(helpers.size()) < threads - 1 && mine_ends > share) {
      const size_t from = mine_ends - share;
      helpers.emplace_back(part, from, mine_ends);
      mine_ends = from;
    }
  } catch (const std::system_error&) {
    // No thread to be had (EAGAIN): what it would have copied is still below mine_ends.
  }
  part(0, mine_ends);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace ray
