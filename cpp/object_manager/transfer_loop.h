// The object manager of one store: a thread of plasma_store that fetches objects from other stores and serves ours.
//
// THREAD of plasma_store, beside the store's own loop, of which it is a client like any other (plasma/client.h): so no
// transfer delays a small request, every rule about pins and extents holds for it, and what it holds goes with it. It
// starts asleep and connects to the store when it is first asked for something. Owns: the local socket (lines), the
// connections to other stores (streams), the pins of holds, of answered pulls and of objects being served. Decides
// nothing: PullQueue and PushQueue do, this carries out.
//
// A local process that dies: its line ends, and with it its pulls and their pins, and what other stores hold for it
// is freed there. What is held here for an owner elsewhere is tied to no line: it ends by kFree or kOwnerDead. A store
// that dies: its streams end; pulls go on from other sources, copies being sent there are unpinned.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/status.h"
#include "object_manager/pull_queue.h"
#include "object_manager/push_queue.h"
#include "object_manager/stream.h"
#include "plasma/client.h"

namespace ray::objects {

struct TransferOptions {
  std::string socket_path;     // where local processes ask; replaces a dead file of that name
  std::string plasma_socket;   // of the store of this process
  channel::Identity identity;  // shown to other stores; network_proof must be set
  // Where the gate of this node is reached, if it's known already. Whoever fetches before it's known can't be told when
  // the object is freed.
  std::optional<Address> reached_at;
};

class TransferLoop final : public Stream::Handler {
 public:
  // Listens and starts the thread.
  static Status Start(const TransferOptions& options, std::unique_ptr<TransferLoop>* out);
  // Ends the thread. The store's server must have ended its connections before, or still run: the thread may be asking
  // it.
  ~TransferLoop() override;

 private:
  // Of objects: at which stores.
  using Places = std::unordered_map<ObjectId, std::vector<Address>, KeyHash>;
  struct LineConn {
    int fd = -1;
    FrameReader reader{kLineBytesMax};
    std::string out;
    bool wants_write = false;
    std::deque<int> fds;  // received, not yet claimed by a frame
    Places owned;         // what other stores hold for this process
    Places claims;        // what it keeps at other stores, of other owners
  };
  struct PeerConn {
    std::unique_ptr<Stream> stream;
    std::optional<Address> where;  // dialled: whom; accepted: what it said of itself
    int64_t hello_deadline_ns = 0;
    bool watched_write = false;
    std::unordered_map<ObjectId, uint32_t, KeyHash> claims;  // what processes of its node keep here: how many
  };
  // An object that a puller has asked for.
  struct Serving {
    ObjectId key;
    const uint8_t* base = nullptr;  // null: nothing of it is here yet
    uint64_t data_bytes = 0, metadata_bytes = 0, at = 0;
    uint32_t slot = plasma::kNoSlot;  // pinned for this transfer; kNoSlot: partial, it lives as long as the pull
    bool asked = false;               // kSizes is owed
    bool flowing = false;
    bool ended = false;  // by the puller, but a chunk of it is on its way
    uint64_t total() const { return data_bytes + metadata_bytes; }
  };
  // Where a pull's bytes go.
  struct Extent {
    plasma::Place place;
    uint64_t prepared = 0;  // bytes at its front whose pages are in our page table
  };
  // A claim of a local process that another store has not answered yet.
  struct Claiming {
    uint64_t peer;  // 0: it could not be asked yet
    uint64_t line, request;
  };
  // Held for a process that has died, at another store.
  struct Lapsing {
    int64_t at_ns;
    Address home;
    ObjectId key;
  };
  struct Room {
    ObjectId key;
    uint64_t data_bytes, metadata_bytes;
  };
  struct Said {
    Peer what;
    ObjectId key;
    uint64_t request;
  };
  // An object that another store was told to free, or that its owner has died.
  struct Ended {
    int64_t at_ns;
    Address home;
    Peer what;
  };
  // What another store must hear of objects that it holds, as soon as it can be reached.
  struct Owed {
    std::vector<Said> frames;
    int64_t since_ns = 0, again_ns = 0;  // when it is dialled again
  };

  explicit TransferLoop(const TransferOptions& options) : options_(options) {}
  Status Open();
  void ReachedAt(const Address& address);
  void Run();
  int TimeoutMs() const;
  bool Watch(int fd, uint64_t id, bool write, bool fresh);

  // ---- transfer_lines.cc
  void FreeAt(const Address& home, const ObjectId& key);
  // A store that cannot be reached at this moment hears of it later. False: it is dead, and what it held is gone.
  bool Say(const Address& to, Peer what, const ObjectId& key, uint64_t request = 0);
  void Send(PeerConn& peer, const Said& said);
  void Remember(const Address& home, const Said& said);
  void Claimed(uint64_t claim, bool kept);
  static bool Forget(Places& places, const ObjectId& key, const Address& address);  // false: it is not there
  void AcceptLines();
  void LineReadable(uint64_t id);
  bool OnLine(uint64_t id, LineConn& line, const FrameHeader& header, std::span<const uint8_t> payload);
  void Answer(uint64_t id, Line type, uint64_t request, const void* body, size_t bytes);
  void FlushLine(uint64_t id, LineConn& line);
  void LineGone(uint64_t id);
  Stats CountAll() const;

