// The disk's side of spilling: threads that copy objects between the pool and files. Decides nothing.
//
// THREADS of plasma_store, `threads` of them, since the event loop must never wait for a disk. The event loop submits
// jobs and takes what is done when event_fd is readable; whoever submits sees to it that the range of the pool stays as
// it is meanwhile (Store: kWriting, kRestoring), that its pages and all before them are real, and that no job for a
// file is under way when it is closed.
//
//   a file: record, record, ...        record: RecordHeader (64 bytes), data, metadata, padding to kRecordAlignBytes
//
// Files have no name (O_TMPFILE, or unlinked as soon as they are open): the kernel frees them when the process ends, in
// whatever way, and so nothing is ever left behind. What is read is compared with what was written: key and sizes, and
// a checksum over all bytes.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/ids.h"
#include "common/status.h"
#include "plasma/mapped_pages.h"
#include "plasma/spill_files.h"

namespace ray::plasma {

struct RecordHeader {
  uint64_t magic;
  ObjectId key;
  uint32_t zero;
  uint64_t data_bytes, metadata_bytes;
  uint64_t checksum;  // of data and metadata
};
static_assert(sizeof(RecordHeader) == kRecordHeaderBytes);
constexpr uint64_t kRecordMagic = 0x316c'6c69'7073'7972;  // "ryspill1"

// One open file. Whoever drops the last reference closes it; that may take milliseconds, so it should be a job.
class SpillFile {
 public:
  explicit SpillFile(std::string directory) : directory_(std::move(directory)) {}
  ~SpillFile();
  // Opens it at first use. Any thread.
  int Fd(int* error);
  const std::string& directory() const { return directory_; }

 private:
  const std::string directory_;
  std::mutex mutex_;
  int fd_ = -1;
};

struct DiskJob {
  enum class Kind { kRead, kWrite, kPunch, kClose };  // the most urgent first
  Kind kind;
  std::shared_ptr<SpillFile> file;
  DiskPlace place;
  uint32_t slot = 0;
  uint64_t generation = 0;
  uint64_t pool_offset = 0;
  RecordHeader header{};  // kWrite: completed with the checksum; kRead: what must be found
  // What came of it.
  int error = 0;         // errno
  bool damaged = false;  // kRead: it is not what was written
};

struct SpillDiskOptions {
  int threads = 2;
  double disk_use_max = 0.95;  // of a file system: beyond this nothing more is written there
};

class SpillDisk {
 public:
  static Status Create(const SpillDiskOptions& options, int pool_fd, uint64_t pool_bytes, uint64_t page_bytes,
                       std::unique_ptr<SpillDisk>* out);
  ~SpillDisk();

  int event_fd() const { return event_fd_; }
  void Submit(DiskJob job);
  // Writes and reads that are done, in the order in which they ended; of punching and closing nobody hears.
  std::vector<DiskJob> TakeDone();

 private:
  SpillDisk() = default;
  void Work();
  void Write(DiskJob* job);
  void Read(DiskJob* job);

  SpillDiskOptions options_;
  int event_fd_ = -1;
  uint8_t* pool_ = nullptr;
  uint64_t pool_bytes_ = 0;
  std::unique_ptr<MappedPages> mapped_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<DiskJob> jobs_;   // guarded by mutex_
  std::vector<DiskJob> done_;  // guarded by mutex_
  bool stop_ = false;          // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace ray::plasma
