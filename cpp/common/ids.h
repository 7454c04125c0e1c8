// Identities as raw bytes: a fixed-size value that can live in shared memory, be compared, hashed and printed.
// docs/internals/wire_format.md says what the bytes of each mean. Any process, any thread.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace ray {

template <size_t N>
struct Id {
  static constexpr size_t kBytes = N;
  uint8_t bytes[N];

  static Id FromBytes(const void* data) {
    Id id;
    std::memcpy(id.bytes, data, N);
    return id;
  }
  friend bool operator==(const Id& a, const Id& b) { return std::memcmp(a.bytes, b.bytes, N) == 0; }

  std::string Hex() const {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (uint8_t b : bytes) {
      text += digits[b >> 4];
      text += digits[b & 15];
    }
    return text;
  }
};

using ObjectId = Id<28>;  // owner's tag (16), sequence number (8, LE), index (4, LE)
using Tag = Id<16>;       // one core process: a driver or a worker

static_assert(sizeof(ObjectId) == 28 && sizeof(Tag) == 16, "ids are shared between processes byte for byte");

}  // namespace ray