  // ---- transfer_store.cc: our own store
  plasma::Client* Store();  // null: it cannot be reached
  // spilled: it is pinned, but on disk, and has no address yet.
  bool PinHere(const ObjectId& key, plasma::Place* place, bool* spilled = nullptr);
  void Bring(const ObjectId& key, const plasma::Place& place);  // takes over the pin of one that is spilled
  void RestoresAnswered();
  void ServePinned(const ObjectId& key, const plasma::Place& place);  // those who wait for it, each with his own pin
  void DeleteHere(const ObjectId& key);
  void LapseHere(const ObjectId& key);  // it goes unless somebody has it pinned, and then with the last pin
  bool Hold(const ObjectId& key);       // false: there is no such object, or its owner has freed it already
  std::optional<uint64_t> GenerationHere(const ObjectId& key);
  void Free(const ObjectId& key);
  void FreeCopies(const ObjectId& key);
  // Told by the store of its owner's node, which may have been given up while it lived, and doesn't know who has kept
  // it since then: those keep it.
  void FreedByOwner(const ObjectId& key);
  uint64_t OwnerDead(std::span<const uint8_t> prefix);
  bool IsOrphan(const ObjectId& key) const;  // its owner is known to be dead
  // Its owner has died: what we hold for it, and our copies elsewhere, go unless somebody keeps them.
  void Lapse(const ObjectId& key);
  // For a process of the peer's node, who keeps it beside its owner. False: there is no such object.
  bool Claim(PeerConn& peer, const ObjectId& key);
  void Unclaim(PeerConn& peer, const ObjectId& key);
  void TryRoom(const Room& room);
  void RoomsAnswered();
  void ForgetRoom(const ObjectId& key);
  void SealPulled(const ObjectId& key);

  // ---- transfer_peers.cc
  PeerConn* Dial(const Address& address, Status* status);
  void Adopt(int fd);
  void PeerEvent(uint64_t id, uint32_t events);
  void PeerGone(uint64_t id, const std::string& why);
  void PeerDown(const Address& address);
  void DialOwed(int64_t now_ns);
  std::map<Address, Owed>::iterator DropOwed(std::map<Address, Owed>::iterator owed);
  // The connection to it ended, and with it what our processes had claimed there. Who is back before the owner's end
  // keeps it.
  void ClaimAgain(const Address& home);
  // What it was told to free lately may have been on its way when the connection ended.
  void EndAgain(const Address& home);
  void Owe(const Address& home, const Said& said);
  void Pump(uint64_t id, PeerConn& peer);
  bool OnFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload) override;
  bool OnPullerFrame(Stream& stream, PeerConn& peer, const FrameHeader& header, std::span<const uint8_t> payload);
  bool OnServerFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload);
  uint8_t* ChunkRoom(Stream& stream, uint64_t transfer, uint64_t* room) override;
  void ChunkCame(Stream& stream, uint64_t transfer, uint64_t bytes) override;
  bool NextChunk(Stream& stream, uint64_t* transfer, const uint8_t** data, uint32_t* bytes) override;
  void ChunkSent(Stream& stream, uint64_t transfer, uint32_t bytes) override;
  void Proved(Stream& stream) override;
  bool Asked(Stream& stream, uint64_t transfer, const AskBody& ask);
  uint64_t Available(const Serving& serving) const;  // bytes at its front that are here
  void SendSizes(PushId push, Serving& serving);
  void EndServing(PushId push);
  void ForgetServing(PushId push);
  void PartialGrew(const ObjectId& key);
  void PartialGone(const ObjectId& key);

  void Act();  // carries out what the queues have decided, until they want nothing more
  void Do(const PullAction& action);
  void Do(const PushAction& action);

  TransferOptions options_;  // identity.tag: set once it is known where the store is reached
  std::thread thread_;
  int epoll_fd_ = -1, listen_fd_ = -1, stop_fd_ = -1;
  bool bound_ = false;
  uint64_t next_id_ = 16;

  PullQueue pulls_;
  PushQueue pushes_;
  std::map<uint64_t, LineConn> lines_;
  std::map<uint64_t, PeerConn> peers_;
  std::map<Address, uint64_t> links_;                  // dialled peers
  std::unordered_map<TransferId, uint64_t> asked_of_;  // our transfers: the peer asked
  std::optional<Address> self_;
  std::map<Address, Owed> owed_;

  std::shared_ptr<plasma::Client> store_;
  std::unordered_map<ObjectId, Extent, KeyHash> extents_;  // of pulls
  std::map<uint64_t, Room> rooms_;                         // by the store's request
  std::vector<uint32_t> loose_pins_;                       // slots, until Act is through
  std::map<PullAsker, uint32_t> pins_;                     // slots, of answered pulls
  std::unordered_set<ObjectId, KeyHash> holds_;
  std::set<std::string> dead_owners_;  // tags, and the four bytes that the tags of a dead node's processes begin with
  std::deque<std::string> died_;       // the same, the oldest first
  std::unordered_map<ObjectId, uint64_t, KeyHash> freed_unheld_;     // their generations: freed before they were held
  std::unordered_map<ObjectId, std::vector<Ended>, KeyHash> ended_;  // said to have ended, for kEndedNs
  std::deque<std::pair<int64_t, ObjectId>> ended_at_;                // the oldest first
  std::deque<Lapsing> lapsing_;                                      // the first is due first
  std::map<uint64_t, Claiming> claiming_;                            // by our request
  std::map<uint64_t, std::pair<ObjectId, plasma::Place>> restores_;  // being brought from disk, by the store's request
  std::map<PushId, Serving> servings_;
  std::unordered_map<ObjectId, std::vector<PushId>, KeyHash> partial_;  // servings without a pin of their own
  std::map<uint64_t, TransferId> turn_;                                 // by peer: whose chunk was the last

  uint64_t bytes_in_ = 0, bytes_out_ = 0, bad_frames_ = 0, freed_ = 0;
};

}  // namespace ray::objects
