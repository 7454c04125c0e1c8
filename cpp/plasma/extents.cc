// Free ranges in two indexes; extents.h says what they promise.
#include "plasma/extents.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "plasma/layout.h"

namespace ray::plasma {

namespace {
// How many ranges of the request's own size class are tried; longer classes fit without trying.
constexpr int kTriesInClass = 64;

int ClassOf(uint64_t bytes) { return 63 - std::countl_zero(bytes); }
}  // namespace

Extents::Extents(uint64_t pool_bytes) : pool_bytes_(pool_bytes) { Add(0, pool_bytes); }

std::optional<uint64_t> Extents::Take(uint64_t bytes) {
  if (bytes == 0 || bytes > pool_bytes_) return std::nullopt;
  bytes = ObjectExtentBytes(bytes, 0);
  std::optional<uint64_t> best;
  int tries = kTriesInClass;
  for (uint64_t offset : by_class_[ClassOf(bytes)]) {
    if (tries-- == 0) break;
    if (by_offset_.find(offset)->second >= bytes) {
      best = offset;
      break;
    }
  }
  for (size_t c = ClassOf(bytes) + 1; c < by_class_.size(); ++c) {
    if (!by_class_[c].empty() && (!best || *by_class_[c].begin() < *best)) best = *by_class_[c].begin();
  }
  if (!best) return std::nullopt;
  const auto range = by_offset_.find(*best);
  const uint64_t rest = range->second - bytes;
  Erase(range);
  if (rest > 0) Add(*best + bytes, rest);
  return best;
}

uint64_t Extents::Free(uint64_t offset, uint64_t bytes) {
  if (bytes == 0 || bytes > pool_bytes_) return 0;
  bytes = ObjectExtentBytes(bytes, 0);
  if (offset % kObjectAlignBytes != 0 || offset >= pool_bytes_ || bytes > pool_bytes_ - offset) return 0;
  const auto after = by_offset_.lower_bound(offset);
  const auto before = after == by_offset_.begin() ? by_offset_.end() : std::prev(after);
  if (after != by_offset_.end() && after->first < offset + bytes) return 0;
  if (before != by_offset_.end() && before->first + before->second > offset) return 0;
  if (after != by_offset_.end() && after->first == offset + bytes) {
    bytes += after->second;
    Erase(after);
  }
  if (before != by_offset_.end() && before->first + before->second == offset) {
    offset = before->first;
    bytes += before->second;
    Erase(before);
  }
  Add(offset, bytes);
  return bytes;
}

void Extents::Cap(uint64_t bytes) {
  if (bytes >= pool_bytes_ || by_offset_.empty()) return;
  const auto last = std::prev(by_offset_.end());
  const uint64_t offset = last->first;
  if (offset > bytes || offset + last->second != pool_bytes_) return;
  Erase(last);
  if (bytes > offset) Add(offset, bytes - offset);
  pool_bytes_ = bytes;
}

uint64_t Extents::largest_free_bytes() const {
  for (int c = 63; c >= 0; --c) {
    uint64_t largest = 0;
    for (uint64_t offset : by_class_[c]) largest = std::max(largest, by_offset_.find(offset)->second);
    if (largest > 0) return largest;
  }
  return 0;
}

void Extents::Add(uint64_t offset, uint64_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_class_[ClassOf(bytes)].insert(offset);
  free_bytes_ += bytes;
}

void Extents::Erase(std::map<uint64_t, uint64_t>::iterator range) {
  by_class_[ClassOf(range->second)].erase(range->first);
  free_bytes_ -= range->second;
  by_offset_.erase(range);
}

}  // namespace ray::plasma
