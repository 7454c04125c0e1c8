// Joins what Store decides (spill.cc), where SpillFiles puts it and what SpillDisk does. Store process, event-loop
// thread; never waits for a disk.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plasma/pool.h"
#include "plasma/spill_disk.h"
#include "plasma/spill_files.h"
#include "plasma/store.h"

namespace ray::plasma {

struct SpillOptions {
  SpillLimits limits;
  SpillDiskOptions disk;
  uint64_t batch_bytes = 100 << 20;  // so much room is made at once, if there is so much to be had
};

class Spiller {
 public:
  struct Restored {
    uint32_t slot;
    bool ok;     // it is in memory
    bool retry;  // not begun after all: ask again
  };
  struct Counts {
    uint64_t written_objects = 0, written_bytes = 0, restored_objects = 0, restored_bytes = 0, damaged_objects = 0;
  };

  // store and pool outlive it.
  static Status Create(const SpillOptions& options, Store* store, Pool* pool, std::unique_ptr<Spiller>* out);

  // Readable: call Finish.
  int event_fd() const { return disk_->event_fd(); }
  // Something is on its way to or from a disk: whoever waits for room waits on.
  bool busy() const { return writing_ > 0 || reading_ > 0 || !untouched_.empty(); }
  bool writing() const { return writing_ > 0; }
  uint64_t reading_bytes() const { return reading_bytes_; }  // on their way back, or about to be
  // Makes room for an extent of so many bytes, unless it is at it. False: there is nothing that could go, or no place
  // for it on any disk (disk_full()). If it is true and writing() is not, the room is there already.
  bool MakeRoom(uint64_t bytes);
  // As Store's; what is kStarted will be in a later Finish.
  RestoreStep Restore(uint32_t slot, uint64_t generation);
  // What has ended since the last call.
  std::vector<Restored> Finish();
  // More of the pool is real, or no more of it can be had: then what was to be read beyond comes back with `retry`.
  std::vector<Restored> Touched();
  // Why the latest attempt to write failed; "" if it did not.
  const std::string& disk_full() const { return disk_full_; }
  const Counts& counts() const { return counts_; }
  const SpillFiles& files() const { return files_; }
  // Gives back on disk what the store has freed.
  void Sweep();

 private:
  Spiller(const SpillOptions& options, Store* store, Pool* pool)
      : options_(options), store_(store), pool_(pool), files_(options.limits) {}
  void Free(const DiskPlace& place);

  const SpillOptions options_;
  Store* const store_;
  Pool* const pool_;
  SpillFiles files_;
  std::map<uint32_t, std::shared_ptr<SpillFile>> open_;  // by SpillFiles' number
  std::vector<DiskJob> untouched_;                       // reads into pages that are not real yet
  uint64_t writing_ = 0, reading_ = 0, reading_bytes_ = 0;
  std::string disk_full_;
  Counts counts_;
  std::unique_ptr<SpillDisk> disk_;  // last: its threads end first
};

}  // namespace ray::plasma
