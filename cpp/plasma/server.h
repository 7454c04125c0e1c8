// The sockets around Store: accepts, decodes, calls, encodes. The thread of plasma_store besides Pool's and
// SpillDisk's.
//
// A connection is a client from its Hello to the end of its process. It ends by its socket's end (the client library
// closes it only when no buffer is left) or its process's (pidfd: a forked child may keep the socket open); either
// undoes what it left. A connection that breaks the protocol is shut down at once, but what it pinned stays pinned
// until its process has ended.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/status.h"
#include "plasma/pool.h"
#include "plasma/protocol.h"
#include "plasma/spiller.h"
#include "plasma/store.h"
#include "plasma/waiters.h"

namespace ray::plasma {

struct ServerOptions {
  PoolOptions pool;
  SpillOptions spill;
  std::string socket_path;
  int lifeline_fd = -1;        // >= 0: end when its other end is closed, or the parent process has ended
  bool handle_signals = true;  // SIGTERM and SIGINT end Run()
};

class Server {
 public:
  // Creates the memory and listens. Replaces a socket file on which nobody listens; refuses one on which somebody does.
  static Status Create(const ServerOptions& options, std::unique_ptr<Server>* out);
  ~Server();

  // Serves until Stop, the lifeline or a signal; must run on the thread that called Create (it holds the life mutex).
  Status Run();
  // Any thread, or a signal handler.
  void Stop();

 private:
  struct Connection {
    int fd = -1;
    int pid_fd = -1;
    uint32_t pid = 0;
    ClientId client = 0;  // 0 before Hello
    FrameReader reader{kRequestBytesMax};
    std::string out;  // not yet taken by the kernel
    bool wants_write = false;
    bool subscribed = false;
    int64_t hello_deadline_ns = 0;
    void* journal = nullptr;
  };
  struct TouchWaiter {
    RoomWaiter waiter;
    Lent lent;
  };
  explicit Server(const ServerOptions& options) : options_(options) {}

  Status CreateTable();
  Status Listen();
  Status WatchFds();
  int TimeoutMs() const;
  void Accept();
  void Readable(uint64_t id);
  // False: the frame breaks the protocol.
  bool Handle(uint64_t id, Connection& c, const FrameHeader& header, std::span<const uint8_t> payload);
  bool HandleHello(uint64_t id, Connection& c, std::span<const uint8_t> payload);
  bool HandleLend(uint64_t id, Connection& c, uint64_t request, std::span<const uint8_t> payload);
  bool HandleRestore(uint64_t id, uint64_t request, std::span<const uint8_t> payload);
  bool HandleAhead(std::span<const uint8_t> payload);
  bool HandleWatch(uint64_t id, uint64_t request, std::span<const uint8_t> payload);
  void HandleList(uint64_t id, uint64_t request, uint32_t cursor);
  void HandleStats(uint64_t id, uint64_t request);

  // Answers, or parks until touched; false: no room.
  bool TryLend(const RoomWaiter& w) { return TryLend(w, store_->ReserveBytes()); }
  bool TryLend(const RoomWaiter& w, uint64_t reserve_bytes);
  void AnswerLent(Asker asker, const Lent& lent);
  void Refuse(Asker asker, StatusCode code, const std::string& text);
  void WaitForRoom(const RoomWaiter& waiter);
  bool TryRestore(const RoomWaiter& w);
  void ReadOn(const RoomWaiter& w);
  bool TryRoom(const RoomWaiter& w) { return w.restore_slot == kNoSlot ? TryLend(w) : TryRestore(w); }
  enum class Help { kNone, kDone, kComing };
  Help MakeRoomFor(const RoomWaiter& w);  // kDone: it has been answered
  void AnswerRestored(const std::vector<Spiller::Restored>& restored);
  void ForgetRestores(uint64_t connection);
  void RetryRoom();
  void RefuseLate(int64_t now_ns);
  std::string WhyFull();
  void Touched();
  void Progress();  // hands out events, retries writers that wait, ends those whose time is up
  void Send(uint64_t id, Message type, uint64_t request, const void* body, size_t bytes, const void* tail = nullptr,
            size_t tail_bytes = 0);
  void Flush(uint64_t id, Connection& c);
  void Expel(uint64_t id, const char* why);  // broke the protocol, or does not read
  void Gone(uint64_t id);                    // its socket or process has ended: undo
  void UpdateWatched();

  ServerOptions options_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<SealWatches> seal_watches_;
  ObjectTable table_;
  void* control_ = nullptr;
  size_t control_bytes_ = 0;
  int control_fd_ = -1, listen_fd_ = -1, epoll_fd_ = -1, doorbell_fd_ = -1, stop_fd_ = -1, signal_fd_ = -1,
      parent_fd_ = -1;
  int spare_fd_ = -1;  // given up for a moment to accept and refuse when descriptors run out
  bool bound_ = false;
  bool stopping_ = false;
  bool room_changed_ = false;  // something was freed since the waiters were last tried
  bool pool_capped_ = false;
  std::map<uint64_t, Connection> connections_;
  RoomQueue room_queue_;
  std::list<TouchWaiter> touch_waiters_;
  std::unique_ptr<Spiller> spiller_;                     // null: nothing is spilled
  std::multimap<uint32_t, RoomWaiter> restore_waiters_;  // by slot that is being read
  std::map<uint64_t, ReadAhead> read_ahead_;             // by connection
  std::optional<Asker> spilling_for_;                    // whom the room that is being made is for: others wait
  uint64_t next_connection_ = 1;
  uint64_t subscribers_ = 0;
  uint64_t connections_refused_ = 0;
};

}  // namespace ray::plasma
