// A client that writes what it likes into the memory it shares with the store: its journal, its pins, every slot and
// bucket. The store may lose or overwrite objects by that; it must neither touch memory that isn't its own nor go round
// in circles.
#include "fuzz/input.h"
#include "plasma/store.h"

using namespace ray::plasma;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

constexpr uint32_t kSlots = 64;
constexpr uint64_t kPoolBytes = 1 << 20;
constexpr int kClients = 3;

struct Client {
  std::unique_ptr<JournalHeader> header = std::make_unique<JournalHeader>();
  std::atomic<uint64_t> pins[kSlots] = {};
  ClientId id = 0;  // 0: gone
  std::vector<Lent> lent;
};

uint64_t Word(Input* in) { return StateWord(in->Byte() % 4, static_cast<State>(in->Byte() % 8)); }

struct World {
  World() {
    const uint32_t buckets = ObjectTable::BucketsFor(kSlots);
    base = std::aligned_alloc(kPageBytes, ControlBytes(kSlots, buckets));
    std::memset(base, 0, ControlBytes(kSlots, buckets));
    ObjectTable::Format(base, kSlots, buckets, kPoolBytes);
    table = ObjectTable(base);
    store.emplace(table, kPoolBytes);
    for (Client& c : clients) Add(&c);
  }
  ~World() {
    store.reset();
    std::free(base);
  }
  void Add(Client* c) { c->id = store->AddClient(1000, {c->header.get(), c->pins}); }

  // As an honest client does it, but for what the input adds.
  void Make(Input* in, Client* c) {
    if (c->lent.empty()) return;
    const Lent& lent = c->lent.back();
    const uint32_t slot = lent.slots[in->Byte() % lent.slots.size()];
    ray::ObjectId key{};
    key.bytes[3] = in->Byte() % 16;
    Slot& s = table.slot(slot);
    StoreKey(&s, key);
    s.offset = in->Byte() & 1 ? lent.offset : in->Size();
    s.data_bytes = in->Byte() & 1 ? lent.bytes : in->Size();
    s.metadata_bytes = in->Byte() & 1 ? 0 : in->Size();
    s.creator = c->id;
    s.last_used_ns = ++now;
    s.state = StateWord(GenerationOf(s.state), State::kCreated);
    table.Insert(slot, key, HashKey(key));
    if (in->Byte() & 3) s.state = StateWord(GenerationOf(s.state), State::kSealed);
  }
  void Scribble(Input* in) {
    Slot& s = table.slot(in->Below(kSlots));
    switch (in->Byte() % 8) {
      case 0:
      case 1:
        s.state = Word(in);
        break;
      case 2:
        s.next = in->Byte() & 1 ? in->Below(kSlots + 2) : in->Take<uint32_t>();
        break;
      case 3:
        s.offset = in->Size();
        break;
      case 4:
        s.data_bytes = in->Size();
        s.metadata_bytes = in->Size();
        break;
      case 5:
        s.last_used_ns = static_cast<int64_t>(in->Size());
        break;
      case 6:
        s.creator = in->Byte() % 5;
        s.key64[0] = in->Byte();
        break;
      default: {
        auto* buckets = reinterpret_cast<std::atomic<uint64_t>*>(static_cast<char*>(base) + kBucketsOffset);
        buckets[in->Below(kSlots)] = in->Byte() & 1 ? in->Below(kSlots + 2) : in->Take<uint64_t>();
      }
    }
  }
  void Tell(Input* in, Client* c) {
    JournalHeader& j = *c->header;
    RingEntry& e = j.ring[j.produced % kRingEntries];
    const uint32_t slot = in->Byte() & 7 ? in->Below(kSlots) : in->Take<uint32_t>();
    e.slot_and_op = uint64_t{in->Byte()} % 4 << 32 | slot;
    e.generation = in->Byte() % 4;
    j.produced += in->Byte() & 31 ? 1 : in->Size();
  }

