// Whether one reader takes what is on disk in the order in which it lies there, and how far it is worth reading ahead
// of him. Pure; store process, event-loop thread, one for each connection that has read from disk.
//
// A loop that gets one object after the other has nothing to do while the next is read, and the other threads have
// nothing to read: so from the second in a row on, those behind are begun before he asks. What he finds in memory the
// store does not hear of, so "in a row" means: from where he last asked up to the last that was begun for him, or the
// one behind that. Whoever reads in another order costs one comparison a read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

namespace ray::plasma {

class ReadAhead {
 public:
  using Place = std::pair<uint32_t, uint64_t>;  // file and offset: in the order in which they were written
  static constexpr uint64_t kBytesMin = 16 << 20, kBytesMax = 64 << 20;

  // He asks for what lies at `at`. before: what lies before that in order, if anything does. Returns how many bytes
  // behind it shall be in memory, or on their way.
  uint64_t Asked(const Place& at, const std::optional<Place>& before) {
    const auto in_row = [this](const Place& p) { return from_ <= p && p <= end_; };
    if (at == from_) return bytes_;
    if (in_row(at) || (before && in_row(*before))) {
      bytes_ = std::clamp(2 * bytes_, kBytesMin, kBytesMax);
      end_ = std::max(end_, at);
    } else {
      bytes_ = 0;
      end_ = at;
    }
    from_ = at;
    return bytes_;
  }
  // What lies there is in memory, or has been begun because of that.
  void Began(const Place& at) { end_ = std::max(end_, at); }

 private:
  Place from_{}, end_{};
  uint64_t bytes_ = 0;
};

}  // namespace ray::plasma
