// See checksum.h.
#include "plasma/checksum.h"

#include <cstring>

namespace ray::plasma {

namespace {
constexpr uint64_t kBlockBytes = 64;

// Whole blocks, with registers of kWidth bytes: the same sums whatever the width.
template <int kWidth>
[[gnu::always_inline]] inline void AddBlocks(uint64_t* a, uint64_t* b, const uint8_t* at, uint64_t blocks) {
  typedef uint64_t Lanes __attribute__((vector_size(kWidth), aligned(1), may_alias));
  constexpr int kParts = kBlockBytes / kWidth;
  if constexpr (kParts == 1) {
    // No array: GCC 12 with AddressSanitizer puts one of 64 bytes wide registers where their moves fault (PR 110027).
    Lanes x = *reinterpret_cast<const Lanes*>(a), y = *reinterpret_cast<const Lanes*>(b);
    for (; blocks > 0; --blocks, at += kBlockBytes) {
      x = ((x << 5) | (x >> 59)) + *reinterpret_cast<const Lanes*>(at);
      y = ((y << 9) | (y >> 55)) + x;
    }
    *reinterpret_cast<Lanes*>(a) = x;
    *reinterpret_cast<Lanes*>(b) = y;
  } else {
    Lanes x[kParts], y[kParts];
    std::memcpy(x, a, kBlockBytes);
    std::memcpy(y, b, kBlockBytes);
    for (; blocks > 0; --blocks, at += kBlockBytes) {
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) {
        x[i] = ((x[i] << 5) | (x[i] >> 59)) + *reinterpret_cast<const Lanes*>(at + i * kWidth);
        y[i] = ((y[i] << 9) | (y[i] >> 55)) + x[i];
      }
    }
    std::memcpy(a, x, kBlockBytes);
    std::memcpy(b, y, kBlockBytes);
  }
}

using AddFn = void (*)(uint64_t* a, uint64_t* b, const uint8_t* at, uint64_t blocks);

void Add16(uint64_t* a, uint64_t* b, const uint8_t* at, uint64_t blocks) { AddBlocks<16>(a, b, at, blocks); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] void Add32(uint64_t* a, uint64_t* b, const uint8_t* at, uint64_t blocks) {
  AddBlocks<32>(a, b, at, blocks);
}
[[gnu::target("avx512f")]] void Add64(uint64_t* a, uint64_t* b, const uint8_t* at, uint64_t blocks) {
  AddBlocks<64>(a, b, at, blocks);
}
#endif

// The widest that this processor has.
AddFn Widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return Add64;
  if (__builtin_cpu_supports("avx2")) return Add32;
#endif
  return Add16;
}
}  // namespace

void Checksum::Add(const void* data, uint64_t bytes) {
  static const AddFn add = Widest();
  const auto* at = static_cast<const uint8_t*>(data);
  bytes_ += bytes;
  const uint64_t whole = bytes / kBlockBytes;
  add(a_, b_, at, whole);
  const uint64_t rest = bytes % kBlockBytes;
  if (rest == 0) return;
  uint8_t last[kBlockBytes] = {};
  std::memcpy(last, at + whole * kBlockBytes, rest);
  add(a_, b_, last, 1);
}

uint64_t Checksum::value() const {
  uint64_t sum = bytes_ ^ 0x9e3779b97f4a7c15ull;
  const auto fold = [&sum](const uint64_t (&lanes)[8]) {
    for (const uint64_t lane : lanes) {
      const __uint128_t product = static_cast<__uint128_t>(sum ^ lane) * 0xd6e8feb86659fd93ull;
      sum = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64) ^ (lane << 1);
    }
  };
  fold(a_);
  fold(b_);
  return sum;
}

}  // namespace ray::plasma
