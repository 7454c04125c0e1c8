// The memory of the pool: creates it, and makes its pages real before they are lent.
//
// Store process. A page of a shared file is taken from the kernel when first touched, and where none is left (a
// /dev/shm of 64 MB, a full disk, no huge page) the one who touches gets SIGBUS. So nothing is lent beyond
// `touched_bytes`: one thread of this class reserves pages (fallocate) in order from offset 0, ahead of demand by a
// bounded reserve, and at demand. RequestTouched may be called from the event loop; `event_fd` becomes readable when
// touched_bytes or error() has changed.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/status.h"

namespace ray::plasma {

struct PoolOptions {
  uint64_t bytes = 0;
  std::string directory;    // "": a memfd, bound by no mount's size
  bool huge_pages = false;  // then directory is a hugetlbfs mount, or "" for an anonymous one
};

class Pool {
 public:
  // Creates the file (unnamed: nothing is left of it after the last process has closed it, however it died) and starts
  // the thread. The text of a refusal names what is missing: mount, pages, rights, space.
  static Status Create(const PoolOptions& options, std::unique_ptr<Pool>* out);
  ~Pool();

  int fd() const { return fd_; }
  int event_fd() const { return event_fd_; }
  uint64_t bytes() const { return bytes_; }
  uint64_t page_bytes() const { return page_bytes_; }

  uint64_t touched_bytes() const { return touched_bytes_.load(std::memory_order_acquire); }
  // Asks that [0, bytes) be real soon, plus the reserve.
  void RequestTouched(uint64_t bytes);
  // Not empty once the kernel has refused more pages; then touched_bytes grows no more.
  std::string error();

 private:
  Pool() = default;
  void TouchLoop();
  Status TouchRange(uint64_t offset, uint64_t bytes);

  int fd_ = -1;
  int event_fd_ = -1;
  uint64_t bytes_ = 0;
  uint64_t page_bytes_ = 4096;
  std::string where_;
  std::atomic<uint64_t> touched_bytes_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t wanted_bytes_ = 0;  // guarded by mutex_
  std::string error_;          // guarded by mutex_
  bool stop_ = false;          // guarded by mutex_
  std::thread thread_;
};

}  // namespace ray::plasma
