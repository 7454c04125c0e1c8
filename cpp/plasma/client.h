// A process's hold on the store: maps the memory, finds, pins, creates and seals in it. Client process.
//
// Memory: the pool is mapped twice. `get` hands out addresses in a mapping that is read-only, so that sealed bytes
// cannot be changed through it by any program error; `create` hands out addresses in a writable one, to be used between
// create and seal only. A forked child inherits the read-only mapping alone and must connect anew for anything else.
//
// Threads: any, at once. What is called Try... or Unpin never blocks and makes no system call (but for the doorbell,
// when somebody is waiting for just this); the rest may ask the store and wait: call it without Python's lock.
//
// If the store dies, each call says kDisconnected, and what is mapped stays readable.
// If this process dies at any instruction, the store undoes what it left (recovery.cc).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/status.h"
#include "plasma/mapped_pages.h"
#include "plasma/object_table.h"
#include "plasma/protocol.h"
#include "plasma/store_connection.h"

namespace ray::plasma {

// Objects up to this size are made in an extent that the client has been lent already; larger ones each in their own.
constexpr uint64_t kSmallObjectBytesMax = 128 << 10;

// One object, pinned once by whoever got this.
struct Place {
  uint8_t* address = nullptr;  // of the data; metadata follows. Writable only if it came from a create
  uint64_t data_bytes = 0;
  uint64_t metadata_bytes = 0;
  uint32_t slot = kNoSlot;
  uint64_t generation = 0;
};

enum class Step {
  kDone,
  kAbsent,   // no such object (get, pin, delete, seal)
  kExists,   // an object of that key is there (create)
  kAsk,      // the store must be asked: call the function named in the comment, then try again
  kSpilled,  // there and pinned, but on disk: call Restore (get)
  kDied,     // no store, or we are a forked child
};

class Client {
 public:
  static Status Connect(const std::string& socket_path, const Patience& patience, std::shared_ptr<Client>* out);
  ~Client();

  // ---- without asking. kAsk: MakeRoom (create), Sync (others), then again.

  // Makes an unsealed object and pins it.
  Step TryCreate(const ObjectId& key, uint64_t data_bytes, uint64_t metadata_bytes, Place* out);
  Step TryGet(const ObjectId& key, Place* out);
  // Seals an object that this client has created. kAbsent: it has not, or it is sealed.
  Step TrySeal(const ObjectId& key);
  Step TrySealSlot(uint32_t slot, uint64_t generation);
  Step TryAbort(const ObjectId& key);
  Step TryDelete(const ObjectId& key);
  // Nobody owns the object any more: it goes as soon as nobody pins it, which may be now. kAbsent: there is none.
  Step TryLapse(const ObjectId& key);
  // A pin of ours is gone that may have been the last one of a lapsed object: the store looks at once.
  void Unpinned(const ObjectId& key);
  Step Contains(const ObjectId& key) const;
  // Plain pins, counted by key. They keep the object, not its place in memory: it may be spilled meanwhile.
  Step TryPin(const ObjectId& key);
  bool UnpinKey(const ObjectId& key);
  // Undoes the pin of a Place. Also after the store's death and in a forked child (no effect).
  void Unpin(uint32_t slot);
  // One pin more of an object that the caller has pinned.
  void PinAgain(uint32_t slot) {
    if (!Forked()) pins_[slot].fetch_add(kReading, std::memory_order_relaxed);
  }
  // Whether the object is still the one of that generation, and unsealed.
  bool Unsealed(uint32_t slot, uint64_t generation) const;
  // A forked child holds no store: its parent does.
  bool forked() const { return Forked(); }
  bool died() const { return Forked() || StoreDied(table_.header()); }

  // ---- asking

