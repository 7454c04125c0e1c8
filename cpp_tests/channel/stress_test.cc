// Pairs of peers that talk at full speed, one of which dies at a random point: as a process killed with SIGKILL, and as
// a thread that closes (so that ThreadSanitizer sees both sides). Whatever the survivor hears must be an exact
// beginning of what the other said, and it must hear the end.
#include <signal.h>
#include <sys/mman.h>

#include <thread>

#include "channel/fixture.h"
#include "channel/fuzz/fuzz.h"
#include "channel/poller.h"
#include "channel/standby.h"

namespace ray::channel {
namespace {

// The n-th frame that anyone sends: size and bytes follow from n.
size_t SizeOf(uint64_t n) { return n % 97 == 0 ? (n * 7919) % 150'000 : (n * 31) % 200; }

void SendNumbered(Connection* c, uint64_t n) {
  const size_t size = SizeOf(n);
  uint8_t* p = c->Reserve(20, static_cast<uint8_t>(n), static_cast<uint32_t>(size));
  if (p != nullptr) std::memset(p, static_cast<int>(n * 13), size);
}

bool IsNumbered(const Frame& frame, uint64_t n) {
  if (frame.size != SizeOf(n) || frame.flags != static_cast<uint8_t>(n)) return false;
  // All bytes equal, and equal to the first: one memcmp instead of a loop, which ThreadSanitizer makes slow.
  return frame.size == 0 || (frame.data[0] == static_cast<uint8_t>(n * 13) &&
                             std::memcmp(frame.data, frame.data + 1, frame.size - 1) == 0);
}

struct Heard {
  uint64_t frames = 0;
  bool right = true;
};

// Sends and receives as fast as both sides allow until the peer is gone or `stop_after` frames were heard.
Heard Talk(Connection* c, uint64_t stop_after, std::atomic<uint64_t>* flushed = nullptr) {
  constexpr size_t kEnough = 256u << 10;  // back-pressure: what may wait unsent
  Heard heard;
  Poller poller;
  poller.Add(c->fd(), 1);
  uint64_t sent = 0;
  bool write_dead = false;
  for (;;) {
    int batch = 0;
    while (!write_dead && c->pending_bytes() < kEnough && batch++ < 64) SendNumbered(c, sent++);
    const int flush = write_dead ? -1 : c->Flush();
    if (flush < 0) write_dead = true;
    if (flush == 0 && flushed != nullptr) flushed->store(sent);
    poller.Want(c->fd(), 1, true, flush == 1);
    Event event;
    poller.Wait(flush == 0 ? 0 : 10'000, &event, 1);
    int filled;
    Frame frame;
    while ((filled = c->Fill()) > 0) {
      while (c->Next(&frame)) {
        heard.right = heard.right && IsNumbered(frame, heard.frames);
        ++heard.frames;
        if (heard.frames == stop_after) return heard;
      }
    }
    if (filled < 0) return heard;
  }
}

}  // namespace

TEST(Stress, ASurvivorHearsAnExactBeginningOfWhatAKilledProcessSaid) {
  void* shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* flushed = new (shared) std::atomic<uint64_t>(0);
  Fuzz("killed processes", [&](Random& random) {
    Folder folder;
    Status status;
    auto listener = Listener::Listen(folder / "s", 16, &status);
    const uint64_t kill_after = 1 + Below(random, Below(random, 2) ? 20 : 2'000);
    const bool kills_itself = Below(random, 2);
    flushed->store(0);
    const pid_t child = fork();
    if (child == 0) {
      Status in_child;
      auto c = Connection::Dial(folder / "s", MakeIdentity('D', 0), &in_child);
      if (c) Talk(c.get(), kills_itself ? kill_after : UINT64_MAX, flushed);
      raise(SIGKILL);
    }
    if (!kills_itself && kill_after < 5) kill(child, SIGKILL);  // perhaps before it has even dialled
    pid_t gone = 0;
    while (gone == 0 && !Ready(listener->fd(), POLLIN, 1)) gone = waitpid(child, nullptr, WNOHANG);
    const int fd = listener->Accept();
    if (fd >= 0) {
      auto c = Connection::Adopt(fd, MakeIdentity('A', 1));
      Heard heard = Talk(c.get(), kills_itself ? UINT64_MAX : kill_after + 1);
      if (!kills_itself) {
        kill(child, SIGKILL);
        if (c->alive()) {
          const uint64_t first = heard.frames;
          for (const OwnFrame& f : Receive(c.get())) {
            const Frame frame{reinterpret_cast<const uint8_t*>(f.payload.data()),
                              static_cast<uint32_t>(f.payload.size()), f.type, f.flags};
            heard.right = heard.right && IsNumbered(frame, heard.frames);
            ++heard.frames;
          }
          EXPECT_GE(heard.frames, first);
        }
      }
      EXPECT_TRUE(heard.right);
      EXPECT_FALSE(c->alive());
      // All that the dead process had handed to the kernel was heard.
      if (gone == 0) waitpid(child, nullptr, 0);
      gone = child;
      if (c->greeted()) EXPECT_GE(heard.frames, flushed->load());
    }
    if (gone == 0) waitpid(child, nullptr, 0);
  });
  munmap(shared, 4096);
}

TEST(Stress, TwoThreadsTalkUntilOneCloses) {
  Fuzz("threads", [&](Random& random) {
    Pair pair(false);
    const uint64_t close_after = 1 + Below(random, 3'000);
    std::atomic<uint64_t> flushed{0};
    Heard quitter;
    std::thread other([&] {
      quitter = Talk(pair.dialled.get(), close_after, &flushed);
      pair.dialled->Close("had enough");
    });
    const Heard survivor = Talk(pair.accepted.get(), UINT64_MAX);
    other.join();
    EXPECT_TRUE(survivor.right && quitter.right);
    EXPECT_EQ(quitter.frames, close_after);
    EXPECT_GE(survivor.frames, flushed.load());
    EXPECT_FALSE(pair.accepted->alive());
  });
}

}  // namespace ray::channel

RAY_TEST_MAIN()
