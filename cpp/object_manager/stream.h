// One TCP connection between two object managers: the greeting, frames in and out, and chunks that go from the socket
// straight into an extent, or from an object straight into the socket.
//
// Object manager's thread; never blocks. What the bytes mean is the Handler's. A peer that breaks the protocol, does
// not prove itself or goes ends the stream: Readable and Writable say so, with the reason; nothing is sent or received
// after that.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "channel/handshake.h"
#include "channel/tls.h"
#include "object_manager/wire.h"

namespace ray::objects {

class Stream {
 public:
  class Handler {
   public:
    virtual ~Handler() = default;
    // A whole frame that is no chunk, of a header that is allowed. False: it does not fit its type.
    virtual bool OnFrame(Stream& stream, const FrameHeader& header, std::span<const uint8_t> payload) = 0;
    // Where the next bytes of that transfer go. *room: how many may come, 0 if the transfer was let go (they are read
    // and forgotten).
    virtual uint8_t* ChunkRoom(Stream& stream, uint64_t transfer, uint64_t* room) = 0;
    virtual void ChunkCame(Stream& stream, uint64_t transfer, uint64_t bytes) = 0;
    // The next chunk to send: false, none now. The bytes must stay until ChunkSent.
    virtual bool NextChunk(Stream& stream, uint64_t* transfer, const uint8_t** data, uint32_t* bytes) = 0;
    virtual void ChunkSent(Stream& stream, uint64_t transfer, uint32_t bytes) = 0;
    virtual void Proved(Stream& stream) = 0;
  };

  // fd: taken over. wanted: whose store was dialled, the tag that the peer must prove to be its own (StoreTag); null:
  // accepted. Dialled streams pull, accepted ones serve. With self.tls all but the preamble, which a dialling side
  // sends first, goes through TLS.
  Stream(uint64_t id, int fd, const channel::Identity& self, const Tag* wanted, Handler* handler);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  uint64_t id() const { return id_; }
  int fd() const { return fd_; }
  bool dialled() const { return dialled_; }
  bool proved() const { return proved_; }

  // Queues a frame; it leaves with the next Writable.
  void Send(Peer type, uint64_t request, const void* body = nullptr, size_t bytes = 0);
  void Send(Peer type, uint64_t request, const std::string& body) { Send(type, request, body.data(), body.size()); }

  // Both: false once the stream has ended; why() says of what. Each does a bounded share of the work: the poll is level
  // triggered.
  bool Readable();
  bool Writable();
  // Whether Writable has something to do as soon as the socket takes more.
  bool wants_write() const { return !idle_; }
  void Wake() { idle_ = false; }
  // The transfer whose chunk is on its way, or 0.
  uint64_t sending() const { return chunk_transfer_; }

  // Ends it at our side: the peer sees the connection close.
  void Abandon(const std::string& why) { End(why); }
  const std::string& why() const { return why_; }
  bool misbehaved() const { return misbehaved_; }
  // Not proved, but it has said hello, and has our answer or will get it.
  bool half_way() const { return handshake_.half_way(); }
  // It could not be made: the machine says that no node listens there any more.
  bool nobody_listens() const { return nobody_listens_; }

 private:
  bool End(const std::string& why, bool misbehaved = false);
  bool ReadGreeting();
  bool ReadHeader();
  bool ReadControl();
  bool ReadChunk(size_t* budget);
  bool HeaderCame();
  ssize_t Recv(void* to, size_t bytes);
  ssize_t RecvChunk(uint8_t* to, size_t bytes, FrameHeader* next);
  bool Failed();

  const uint64_t id_;
  const int fd_;
  const bool dialled_;
  Handler* const handler_;
  channel::Handshake handshake_;
  bool proved_ = false, ended_ = false, misbehaved_ = false, idle_ = false, nobody_listens_ = false;
  std::string why_;

  // in
  FrameHeader header_{};
  size_t header_got_ = 0;   // < sizeof(header_): a header is being read
  size_t payload_got_ = 0;  // of header_.payload_bytes
  uint8_t control_[kControlBytesMax];
  bool would_block_ = false;
  size_t fetch_ = 0;  // of TLS: what the next read may take off the socket
  std::unique_ptr<channel::Tls> tls_;

  // out: first_bytes and greeting, then frames and chunks; a chunk that has begun is finished first
  std::string first_;
  size_t first_sent_ = 0;
  std::string out_;
  size_t out_sent_ = 0;
  FrameHeader chunk_header_{};
  size_t chunk_header_left_ = 0;
  const uint8_t* chunk_at_ = nullptr;
  uint32_t chunk_left_ = 0, chunk_bytes_ = 0;
  uint64_t chunk_transfer_ = 0;
};

}  // namespace ray::objects
