// What is still asked of the store over its socket: everything that is not done in shared memory.
//
// A stream of frames on a Unix socket, each a FrameHeader and payload_bytes of payload; little endian, both ends on one
// machine. A client speaks first (Hello) and gets Welcome with four descriptors: control segment, pool, its journal,
// the doorbell (an eventfd: "look at the rings"). `request` is chosen by the client and comes back in the answer. Sizes
// are checked before anything is read (ReadBody); a frame that does not fit its type ends that one connection.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "common/ids.h"

namespace ray::plasma {

constexpr uint64_t kHelloMagic = 0x0a31'616d'7361'6c70;  // "plasma1\n"
constexpr uint32_t kProtocolVersion = 3;
constexpr uint32_t kRequestBytesMax = 64 << 10;  // client to store
constexpr uint32_t kAnswerBytesMax = 256 << 10;  // store to client
constexpr uint32_t kWatchKeysMax = 1024;
constexpr int kWelcomeFds = 4;

enum class Message : uint16_t {
  // client to store                      answered by
  kHello = 1,       // Hello               kWelcome
  kLend = 2,        // LendRequest         kLent, or kRefused
  kReturn = 3,      // ReturnRequest       nothing
  kSync = 4,        // empty               kDone: all that the rings said has been done
  kWatch = 5,       // keys                kDone once all are sealed (possibly gone again)
  kCancel = 6,      // empty; `request` is the one to forget. Nothing; an answer may have been sent already
  kEvict = 7,       // EvictRequest        kNumber: bytes freed
  kList = 8,        // ListRequest         kRows
  kStats = 9,       // empty               kStatsAre
  kAudit = 10,      // empty               kText: "" or what is wrong
  kSubscribe = 11,  // empty               kEvents again and again
  kHolders = 12,    // empty               kText
  kRestore = 13,    // RestoreRequest      kDone: its bytes are here. Or kRefused
  kAhead = 14,      // keys                nothing: those on disk are brought back as far as there is room for them
  // store to client
  kWelcome = 64,
  kLent = 65,     // LentAnswer, then u32 slots
  kRefused = 66,  // u8 StatusCode, then text
  kDone = 67,
  kNumber = 68,    // u64
  kRows = 69,      // RowsAnswer, then rows
  kStatsAre = 70,  // StatsAnswer
  kText = 71,
  kEvents = 72,  // EventRow...
};

struct FrameHeader {
  uint32_t payload_bytes;
  uint16_t type;
  uint16_t zero;
  uint64_t request;
};
static_assert(sizeof(FrameHeader) == 16);

struct Hello {
  uint64_t magic;
  uint32_t version;
  uint32_t zero;
};
struct Welcome {
  uint64_t client;
  uint64_t control_bytes;
  uint64_t pool_bytes;
  uint64_t journal_bytes;
  uint64_t page_bytes;  // of the pool: 4096, or the huge page's
};
struct LendRequest {
  uint64_t need_bytes;
  uint64_t close_lease;  // 0: none
  int64_t timeout_ns;    // how long to wait for room
  uint32_t exact;        // 1: for one object of just that size
  uint32_t zero;
};
struct LentAnswer {
  uint64_t lease, offset, bytes;
  uint32_t slot_count, zero;
};
struct ReturnRequest {
  uint64_t lease;
};
// The asker has pinned the slot (kReading), so that what was brought back for it stays until it has read it.
struct RestoreRequest {
  uint64_t generation;
  int64_t timeout_ns;  // how long to wait for room
  uint32_t slot, zero;
};
struct EvictRequest {
  uint64_t bytes;
};
struct ListRequest {
  uint32_t cursor, zero;
};
struct RowsAnswer {
  uint32_t next_cursor;  // == slots of the table: that was all
  uint32_t row_count;
};
struct Row {  // followed by pid_count u32
  ObjectId key;
  uint32_t pid_count;
  uint64_t data_bytes, metadata_bytes, pins;
  int64_t created_ns, sealed_ns;
  uint32_t creator_pid, state;
};
struct EventRow {
  ObjectId key;
  uint32_t deleted;
  uint64_t data_bytes, metadata_bytes;
};
struct StatsAnswer {
  uint64_t pool_bytes, free_bytes, largest_free_bytes, touched_bytes;
  uint64_t sealed_objects, sealed_bytes, unsealed_objects, unsealed_bytes, deleting_objects, deleting_bytes;
  uint64_t slots, slots_free, clients, waiting_for_room, waiting_for_seal, subscribers;
  uint64_t evicted_objects, evicted_bytes, bad_entries, connections_refused;
  uint64_t spilled_objects, spilled_bytes;    // on disk and not in memory, now
  uint64_t disk_objects, disk_bytes;          // on disk, now; bytes with headers and padding
  uint64_t written_objects, written_bytes;    // to disk, since the store's start
  uint64_t restored_objects, restored_bytes;  // from disk, since the store's start
  uint64_t damaged_objects;                   // that the disk did not give back as they were
};

// The payload as a T, if it has at least that size.
template <typename T>
std::optional<T> ReadBody(std::span<const uint8_t> payload) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (payload.size() < sizeof(T)) return std::nullopt;
  T body;
  std::memcpy(&body, payload.data(), sizeof(T));
  return body;
}

inline void AppendFrame(std::string* out, Message type, uint64_t request, const void* body, size_t bytes,
                        const void* tail = nullptr, size_t tail_bytes = 0) {
  const FrameHeader h{static_cast<uint32_t>(bytes + tail_bytes), static_cast<uint16_t>(type), 0, request};
  out->append(reinterpret_cast<const char*>(&h), sizeof(h));
  if (bytes > 0) out->append(static_cast<const char*>(body), bytes);
  if (tail_bytes > 0) out->append(static_cast<const char*>(tail), tail_bytes);
}

// Splits a byte stream into frames. Feed it what was received; Next hands out whole frames, valid until the next Feed.
class FrameReader {
 public:
  explicit FrameReader(uint32_t payload_bytes_max) : payload_bytes_max_(payload_bytes_max) {}

  void Feed(const void* data, size_t bytes) {
    if (at_ > 0) buffer_.erase(0, at_);
    at_ = 0;
    buffer_.append(static_cast<const char*>(data), bytes);
  }
  // False: no whole frame, or broken(). A frame's size is judged as soon as its header is there.
  bool Next(FrameHeader* header, std::span<const uint8_t>* payload) {
    if (broken_ || buffer_.size() - at_ < sizeof(FrameHeader)) return false;
    std::memcpy(header, buffer_.data() + at_, sizeof(FrameHeader));
    if (header->payload_bytes > payload_bytes_max_ || header->zero != 0) {
      broken_ = true;
      return false;
    }
    if (buffer_.size() - at_ - sizeof(FrameHeader) < header->payload_bytes) return false;
    *payload = {reinterpret_cast<const uint8_t*>(buffer_.data()) + at_ + sizeof(FrameHeader), header->payload_bytes};
    at_ += sizeof(FrameHeader) + header->payload_bytes;
    return true;
  }
  bool broken() const { return broken_; }

 private:
  uint32_t payload_bytes_max_;
  std::string buffer_;
  size_t at_ = 0;
  bool broken_ = false;
};

}  // namespace ray::plasma
