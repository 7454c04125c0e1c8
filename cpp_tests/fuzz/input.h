// What the fuzz targets share: taking choices off the front of the input, and a check that ends the run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>

namespace ray::fuzz {

// Zeros after the end, so that every input means something.
class Input {
 public:
  Input(const uint8_t* data, size_t bytes) : at_(data), end_(data + bytes) {}

  bool empty() const { return at_ == end_; }
  template <typename T>
  T Take() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const size_t n = std::min(sizeof(T), left());
    if (n > 0) std::memcpy(static_cast<void*>(&value), at_, n);
    at_ += n;
    return value;
  }
  uint8_t Byte() { return Take<uint8_t>(); }
  uint32_t Below(uint32_t bound) { return Take<uint16_t>() % bound; }
  // A size: small ones and the edges of what fits in 64 bits.
  uint64_t Size() {
    const uint8_t kind = Byte();
    if (kind < 128) return Take<uint16_t>();
    if (kind < 192) return uint64_t{Take<uint16_t>()} << 10;
    if (kind < 224) return ~uint64_t{0} - Byte();
    return Take<uint64_t>();
  }
  std::string Bytes(size_t most) {
    const size_t n = std::min(most, left());
    std::string out(reinterpret_cast<const char*>(at_), n);
    at_ += n;
    return out;
  }
  std::string Rest() { return Bytes(left()); }

 private:
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  const uint8_t* at_;
  const uint8_t* end_;
};

// Unlike assert it stays in every build. The fuzzer takes the abort for a finding and writes the input down.
inline void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace ray::fuzz
