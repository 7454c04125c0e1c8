// Bounds-checked reading and plain writing of the engine's binary frames (types 16 and up). All integers little endian,
// unaligned. A Reader that runs past the end becomes !ok and yields zeros, so a malformed frame is found by one check.
#pragma once

#include <cstdint>
#include <cstring>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ray::wire {

// What a TASK frame starts with; arguments follow.
struct TaskHeader {
  uint64_t seq;          // of the caller; names the call and its returns
  uint32_t window;       // generators: items that may wait for the caller, 0 for no limit
  uint32_t taken;        // generators: items that the caller has taken already, in earlier runs
  uint32_t function;     // the caller's number for it, defined on this connection by an earlier FUNCTION frame
  uint32_t first_index;  // generators: index of the first item to be sent; others 0
  uint16_t num_returns;
  uint16_t num_args;
  uint16_t num_keywords;  // the last num_keywords arguments carry names
  uint8_t flags;    // 0, or how what a generator yields is wanted: Y_STREAM, Y_DYNAMIC, Y_FIXED
  uint8_t attempt;  // 0 for the first run
};
static_assert(sizeof(TaskHeader) == 32);

struct Reader {
  const uint8_t* p;
  const uint8_t* end;
  bool ok = true;
  Reader(const uint8_t* data, size_t n) : p(data), end(data + n) {}
  Reader() : p(nullptr), end(nullptr) {}
  template <typename T>
  T Get() {
    T value{};
    if (static_cast<size_t>(end - p) < sizeof(T)) {
      ok = false;
      p = end;
    } else {
      std::memcpy(&value, p, sizeof(T));
      p += sizeof(T);
    }
    return value;
  }
  uint8_t U8() { return Get<uint8_t>(); }
  uint16_t U16() { return Get<uint16_t>(); }
  uint32_t U32() { return Get<uint32_t>(); }
  uint64_t U64() { return Get<uint64_t>(); }
  TaskHeader Header() { return Get<TaskHeader>(); }
  // n bytes in place, or nullptr.
  const uint8_t* Take(size_t n) {
    if (static_cast<size_t>(end - p) < n) {
      ok = false;
      p = end;
      return nullptr;
    }
    const uint8_t* at = p;
    p += n;
    return at;
  }
  size_t left() const { return static_cast<size_t>(end - p); }
};

// What a deallocated ref leaves to be done: give back our registrations, or free our object in the store.
struct Dropped {
  uint8_t id[28];
  uint8_t owned;
  uint8_t pinned;  // a borrower's: kept by us at its home
  uint32_t registered;
  uint32_t home;  // node number of the primary copy
  uint64_t pull;  // whose pin in our store is to be let go, or 0
};

template <typename T>
inline uint8_t* Put(uint8_t* out, T value) {
  std::memcpy(out, &value, sizeof(T));
  return out + sizeof(T);
}
inline uint8_t* PutU8(uint8_t* out, uint8_t v) { return Put(out, v); }
inline uint8_t* PutU16(uint8_t* out, uint16_t v) { return Put(out, v); }
inline uint8_t* PutU32(uint8_t* out, uint32_t v) { return Put(out, v); }
inline uint8_t* PutU64(uint8_t* out, uint64_t v) { return Put(out, v); }

inline int64_t NowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// A round counter that threads sleep on: those that wait while another thread receives for them. FUTEX_WAIT returns on a
// signal, so Ctrl-C reaches the main thread.
struct RoundGate {
  uint32_t round = 0;
  uint32_t sleepers = 0;  // written under the GIL
  // -1 timeout_ms: no limit. Called without the GIL.
  void Wait(uint32_t seen, int64_t timeout_ms) {
    timespec t{timeout_ms / 1000, (timeout_ms % 1000) * 1000000};
    syscall(SYS_futex, &round, FUTEX_WAIT_PRIVATE, seen, timeout_ms < 0 ? nullptr : &t, nullptr, 0);
  }
  void Advance() {
    __atomic_fetch_add(&round, 1, __ATOMIC_RELEASE);
    if (sleepers) syscall(SYS_futex, &round, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
  }
};

}  // namespace ray::wire
