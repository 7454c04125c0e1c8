// See spiller.h.
#include "plasma/spiller.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "common/clock.h"

namespace ray::plasma {

namespace {
constexpr uint64_t kPoolShareOfBatch = 8;  // no batch empties more of a small pool than one part in so many

RecordHeader HeaderOf(const ObjectId& key, uint64_t data_bytes, uint64_t metadata_bytes, uint64_t checksum) {
  return {kRecordMagic, key, 0, data_bytes, metadata_bytes, checksum};
}
}  // namespace

Status Spiller::Create(const SpillOptions& options, Store* store, Pool* pool, std::unique_ptr<Spiller>* out) {
  std::unique_ptr<Spiller> spiller(new Spiller(options, store, pool));
  if (Status s = SpillDisk::Create(options.disk, pool->fd(), pool->bytes(), pool->page_bytes(), &spiller->disk_);
      !s.ok())
    return s;
  *out = std::move(spiller);
  return Status::Ok();
}

bool Spiller::MakeRoom(uint64_t bytes) {
  if (writing_ > 0) return true;
  const uint64_t batch = std::min(options_.batch_bytes, store_->extents().pool_bytes() / kPoolShareOfBatch);
  std::vector<SpillWrite> writes;
  if (!disk_full_.empty() && store_->PlanSpill(bytes, bytes, false, &writes)) return true;
  if (!store_->PlanSpill(bytes, std::max(bytes, batch), true, &writes)) return false;
  Sweep();  // what the plan has found deleted is room on disk
  bool refused = false;
  for (const SpillWrite& w : writes) {
    const auto place = refused ? std::nullopt : files_.Take(w.data_bytes + w.metadata_bytes, NowNs());
    if (!place) {
      refused = true;
      disk_full_ = files_.Why();
      store_->SpillFailed(w.slot);
      continue;
    }
    std::shared_ptr<SpillFile>& file = open_[place->file];
    if (file == nullptr) file = std::make_shared<SpillFile>(files_.DirectoryOf(place->file));
    DiskJob job{DiskJob::Kind::kWrite, file, *place};
    job.slot = w.slot;
    job.generation = w.generation;
    job.pool_offset = w.offset;
    job.header = HeaderOf(w.key, w.data_bytes, w.metadata_bytes, 0);
    ++writing_;
    disk_->Submit(std::move(job));
  }
  Sweep();
  // None of it could be placed: what is on disk already may be enough.
  return writing_ > 0 || !refused || store_->PlanSpill(bytes, bytes, false, &writes);
}

RestoreStep Spiller::Restore(uint32_t slot, uint64_t generation) {
  SpillRead read;
  const RestoreStep step = store_->StartRestore(slot, generation, &read);
  if (step != RestoreStep::kStarted) return step;
  DiskJob job{DiskJob::Kind::kRead, open_.at(read.copy.place.file), read.copy.place};
  job.slot = slot;
  job.generation = generation;
  job.pool_offset = read.offset;
  job.header = HeaderOf(read.key, read.copy.data_bytes, read.copy.metadata_bytes, read.copy.checksum);
  const uint64_t end = read.offset + ObjectExtentBytes(read.copy.data_bytes, read.copy.metadata_bytes);
  reading_bytes_ += job.header.data_bytes + job.header.metadata_bytes;
  pool_->RequestTouched(end);
  if (end > pool_->touched_bytes()) {
    untouched_.push_back(std::move(job));
  } else {
    ++reading_;
    disk_->Submit(std::move(job));
  }
  return step;
}

std::vector<Spiller::Restored> Spiller::Touched() {
  const uint64_t touched = pool_->touched_bytes();
  const bool capped = !pool_->error().empty();
  std::vector<Restored> aborted;
  std::erase_if(untouched_, [&](DiskJob& job) {
    const uint64_t bytes = job.header.data_bytes + job.header.metadata_bytes;
    if (job.pool_offset + bytes <= touched) {
      ++reading_;
      disk_->Submit(std::move(job));
      return true;
    }
    if (!capped) return false;
    reading_bytes_ -= bytes;
    store_->AbortRestore(job.slot);
    aborted.push_back({job.slot, false, true});
    return true;
  });
  return aborted;
}

std::vector<Spiller::Restored> Spiller::Finish() {
  std::vector<Restored> restored;
  for (DiskJob& job : disk_->TakeDone()) {
    const uint64_t bytes = job.header.data_bytes + job.header.metadata_bytes;
    if (job.kind == DiskJob::Kind::kRead) {
      --reading_;
      reading_bytes_ -= bytes;
      const bool ok = job.error == 0 && !job.damaged;
      if (ok) {
        ++counts_.restored_objects;
        counts_.restored_bytes += bytes;
      } else {
        ++counts_.damaged_objects;
        std::fprintf(stderr, "plasma_store: a spilled object of %llu bytes is lost: what %s gave back is %s\n",
                     static_cast<unsigned long long>(bytes), job.file->directory().c_str(),
                     job.error != 0 ? std::strerror(job.error) : "not what was written there");
      }
      store_->EndRestore(job.slot, ok);
      restored.push_back({job.slot, ok, false});
      continue;
    }
    --writing_;
    if (job.error == 0) {
      ++counts_.written_objects;
      counts_.written_bytes += bytes;
      disk_full_.clear();
      store_->SpillWritten(job.slot,
                           {job.place, job.header.data_bytes, job.header.metadata_bytes, job.header.checksum});
      continue;
    }
    store_->SpillFailed(job.slot);
    Free(job.place);
    files_.DirectoryFull(job.file->directory(), std::strerror(job.error), NowNs());
    disk_full_ = files_.Why();
  }
  Sweep();
  return restored;
}

void Spiller::Free(const DiskPlace& place) {
  const auto file = open_.find(place.file);
  const SpillFiles::Freed freed = files_.Free(place);
  if (file == open_.end() || freed == SpillFiles::Freed::kNothing) return;
  const bool all = freed == SpillFiles::Freed::kFile;
  disk_->Submit({all ? DiskJob::Kind::kClose : DiskJob::Kind::kPunch, file->second, place});
  if (all) open_.erase(file);
}

void Spiller::Sweep() {
  for (const DiskPlace& place : store_->TakeFreedDisk()) {
    Free(place);
    disk_full_.clear();
  }
}

}  // namespace ray::plasma