  // Gets room for one object of that size: kOutOfMemory with a text on who holds what, once patience.deadline has
  // passed; kTooLarge; kDisconnected.
  Status MakeRoom(uint64_t data_bytes, uint64_t metadata_bytes, const Patience& patience);
  // The same for a thread that may not wait: asks, and returns. *request 0: there may be room at once, create again.
  // Else watch connection_fd(), Receive when it is readable, and TakeRoom until it says true; then *status is
  // MakeRoom's.
  Status StartRoom(uint64_t data_bytes, uint64_t metadata_bytes, uint64_t* request);
  Status Receive() { return connection_->Receive(); }
  bool TakeRoom(uint64_t request, bool exact, Status* status);
  void CancelRoom(uint64_t request) { connection_->Cancel(request); }
  static bool ExactRoom(uint64_t data_bytes, uint64_t metadata_bytes) {
    return ObjectExtentBytes(data_bytes, metadata_bytes) > kSmallObjectBytesMax;
  }
  Status Sync(const Patience& patience);
  // After a TryGet that said kSpilled: waits until the bytes are in memory, and completes *place. Refused
  // (kOutOfMemory, kOutOfDisk, kNotFound: deleted or damaged, kDisconnected), the pin is undone. patience is with a
  // store that has no room; kTimedOut: it was not here, for whatever reason, by give_up_ns (CLOCK_MONOTONIC).
  Status Restore(const Patience& patience, Place* place, int64_t give_up_ns = INT64_MAX);
  // The same for a thread that may not wait: asks. When connection_fd() is readable, Receive, and TakeRestored until it
  // says true; then *status is Restore's.
  Status StartRestore(const Place& place, uint64_t* request);
  bool TakeRestored(uint64_t request, Place* place, Status* status);
  // Asks the store to begin bringing back those of keys that are on disk, as far as there is room, because they will be
  // wanted soon. Waits for nothing. How many are on disk: in *spilled.
  Status Ahead(const std::vector<ObjectId>& keys, size_t* spilled);
  // Waits until every key is sealed (one may be gone again by the time this returns). kTimedOut.
  Status WaitSealed(const std::vector<ObjectId>& keys, const Patience& patience);
  Status Evict(uint64_t bytes, const Patience& patience, uint64_t* freed);
  Status Stats(const Patience& patience, StatsAnswer* out);
  Status Text(Message which, const Patience& patience, std::string* out);  // kAudit, kHolders
  // Appends (Row, pids...) as the protocol has them, all of the table.
  Status List(const Patience& patience, std::vector<std::pair<Row, std::vector<uint32_t>>>* out);
  Status Subscribe();
  Status NextEvents(const Patience& patience, std::vector<EventRow>* out);

  // Gives back the extent in use and all plain pins; later creates ask for another. What buffers pin stays pinned.
  void Release();

  // Copies into a created object. Several threads for large ones; maps fresh pages in bulk first.
  void Copy(void* dest, const void* source, size_t bytes);
  // Puts the pages of a created object's bytes into our page table, in bulk: for bytes that the kernel is to write
  // there.
  void Prepare(const void* dest, size_t bytes);

  // Whether this store has ever spilled anything: one load. While it has not, Ahead has nothing to do.
  bool has_spilled() const { return table_.header()->has_spilled.load(std::memory_order_relaxed) != 0; }
  uint64_t pool_bytes() const { return pool_bytes_; }
  uint32_t store_pid() const { return static_cast<uint32_t>(table_.header()->server_pid); }
  uint64_t id() const { return id_; }
  int connection_fd() const { return connection_->fd(); }
  // A pidfd of the store's process: readable once it has died.
  int death_fd() const { return death_fd_; }

 private:
  struct Extent {
    uint64_t lease = 0;
    uint64_t at = 0, end = 0;
    std::vector<uint32_t> slots;
    size_t next_slot = 0;
  };
  Client() = default;
  Status Map(const Welcome& welcome, const int* fds);
  bool Forked() const;
  // mutex_ held. Fills a lent slot and publishes it.
  Step Publish(uint32_t slot, uint64_t offset, const ObjectId& key, uint64_t data_bytes, uint64_t metadata_bytes,
               Place* out);
  // pin: kReading or kKeeping. kSpilled: pinned too.
  Step FindAndPin(const ObjectId& key, uint64_t pin, Found* out);
  void Unpin(uint32_t slot, uint64_t pin);
  void Describe(uint32_t slot, Place* out);
  bool PushRing(RingOp op, uint32_t slot, uint64_t generation);  // mutex_ held; false: full
  void RingDoorbell();
  // What MakeRoom and StartRoom have in common. True: there may be room already.
  bool AskForRoom(uint64_t bytes, bool exact, LendRequest* request);
  Status RoomFrom(const Answer& answer, bool exact);
  Status CheckRoom(uint64_t data_bytes, uint64_t metadata_bytes) const;

  uint64_t id_ = 0;
  uint64_t fork_count_ = 0;
  int32_t own_pid_ = 0;  // of the process that connected
  std::unique_ptr<StoreConnection> connection_;
  ObjectTable table_;
  JournalHeader* journal_ = nullptr;
  std::atomic<uint64_t>* pins_ = nullptr;
  uint8_t* readable_ = nullptr;
  uint8_t* writable_ = nullptr;
  void* control_ = nullptr;
  uint64_t control_bytes_ = 0, pool_bytes_ = 0, journal_bytes_ = 0;
  std::unique_ptr<MappedPages> mapped_;  // of the writable mapping
  int doorbell_fd_ = -1, death_fd_ = -1;

  std::mutex mutex_;         // guards all below; held for nanoseconds, never across a system call but the doorbell
  Extent extent_;            // for small objects
  std::vector<Extent> own_;  // each for one large object that is about to be created
  std::unordered_map<std::string, std::vector<uint32_t>> plain_pins_;
  uint64_t deleted_bytes_ = 0;  // since the doorbell was last rung
};

}  // namespace ray::plasma
