// See spill_files.h.
#include "plasma/spill_files.h"

namespace ray::plasma {

std::optional<DiskPlace> SpillFiles::Take(uint64_t payload_bytes, int64_t now_ns) {
  const uint64_t bytes = RecordBytes(payload_bytes);
  if (bytes > limits_.bytes_max || bytes_ > limits_.bytes_max - bytes) {
    why_ = "objects on disk take " + std::to_string(bytes_) + " bytes, " + std::to_string(bytes) +
           " more are needed, and no more than " + std::to_string(limits_.bytes_max) + " are allowed";
    return std::nullopt;
  }
  if (current_ && (files_.at(*current_).end >= limits_.file_bytes || full_[files_.at(*current_).directory] > now_ns)) {
    current_.reset();
  }
  for (size_t i = 0; !current_ && i < full_.size(); ++i) {
    const uint32_t directory = next_directory_++ % full_.size();
    if (full_[directory] > now_ns) continue;
    current_ = next_file_++;
    files_[*current_] = {directory};
  }
  if (!current_) return std::nullopt;  // why_ is DirectoryFull's
  File& file = files_.at(*current_);
  const DiskPlace place{*current_, file.end, bytes};
  file.end += bytes;
  file.live_bytes += bytes;
  bytes_ += bytes;
  ++objects_;
  return place;
}

SpillFiles::Freed SpillFiles::Free(const DiskPlace& place) {
  const auto found = files_.find(place.file);
  if (found == files_.end()) return Freed::kNothing;
  found->second.live_bytes -= place.bytes;
  bytes_ -= place.bytes;
  --objects_;
  full_[found->second.directory] = 0;
  if (found->second.live_bytes > 0) return Freed::kRange;
  if (current_ == place.file) current_.reset();
  files_.erase(found);
  return Freed::kFile;
}

void SpillFiles::DirectoryFull(const std::string& directory, const std::string& why, int64_t now_ns) {
  for (size_t i = 0; i < full_.size(); ++i) {
    if (limits_.directories[i] == directory) full_[i] = now_ns + kFullNs;
  }
  why_ = directory + ": " + why;
}

}  // namespace ray::plasma
