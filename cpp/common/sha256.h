// SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104), for what nodes prove to each other. Any thread; no allocation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace ray {

constexpr size_t kSha256Bytes = 32;
using Sha256Digest = std::array<uint8_t, kSha256Bytes>;

class Sha256 {
 public:
  Sha256();
  void Add(const void* data, size_t bytes);
  Sha256Digest Finish();  // once; nothing may be added afterwards

 private:
  void Block(const uint8_t* block);

  uint32_t state_[8];
  uint64_t bytes_ = 0;
  uint8_t pending_[64];
};

// The code of `first` and `second` laid one behind the other.
Sha256Digest HmacSha256(const void* key, size_t key_bytes, const void* first, size_t first_bytes,
                        const void* second = nullptr, size_t second_bytes = 0);

}  // namespace ray
