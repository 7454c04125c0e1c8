// The frame: what travels on a connection once both sides have proved themselves. No I/O, no state.
//
//   offset 0   u32 payload_bytes   <= kFrameBytesMax; padding not counted
//          4   u8  type            1 RPC, 2 REPLY, 3 EVENT: control (ray/_transport); 16 and above: core to core
//          5   u8  flags           the type's own
//          6   u16 zero            anything else: the stream is out of step, the connection is closed
//          8   payload, then zeros up to the next multiple of 8
//
// All numbers little endian. Because of the padding each payload starts on a multiple of 8 in the stream and, the
// buffers being aligned likewise, in memory at both ends.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "channel/limits.h"

namespace ray::channel {

static_assert(std::endian::native == std::endian::little, "headers are stored as they are");

// A frame received. data points into the connection's buffer, 8-byte aligned, valid until its next Fill().
struct Frame {
  const uint8_t* data;
  uint32_t size;
  uint8_t type;
  uint8_t flags;
};

// Bytes on the wire of a frame with that much payload.
constexpr size_t FrameBytes(size_t payload_bytes) {
  return (kFrameHeaderBytes + payload_bytes + kFrameAlign - 1) & ~(kFrameAlign - 1);
}

inline void StoreHeader(uint8_t* at, uint8_t type, uint8_t flags, uint32_t payload_bytes) {
  const uint64_t header = payload_bytes | uint64_t{type} << 32 | uint64_t{flags} << 40;
  std::memcpy(at, &header, sizeof header);
}

// False if no frame can start with these eight bytes. out->data is set to the place behind the header.
inline bool LoadHeader(const uint8_t* at, Frame* out) {
  uint64_t header;
  std::memcpy(&header, at, sizeof header);
  out->size = static_cast<uint32_t>(header);
  out->type = static_cast<uint8_t>(header >> 32);
  out->flags = static_cast<uint8_t>(header >> 40);
  out->data = at + kFrameHeaderBytes;
  return (header >> 48) == 0 && out->size <= kFrameBytesMax;
}

}  // namespace ray::channel
