// See spill_disk.h.
#include "plasma/spill_disk.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "plasma/checksum.h"

namespace ray::plasma {

namespace {
constexpr uint64_t kChunkBytes =
    1 << 20;  // is still in the processor's cache when it is written after it was summed up

// All of it at that place; an errno, or 0. EIO for a file that ends early.
int WriteAll(int fd, iovec* parts, int count, uint64_t offset) {
  while (count > 0) {
    const ssize_t n = pwritev(fd, parts, count, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : ENOSPC;
    offset += static_cast<uint64_t>(n);
    uint64_t left = static_cast<uint64_t>(n);
    while (count > 0 && left >= parts->iov_len) {
      left -= parts->iov_len;
      ++parts;
      --count;
    }
    if (count > 0) {
      parts->iov_base = static_cast<char*>(parts->iov_base) + left;
      parts->iov_len -= left;
    }
  }
  return 0;
}

int ReadAll(int fd, void* to, uint64_t bytes, uint64_t offset) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t n = pread(fd, at, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : EIO;
    at += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return 0;
}
}  // namespace

SpillFile::~SpillFile() {
  if (fd_ >= 0) close(fd_);
}

int SpillFile::Fd(int* error) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (fd_ >= 0) return fd_;
  fd_ = open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
    // A file system without unnamed files: one that has a name for a moment.
    std::string path = directory_ + "/spill-XXXXXX";
    fd_ = mkostemp(path.data(), O_CLOEXEC);
    if (fd_ >= 0) unlink(path.c_str());
  }
  if (fd_ < 0) *error = errno;
  return fd_;
}

Status SpillDisk::Create(const SpillDiskOptions& options, int pool_fd, uint64_t pool_bytes, uint64_t page_bytes,
                         std::unique_ptr<SpillDisk>* out) {
  std::unique_ptr<SpillDisk> disk(new SpillDisk());
  disk->options_ = options;
  disk->pool_bytes_ = pool_bytes;
  disk->event_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (disk->event_fd_ < 0) return Status::FromErrno("eventfd", errno);
  void* pool = mmap(nullptr, pool_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, pool_fd, 0);
  if (pool == MAP_FAILED) return Status::FromErrno("mapping the pool to spill from it", errno);
  madvise(pool, pool_bytes, MADV_DONTDUMP);
  disk->pool_ = static_cast<uint8_t*>(pool);
  disk->mapped_ = std::make_unique<MappedPages>(disk->pool_, pool_bytes, page_bytes);
  // Signals are the event loop's.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (int i = 0; i < std::max(1, options.threads); ++i) {
    disk->threads_.emplace_back([d = disk.get()] { d->Work(); });
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  *out = std::move(disk);
  return Status::Ok();
}

SpillDisk::~SpillDisk() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  if (pool_ != nullptr) munmap(pool_, pool_bytes_);
  if (event_fd_ >= 0) close(event_fd_);
}

void SpillDisk::Submit(DiskJob job) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    // Somebody waits for what is read; what is written makes room for many; the rest can wait.
    const auto at = std::find_if(jobs_.begin(), jobs_.end(), [&](const DiskJob& j) { return j.kind > job.kind; });
    jobs_.insert(at, std::move(job));
  }
  wake_.notify_one();
}

std::vector<DiskJob> SpillDisk::TakeDone() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(done_, {});
}

void SpillDisk::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
    if (stop_) return;
    DiskJob job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    if (job.kind == DiskJob::Kind::kWrite) {
      Write(&job);
    } else if (job.kind == DiskJob::Kind::kRead) {
      Read(&job);
    } else if (job.kind == DiskJob::Kind::kPunch) {
      int error = 0;
      const int fd = job.file->Fd(&error);
      // Refused by some file systems: then the space comes back with the whole file.
      if (fd >= 0) {
        static_cast<void>(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                    static_cast<off_t>(job.place.offset), static_cast<off_t>(job.place.bytes)));
      }
    }
    const bool told = job.kind == DiskJob::Kind::kWrite || job.kind == DiskJob::Kind::kRead;
    if (!told) job.file.reset();  // kClose: here, without the lock
    lock.lock();
    if (!told) continue;
    done_.push_back(std::move(job));
    const uint64_t one = 1;
    if (write(event_fd_, &one, sizeof(one)) < 0) continue;  // EAGAIN: it rings already
  }
}

void SpillDisk::Write(DiskJob* job) {
  const int fd = job->file->Fd(&job->error);
  if (fd < 0) return;
  struct statvfs disk;
  if (fstatvfs(fd, &disk) == 0 && disk.f_blocks > 0) {
    const double used = 1 - static_cast<double>(disk.f_bavail) / static_cast<double>(disk.f_blocks);
    if (used >= options_.disk_use_max) {
      job->error = ENOSPC;
      return;
    }
  }
  uint8_t* payload = pool_ + job->pool_offset;
  const uint64_t bytes = job->header.data_bytes + job->header.metadata_bytes;
  const uint64_t at = job->place.offset + kRecordHeaderBytes;
  Checksum sum;
  for (uint64_t from = 0; from < bytes && job->error == 0; from += kChunkBytes) {
    const uint64_t n = std::min(kChunkBytes, bytes - from);
    mapped_->Map(job->pool_offset + from, job->pool_offset + from + n, MappedPages::Reach::kChunks);
    sum.Add(payload + from, n);
    if (bytes <= kChunkBytes) break;  // goes with its header
    iovec part{payload + from, n};
    job->error = WriteAll(fd, &part, 1, at + from);
  }
  job->header.checksum = sum.value();
  iovec parts[2] = {{&job->header, kRecordHeaderBytes}, {payload, bytes}};
  if (job->error == 0) job->error = WriteAll(fd, parts, bytes > 0 && bytes <= kChunkBytes ? 2 : 1, job->place.offset);
}

void SpillDisk::Read(DiskJob* job) {
  const int fd = job->file->Fd(&job->error);
  if (fd < 0) return;
  RecordHeader found;
  job->error = ReadAll(fd, &found, sizeof(found), job->place.offset);
  if (job->error != 0) return;
  if (std::memcmp(&found, &job->header, sizeof(found)) != 0) {
    job->damaged = true;
    return;
  }
  uint8_t* payload = pool_ + job->pool_offset;
  const uint64_t bytes = job->header.data_bytes + job->header.metadata_bytes;
  Checksum sum;
  for (uint64_t from = 0; from < bytes; from += kChunkBytes) {
    const uint64_t n = std::min(kChunkBytes, bytes - from);
    mapped_->Map(job->pool_offset + from, job->pool_offset + from + n, MappedPages::Reach::kChunks);
    job->error = ReadAll(fd, payload + from, n, job->place.offset + kRecordHeaderBytes + from);
    if (job->error != 0) return;
    sum.Add(payload + from, n);
  }
  job->damaged = sum.value() != job->header.checksum;
}

}  // namespace ray::plasma
