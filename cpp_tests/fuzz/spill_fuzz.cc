// What is read back from spill files, whatever has become of their bytes; and which place of a file is whose.
//
// Even first byte: records are written, the input changes the file, and each is read again: it is what was written, or
// it is said to be damaged. Odd: places are taken and freed in an order that the input chooses.
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "fuzz/input.h"
#include "plasma/spill_disk.h"

using namespace ray::plasma;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

constexpr uint64_t kPoolBytes = 1 << 20;
constexpr uint64_t kRecords = 3;

// One for all inputs: its thread and its pool are what a store has.
struct Disk {
  uint8_t* pool = nullptr;
  std::unique_ptr<SpillDisk> disk;

  Disk() {
    const int fd = memfd_create("spill-fuzz", MFD_CLOEXEC);
    Require(fd >= 0 && ftruncate(fd, kPoolBytes) == 0, "memfd");
    pool = static_cast<uint8_t*>(mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    Require(SpillDisk::Create({1, 1.0}, fd, kPoolBytes, 4096, &disk).ok(), "a disk");
    close(fd);
  }
  DiskJob Do(DiskJob job) {
    disk->Submit(std::move(job));
    for (;;) {
      pollfd p{disk->event_fd(), POLLIN, 0};
      poll(&p, 1, -1);
      uint64_t count;
      if (read(disk->event_fd(), &count, sizeof count) < 0) continue;
      std::vector<DiskJob> done = disk->TakeDone();
      if (!done.empty()) return std::move(done.front());
    }
  }
};

void Damage(Input* in) {
  static Disk* const disk = new Disk();
  // /tmp may be memory or not: what is read comes through the same calls.
  const auto file = std::make_shared<SpillFile>("/tmp");
  std::vector<DiskJob> written;
  std::vector<std::string> content;
  uint64_t end = 0;
  for (uint64_t i = 0; i < kRecords; ++i) {
    DiskJob job{};
    job.kind = DiskJob::Kind::kWrite;
    job.file = file;
    job.header.magic = kRecordMagic;
    std::memset(job.header.key.bytes, static_cast<int>('a' + i), sizeof job.header.key.bytes);
    job.header.data_bytes = in->Below(600);
    job.header.metadata_bytes = in->Byte() % 20;
    const uint64_t bytes = job.header.data_bytes + job.header.metadata_bytes;
    job.place = {0, end, RecordBytes(bytes)};
    end += RecordBytes(bytes);
    for (uint64_t k = 0; k < bytes; ++k) disk->pool[k] = static_cast<uint8_t>(k * 7 + i);
    content.emplace_back(reinterpret_cast<const char*>(disk->pool), bytes);
    DiskJob done = disk->Do(std::move(job));
    Require(done.error == 0, "it was written");
    written.push_back(std::move(done));
  }
  int error = 0;
  const int fd = file->Fd(&error);
  while (!in->empty()) {
    const uint8_t what = in->Byte();
    const uint64_t at = written[what / 64 % kRecords].place.offset + in->Below(700);  // the rest of it is padding
    if (what % 8 == 0) {
      Require(ftruncate(fd, static_cast<off_t>(at)) == 0, "cut short");
    } else if (what % 8 == 1) {  // a record where another was
      char record[700];
      const ssize_t n = pread(fd, record, sizeof record, static_cast<off_t>(written[what / 8 % kRecords].place.offset));
      const off_t to = static_cast<off_t>(written[at % kRecords].place.offset);
      if (n > 0) Require(pwrite(fd, record, static_cast<size_t>(n), to) == n, "laid over");
    } else {
      const std::string bytes = in->Bytes(what / 8 % 16 + 1);
      if (!bytes.empty()) {
        Require(pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(at)) > 0, "changed");
      }
    }
  }
  for (uint64_t i = 0; i < kRecords; ++i) {
    DiskJob job = written[i];
    job.kind = DiskJob::Kind::kRead;
    job.pool_offset = 4096 * (1 + i);
    std::memset(disk->pool, 0xee, kPoolBytes / 8);
    const DiskJob done = disk->Do(std::move(job));
    const uint8_t* read = disk->pool + done.pool_offset;
    if (done.error == 0 && !done.damaged) {
      Require(std::memcmp(read, content[i].data(), content[i].size()) == 0, "what is not said to be damaged is right");
    }
    Require(read[-1] == 0xee && read[content[i].size()] == 0xee, "no byte beside it is written");
  }
}

void Places(Input* in) {
  const SpillLimits limits{{"a", "b", "c"}, in->Byte() < 128 ? ~uint64_t{0} : in->Size(), 1 + in->Below(60'000)};
  SpillFiles files(limits);
  std::map<std::pair<uint64_t, uint64_t>, DiskPlace> taken;
  uint64_t bytes = 0;
  int64_t now = 0;
  while (!in->empty()) {
    const uint8_t what = in->Byte();
    now += in->Byte() * SpillFiles::kFullNs / 200;
    if (what < 140) {
      const auto place = files.Take(in->Below(20'000), now);
      if (!place) {
        Require(!files.Why().empty(), "it says why");
        continue;
      }
      const auto [at, is_new] = taken.emplace(std::pair(uint64_t{place->file}, place->offset), *place);
      Require(is_new, "no place is given twice");
      if (at != taken.begin()) {
        const DiskPlace& before = std::prev(at)->second;
        Require(before.file != place->file || before.offset + before.bytes <= place->offset, "nor one that overlaps");
      }
      if (std::next(at) != taken.end()) {
        const DiskPlace& after = std::next(at)->second;
        Require(after.file != place->file || place->offset + place->bytes <= after.offset, "nor behind it");
      }
      bytes += place->bytes;
      Require(files.bytes() == bytes && bytes <= limits.bytes_max, "the cap holds");
    } else if (what < 240 && !taken.empty()) {
      const auto at = std::next(taken.begin(), what % static_cast<int>(std::min<size_t>(taken.size(), 100)));
      files.Free(at->second);
      bytes -= at->second.bytes;
      taken.erase(at);
      Require(files.bytes() == bytes, "what is freed is free");
    } else {
      files.DirectoryFull(std::string(1, static_cast<char>('a' + what % 3)), "full", now);
    }
  }
  for (const auto& [key, place] : taken) files.Free(place);
  Require(files.bytes() == 0 && files.files() == 0, "in the end nothing is left");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input in(data, bytes);
  if (in.Byte() % 2 == 0) {
    Damage(&in);
  } else {
    Places(&in);
  }
  return 0;
}
