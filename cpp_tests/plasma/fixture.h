// What the tests of the server share: a store on a thread of this process, keys, and objects whose bytes can be
// checked.
#pragma once

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "plasma/client.h"
#include "plasma/server.h"

namespace ray::plasma {

// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    char path[] = "/tmp/plasma-test-XXXXXX";
    path_ = mkdtemp(path);
  }
  ~TemporaryFolder() {
    unlink((path_ + "/p.sock").c_str());
    rmdir(path_.c_str());
  }
  std::string socket() const { return path_ + "/p.sock"; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A store on a thread of its own, gone when this is.
class StoreThread {
 public:
  explicit StoreThread(uint64_t pool_bytes, SpillOptions spill = {}) {
    thread_ = std::thread([this, pool_bytes, spill] {
      ServerOptions options;
      options.pool.bytes = pool_bytes;
      options.socket_path = folder_.socket();
      options.handle_signals = false;
      options.spill = spill;
      std::unique_ptr<Server> server;
      const Status status = Server::Create(options, &server);
      if (!status.ok()) std::fprintf(stderr, "store: %s\n", status.message().c_str());
      {
        std::lock_guard<std::mutex> lock(mutex_);
        server_ = server.get();
        started_ = true;
      }
      changed_.notify_all();
      if (server != nullptr) status_ = server->Run();
      std::lock_guard<std::mutex> lock(mutex_);  // not while Stop is using it
      server.reset();
    });
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return started_; });
  }
  ~StoreThread() { Stop(); }
  void Stop() {
    if (!thread_.joinable()) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (server_ != nullptr) server_->Stop();
    }
    thread_.join();
  }
  std::string socket() const { return folder_.socket(); }
  std::shared_ptr<Client> Connect() const {
    std::shared_ptr<Client> client;
    const Status status = Client::Connect(folder_.socket(), {}, &client);
    if (!status.ok()) std::fprintf(stderr, "connect: %s\n", status.message().c_str());
    return client;
  }

 private:
  TemporaryFolder folder_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  Server* server_ = nullptr;
  Status status_;
  std::thread thread_;
};

inline ObjectId Key(uint64_t n) {
  uint8_t bytes[28] = {};
  std::memcpy(bytes, "test", 4);
  std::memcpy(bytes + 16, &n, 8);
  return ObjectId::FromBytes(bytes);
}
inline uint64_t NumberOf(const ObjectId& key) {
  uint64_t n;
  std::memcpy(&n, key.bytes + 16, 8);
  return n;
}

inline Patience Within(double seconds) { return {NowNs() + static_cast<int64_t>(seconds * 1e9), nullptr}; }

// Bytes that follow from the key, so that whoever finds the object can tell whether they are there: both ends of it and
// one byte in each page between.
template <typename Visit>
void EachMarkedByte(uint64_t bytes, uint64_t n, Visit visit) {
  constexpr uint64_t kEnd = 128;
  for (uint64_t i = 0; i < bytes; i += i < kEnd || i + kEnd >= bytes ? 1 : std::min<uint64_t>(4096, bytes - kEnd - i)) {
    visit(i, static_cast<uint8_t>((n * 2654435761u + i * 40503u) >> 7));
  }
}
inline void Fill(uint8_t* address, uint64_t bytes, uint64_t n) {
  EachMarkedByte(bytes, n, [&](uint64_t i, uint8_t byte) { address[i] = byte; });
}
inline bool Right(const uint8_t* address, uint64_t bytes, uint64_t n) {
  bool right = true;
  EachMarkedByte(bytes, n, [&](uint64_t i, uint8_t byte) { right = right && address[i] == byte; });
  return right;
}

// Create, asking for room as long as `seconds`.
inline Step Create(Client* c, const ObjectId& key, uint64_t bytes, Place* place, double seconds = 5,
                   std::string* why = nullptr) {
  const Patience patience = Within(seconds);
  for (;;) {
    const Step step = c->TryCreate(key, bytes, 0, place);
    if (step != Step::kAsk) return step;
    const Status status = c->MakeRoom(bytes, 0, patience);
    if (status.ok()) continue;
    if (why != nullptr) *why = status.message();
    return status.code() == StatusCode::kDisconnected ? Step::kDied : Step::kAsk;
  }
}
inline Step Put(Client* c, uint64_t n, uint64_t bytes, double seconds = 5, std::string* why = nullptr) {
  Place place;
  if (const Step step = Create(c, Key(n), bytes, &place, seconds, why); step != Step::kDone) return step;
  Fill(place.address, bytes, n);
  Step step = c->TrySealSlot(place.slot, place.generation);
  c->Unpin(place.slot);
  if (step == Step::kAsk) step = c->Sync({}).ok() ? Step::kDone : Step::kDied;
  return step;
}
inline Step Get(Client* c, uint64_t n, Place* place) {
  for (;;) {
    const Step step = c->TryGet(Key(n), place);
    if (step != Step::kAsk) return step;
    if (!c->Sync({}).ok()) return Step::kDied;
  }
}
inline Step Delete(Client* c, uint64_t n) {
  for (;;) {
    const Step step = c->TryDelete(Key(n));
    if (step != Step::kAsk) return step;
    if (!c->Sync({}).ok()) return Step::kDied;
  }
}
inline std::string Audit(Client* c) {
  std::string text;
  const Status status = c->Text(Message::kAudit, {}, &text);
  return status.ok() ? text : status.message();
}
inline StatsAnswer Stats(Client* c) {
  StatsAnswer stats{};
  static_cast<void>(c->Stats({}, &stats));
  return stats;
}

}  // namespace ray::plasma