  void* base;
  ObjectTable table;
  std::optional<Store> store;
  Client clients[kClients];
  int64_t now = 0;
  std::vector<SpillWrite> writing;
  std::vector<uint32_t> restoring;
};

void Step(World* w, Input* in) {
  Store& store = *w->store;
  const uint8_t op = in->Byte() % 16;
  Client& c = w->clients[in->Byte() % kClients];
  if (c.id == 0) w->Add(&c);
  switch (op) {
    case 0:
    case 1: {
      Lent lent;
      if (store.Lend(c.id, in->Size(), in->Byte() & 1, &lent, in->Byte() & 1 ? store.ReserveBytes() : 0) ==
          LendResult::kLent) {
        Require(lent.offset + lent.bytes <= kPoolBytes && !lent.slots.empty(), "what is lent is of the pool");
        for (uint32_t slot : lent.slots) Require(slot < kSlots, "slots are of the table");
        c.lent.push_back(lent);
      }
      break;
    }
    case 2:
    case 3:
      w->Make(in, &c);
      break;
    case 4:
    case 5:
      w->Scribble(in);
      break;
    case 6:
      w->Tell(in, &c);
      break;
    case 7:
      c.pins[in->Below(kSlots)] = in->Size();
      break;
    case 8:
      store.CloseLease(c.id, c.lent.empty() ? in->Byte() : c.lent.back().lease);
      if (!c.lent.empty()) c.lent.pop_back();
      break;
    case 9:
      store.ClientGone(c.id);
      c.id = 0;
      c.lent.clear();
      for (auto& pins : c.pins) pins = 0;
      break;
    case 10:
      store.Drain();
      store.ReclaimDeleted();
      break;
    case 11:
      store.Evict(in->Size());
      break;
    case 12: {
      std::vector<SpillWrite> writes;
      const uint64_t need = 1 + in->Take<uint16_t>() * 16;
      store.PlanSpill(need, need * 2, in->Byte() & 3, &writes);
      for (const SpillWrite& write : writes) {
        Require(write.slot < kSlots, "what is written is of the table");
        Require(write.offset <= kPoolBytes && write.data_bytes <= kPoolBytes - write.offset &&
                    write.metadata_bytes <= kPoolBytes - write.offset - write.data_bytes,
                "and its bytes of the pool");
        w->writing.push_back(write);
      }
      break;
    }
    case 13:
      if (w->writing.empty()) break;
      if (const SpillWrite& write = w->writing.back(); in->Byte() & 3) {
        store.SpillWritten(
            write.slot,
            {{1, 0, RecordBytes(write.data_bytes + write.metadata_bytes)}, write.data_bytes, write.metadata_bytes, 7});
      } else {
        store.SpillFailed(write.slot);
      }
      w->writing.pop_back();
      break;
    case 14: {
      const uint32_t slot = in->Below(kSlots);
      SpillRead read{};
      store.SpilledBytes(slot);
      if (store.StartRestore(slot, in->Byte() % 4, &read) == RestoreStep::kStarted) {
        Require(read.offset + read.copy.data_bytes + read.copy.metadata_bytes <= kPoolBytes,
                "it is read into the pool");
        w->restoring.push_back(slot);
      }
      break;
    }
    default:
      if (w->restoring.empty()) {
        store.set_watched(in->Byte() & 1);
        w->table.header()->subscribers = in->Byte() & 1;
        store.SealedNow();
        break;
      }
      store.EndRestore(w->restoring.back(), in->Byte() & 3);
      w->restoring.pop_back();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes > 4096) return 0;
  Input in(data, bytes);
  World w;
  while (!in.empty()) {
    Step(&w, &in);
    w.store->TakeEvents();
    w.store->TakeFreedDisk();
  }
  w.store->Holders();
  w.store->DescribeHolders();
  uint32_t cursor = 0;
  w.store->List(&cursor, 16);
  w.store->Audit();
  for (Client& c : w.clients) {
    if (c.id != 0) w.store->ClientGone(c.id);
  }
  w.store->Use();
  return 0;
}
