// Which bytes of which file an object on disk has. Decisions only, no I/O; store process, event-loop thread.
//
// Objects are appended to one file after the other, each of which takes about file_bytes: few, large, written in order.
// The files go round the directories; one that was found full is passed over until something in it is freed, or for
// kFullNs. A file whose last object is freed is closed, and thereby gone, for none has a name (spill_disk.h); a freed
// range of another is punched out of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"

namespace ray::plasma {

constexpr uint64_t kRecordAlignBytes = 4096;  // the block of most file systems: less could not be punched out
constexpr uint64_t kRecordHeaderBytes = 64;
constexpr uint64_t RecordBytes(uint64_t payload_bytes) {
  return (kRecordHeaderBytes + payload_bytes + kRecordAlignBytes - 1) / kRecordAlignBytes * kRecordAlignBytes;
}

struct DiskPlace {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;  // of the record: header, payload, padding
};

struct SpillLimits {
  std::vector<std::string> directories;  // none: nothing is spilled
  uint64_t bytes_max = ~uint64_t{0};     // on all disks together
  uint64_t file_bytes = 100 << 20;
};

class SpillFiles {
 public:
  static constexpr int64_t kFullNs = 30 * kNsPerS;
  enum class Freed { kNothing, kRange, kFile };  // to be done with the file of a freed place

  explicit SpillFiles(SpillLimits limits) : limits_(std::move(limits)), full_(limits_.directories.size()) {}

  // A place for one record; nothing if bytes_max or all directories are exhausted: Why() says so.
  std::optional<DiskPlace> Take(uint64_t payload_bytes, int64_t now_ns);
  // What was there is not needed any more, or could not be written.
  Freed Free(const DiskPlace& place);
  // That directory has no room, for the reason given. Nothing more is placed there for a while.
  void DirectoryFull(const std::string& directory, const std::string& why, int64_t now_ns);

  const std::string& DirectoryOf(uint32_t file) const { return limits_.directories[files_.at(file).directory]; }
  const std::string& Why() const { return why_; }  // of the latest refusal; "" if there was none
  uint64_t bytes() const { return bytes_; }
  uint64_t objects() const { return objects_; }
  size_t files() const { return files_.size(); }

 private:
  struct File {
    uint32_t directory;
    uint64_t end = 0, live_bytes = 0;
  };

  const SpillLimits limits_;
  std::vector<int64_t> full_;  // per directory: until when it is passed over
  std::map<uint32_t, File> files_;
  std::optional<uint32_t> current_;
  uint32_t next_file_ = 1, next_directory_ = 0;
  uint64_t bytes_ = 0, objects_ = 0;
  std::string why_;
};

}  // namespace ray::plasma
