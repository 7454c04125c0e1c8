// Bounds shared by more than one part. A bound of a single part stands in that part's own header; a relation between
// two bounds is asserted beside the sentence it protects.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ray {

constexpr size_t kCacheLineBytes = 64;
// sockaddr_un.sun_path holds 108 bytes, the last of which is the terminating zero.
constexpr size_t kUnixPathBytesMax = 107;

}  // namespace ray
