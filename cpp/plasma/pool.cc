// Unnamed files, and a thread that reserves their pages; see pool.h.
#include "plasma/pool.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>

namespace ray::plasma {

namespace {
constexpr uint64_t kStepBytes = 16 << 20;         // per fallocate: 4 ms at 4 GB/s, so that stopping is prompt
constexpr uint64_t kReserveBytesMin = 16 << 20;   // touched at start: what a small session uses
constexpr uint64_t kReserveBytesMax = 256 << 20;  // touched ahead of what was asked for
constexpr uint64_t kReserveShare = 4;             // reserve = asked / 4, within these bounds

uint64_t HugePageCount(uint64_t page_bytes, const char* which) {
  std::ifstream file("/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_bytes >> 10) + "kB/" + which);
  uint64_t n = 0;
  file >> n;
  return n;
}

std::string HugePagesMissing(uint64_t bytes, uint64_t page_bytes) {
  const uint64_t need = bytes / page_bytes;
  return "huge_pages: " + std::to_string(need) + " pages of " + std::to_string(page_bytes >> 10) +
         " kB are needed for " + std::to_string(bytes) + " bytes, " +
         std::to_string(HugePageCount(page_bytes, "free_hugepages")) + " of " +
         std::to_string(HugePageCount(page_bytes, "nr_hugepages")) + " are free. As root: sysctl vm.nr_hugepages=" +
         std::to_string(need + HugePageCount(page_bytes, "nr_hugepages") - HugePageCount(page_bytes, "free_hugepages"));
}

// A file in `directory` that has no name, or loses it at once where the file system cannot make one without.
int OpenUnnamed(const std::string& directory) {
  const int fd = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
  std::string path = directory + "/plasma-XXXXXX";
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named >= 0) unlink(path.c_str());
  return named;
}
}  // namespace

Status Pool::Create(const PoolOptions& options, std::unique_ptr<Pool>* out) {
  std::unique_ptr<Pool> pool(new Pool());
  const std::string& dir = options.directory;
  pool->where_ = dir.empty() ? "memory" : dir;
  if (!dir.empty()) {
    struct stat st;
    if (stat(dir.c_str(), &st) != 0) return Status::FromErrno("plasma_directory " + dir, errno);
    if (!S_ISDIR(st.st_mode)) return {StatusCode::kInvalidArgument, "plasma_directory " + dir + " is not a directory"};
    if (access(dir.c_str(), W_OK | X_OK) != 0) {
      return {StatusCode::kPermission, "plasma_directory " + dir + ": no right to create files there (uid " +
                                           std::to_string(getuid()) + "); chown or chmod it"};
    }
    struct statfs fs;
    if (statfs(dir.c_str(), &fs) != 0) return Status::FromErrno("plasma_directory " + dir, errno);
    const bool huge = static_cast<unsigned long>(fs.f_type) == HUGETLBFS_MAGIC;
    if (options.huge_pages && !huge) {
      return {StatusCode::kInvalidArgument,
              "huge_pages: plasma_directory " + dir + " is not a hugetlbfs mount. As root: mkdir -p " + dir +
                  " && mount -t hugetlbfs -o uid=" + std::to_string(getuid()) + " none " + dir};
    }
    if (huge) pool->page_bytes_ = fs.f_bsize;
    if (!huge && options.bytes > fs.f_bavail * fs.f_bsize) {
      return {StatusCode::kOutOfMemory, "plasma_directory " + dir + " has " + std::to_string(fs.f_bavail * fs.f_bsize) +
                                            " bytes available, the store is to have " + std::to_string(options.bytes) +
                                            ". Without plasma_directory it is not bound by a mount's size"};
    }
    pool->fd_ = OpenUnnamed(dir);
    if (pool->fd_ < 0) return Status::FromErrno("plasma_directory " + dir + ": creating a file", errno);
  } else {
    if (options.huge_pages) pool->page_bytes_ = 2 << 20;
    pool->fd_ = memfd_create("plasma", MFD_CLOEXEC | MFD_ALLOW_SEALING | (options.huge_pages ? MFD_HUGETLB : 0));
    if (pool->fd_ < 0) {
      if (options.huge_pages) return {StatusCode::kOutOfMemory, HugePagesMissing(options.bytes, pool->page_bytes_)};
      return Status::FromErrno("memfd_create", errno);
    }
  }
  pool->bytes_ = (options.bytes + pool->page_bytes_ - 1) / pool->page_bytes_ * pool->page_bytes_;
  if (ftruncate(pool->fd_, static_cast<off_t>(pool->bytes_)) != 0) {
    return Status::FromErrno("a pool of " + std::to_string(pool->bytes_) + " bytes in " + pool->where_, errno);
  }
  // Nobody may cut the file short under those who map it. (Other files than memfds know no seals; that is fine.)
  if (dir.empty() && fcntl(pool->fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return Status::FromErrno("F_ADD_SEALS", errno);
  }
  if (pool->page_bytes_ > 4096) {
    // Huge pages are counted, not hoped for: all of them are taken now.
    if (fallocate(pool->fd_, 0, 0, static_cast<off_t>(pool->bytes_)) != 0) {
      close(pool->fd_);  // it keeps those that there were, and they must be counted as free
      pool->fd_ = -1;
      return {StatusCode::kOutOfMemory, HugePagesMissing(pool->bytes_, pool->page_bytes_)};
    }
    pool->touched_bytes_ = pool->bytes_;
  }
  pool->event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (pool->event_fd_ < 0) return Status::FromErrno("eventfd", errno);
  // Signals are the event loop's: a thread with an open mask would take SIGTERM and die of it.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pool->thread_ = std::thread([p = pool.get()] { p->TouchLoop(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  *out = std::move(pool);
  return Status::Ok();
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  if (event_fd_ >= 0) close(event_fd_);
  if (fd_ >= 0) close(fd_);
}

void Pool::RequestTouched(uint64_t bytes) {
  const uint64_t reserve = std::clamp(bytes / kReserveShare, kReserveBytesMin, kReserveBytesMax);
  const uint64_t wanted = std::min(bytes_, bytes + reserve);
  if (wanted <= touched_bytes()) return;
  std::lock_guard<std::mutex> lock(mutex_);
  if (wanted <= wanted_bytes_) return;
  wanted_bytes_ = wanted;
  wake_.notify_one();
}

std::string Pool::error() {
  std::lock_guard<std::mutex> lock(mutex_);
  return error_;
}

Status Pool::TouchRange(uint64_t offset, uint64_t bytes) {
  while (fallocate(fd_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP && posix_fallocate(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0) break;
    return Status::FromErrno("the store can have no more than " + std::to_string(offset) + " of its " +
                                 std::to_string(bytes_) + " bytes: " + where_,
                             errno);
  }
  return Status::Ok();
}

void Pool::TouchLoop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    const uint64_t from = touched_bytes();
    if (from >= wanted_bytes_ || !error_.empty()) {
      wake_.wait(lock);
      continue;
    }
    const uint64_t step = std::min(kStepBytes, bytes_ - from);
    lock.unlock();
    const Status status = TouchRange(from, step);
    lock.lock();
    if (status.ok()) {
      touched_bytes_.store(from + step, std::memory_order_release);
    } else {
      error_ = status.message();
    }
    const uint64_t one = 1;
    // Can only fail when the counter is full, and then the loop has been told already.
    if (write(event_fd_, &one, sizeof(one)) < 0 && errno != EAGAIN) error_ = "eventfd: cannot be written";
  }
}

}  // namespace ray::plasma
