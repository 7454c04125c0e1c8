// Measures what this machine can do at best, for the benchmarks to be read against: limits.py compiles and runs it. Two
// processes (the measuring one and a forked echo), no Python. `limits NAME...` prints `key value` lines; NAME is one of
// the rows of kRows. Medians of batches, since a shared machine stalls now and then.
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "channel/connection.h"
#include "channel/listener.h"
#include "common/clock.h"

namespace {

using ray::NowNs;
using ray::Status;
using ray::channel::Connection;
using ray::channel::Frame;
using ray::channel::Identity;
using ray::channel::Listener;

constexpr int kBatches = 21;

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Seconds per call of body(n), divided by n; median of kBatches, the first of which only warms up.
double SecondsEach(int n, const std::function<void(int)>& body) {
  std::vector<double> seconds;
  body(n);
  for (int i = 0; i < kBatches; ++i) {
    const int64_t start = NowNs();
    body(n);
    seconds.push_back(double(NowNs() - start) / ray::kNsPerS / n);
  }
  return Median(seconds);
}

// A child that runs body and dies with us.
class Child {
 public:
  explicit Child(const std::function<void()>& body) : pid_(fork()) {
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    _exit(0);
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_;
};

void Print(const std::string& key, double value) {
  std::printf("%s %.6g\n", key.c_str(), value);
  std::fflush(stdout);
}

void UnixSocket() {
  int both[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, both) != 0) throw std::runtime_error("socketpair");
  char byte[64] = {};
  Child echo([&] {
    char c[64];
    while (read(both[1], c, sizeof c) > 0) (void)!write(both[1], c, sizeof c);
  });
  const double s = SecondsEach(1000, [&](int n) {
    for (int i = 0; i < n; ++i) {
      (void)!write(both[0], byte, sizeof byte);
      (void)!read(both[0], byte, sizeof byte);
    }
  });
  Print("unix_socket_round_trip_us", s * 1e6);
}

void Futex() {
  auto* turn = static_cast<std::atomic<uint32_t>*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const auto give = [&](uint32_t to) {
    turn->store(to);
    syscall(SYS_futex, turn, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  };
  const auto await = [&](uint32_t mine) {
    uint32_t now;
    while ((now = turn->load()) != mine) syscall(SYS_futex, turn, FUTEX_WAIT, now, nullptr, nullptr, 0);
  };
  Child echo([&] {
    for (;;) {
      await(1);
      give(0);
    }
  });
  const double s = SecondsEach(1000, [&](int n) {
    for (int i = 0; i < n; ++i) {
      give(1);
      await(0);
    }
  });
  Print("futex_round_trip_us", s * 1e6);
}

// GB/s of memcpy into fresh pages (mapped by the copy itself) and into touched ones.
void Memcpy() {
  constexpr size_t kBytes = 128u << 20;
  std::vector<char> from(kBytes, 'x');
  for (int threads : {1, 2}) {
    for (bool warm : {false, true}) {
      std::vector<double> rates;
      char* kept = nullptr;
      for (int i = 0; i < 5; ++i) {
        char* to = kept;
        if (to == nullptr) {
          to = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
          madvise(to, kBytes, MADV_NOHUGEPAGE);  // as in a memfd, which shares no huge pages by default
          if (warm) std::memset(to, 1, kBytes);
        }
        const size_t share = kBytes / threads;
        const int64_t start = NowNs();
        std::vector<std::thread> copiers;
        for (int t = 1; t < threads; ++t) {
          copiers.emplace_back([&, t] { std::memcpy(to + t * share, from.data() + t * share, share); });
        }
        std::memcpy(to, from.data(), share);
        for (std::thread& c : copiers) c.join();
        rates.push_back(double(kBytes) / double(NowNs() - start));
        if (warm) {
          kept = to;
        } else {
          munmap(to, kBytes);
        }
      }
      if (kept != nullptr) munmap(kept, kBytes);
      Print("memcpy_" + std::to_string(threads) + "_thread_" + (warm ? "warm" : "cold") + "_gb_per_s", Median(rates));
    }
  }
}

// GB/s of zeros written past the cache into touched pages: the bound of the put rows, whose source is the kernel's one zero
// page and costs nothing to read.
void StreamedWrites() {
#ifdef __SSE2__
  constexpr size_t kBytes = 128u << 20;
  for (size_t threads : {1, 2}) {
    auto* to = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    std::memset(to, 1, kBytes);
    const auto part = [&](size_t t) {
      const __m128i zero = _mm_setzero_si128();
      char* const end = to + (t + 1) * kBytes / threads;
      for (char* at = to + t * kBytes / threads; at < end; at += 64) {
        for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(at) + i, zero);
      }
      _mm_sfence();
    };
    const double s = SecondsEach(2, [&](int n) {
      for (int i = 0; i < n; ++i) {
        std::vector<std::thread> others;
        for (size_t t = 1; t < threads; ++t) others.emplace_back(part, t);
        part(0);
        for (std::thread& other : others) other.join();
      }
    });
    munmap(to, kBytes);
    Print("streamed_writes_" + std::to_string(threads) + "_thread_gb_per_s", kBytes / s / 1e9);
  }
#endif
}

// A dialled connection to a forked child that runs `peer` on the accepted one.
struct Channel {
  std::string folder = "/tmp/ray-limits-" + std::to_string(getpid());
  std::unique_ptr<Listener> listener;
  std::unique_ptr<Connection> c;
  std::unique_ptr<Child> child;

  explicit Channel(const std::function<void(Connection*)>& peer) {
    std::filesystem::create_directory(folder);
    Identity self{};
    Status status;
    listener = Listener::Listen(folder + "/s", 16, &status);
    c = Connection::Dial(folder + "/s", self, &status);
    if (!c) throw std::runtime_error(status.message());
    child = std::make_unique<Child>([&] {
      auto accepted = Connection::Adopt(listener->Accept(), self);
      c.reset();
      peer(accepted.get());
    });
  }
  ~Channel() {
    child.reset();
    listener.reset();
    std::filesystem::remove_all(folder);
  }
};

void WaitFor(const Connection* c, short events) {
  pollfd p{c->fd(), events, 0};
  poll(&p, 1, -1);
}

// Waits until at least one frame has come and returns how many; -1 at the end.
int64_t Frames(Connection* c) {
  Frame frame;
  for (;;) {
    int64_t count = 0;
    const int filled = c->Fill();
    while (c->Next(&frame)) ++count;
    if (count > 0) return count;
    if (filled < 0) return -1;
    if (filled == 0) WaitFor(c, POLLIN);
  }
}

void Put(Connection* c, uint32_t bytes) { std::memset(c->Reserve(20, 0, bytes), 1, bytes); }

void ChannelRoundTrip() {
  Channel channel([](Connection* c) {
    while (Frames(c) > 0) {
      Put(c, 64);
      c->Flush();
    }
  });
  const double s = SecondsEach(1000, [&](int n) {
    for (int i = 0; i < n; ++i) {
      Put(channel.c.get(), 64);
      channel.c->Flush();
      Frames(channel.c.get());
    }
  });
  Print("channel_round_trip_us", s * 1e6);
}

// Frames a second one way, so many per flush; the peer says when it has all of a batch.
double OneWay(uint32_t bytes, int per_flush, int frames, int send_buffer) {
  Channel channel([&](Connection* c) {
    int64_t left = frames, got;
    while ((got = Frames(c)) > 0) {
      left -= got;
      if (left > 0) continue;
      left = frames;
      Put(c, 8);
      c->Flush();
    }
  });
  Connection* c = channel.c.get();
  Put(c, 8);  // one frame ahead of the first batch opens the connection
  c->Flush();
  if (send_buffer > 0) setsockopt(c->fd(), SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
  bool first = true;
  const double s = SecondsEach(frames, [&](int n) {
    for (int i = first ? 1 : 0; i < n; ++i) {
      Put(c, bytes);
      if (i % per_flush == per_flush - 1) {
        while (c->Flush() == 1) WaitFor(c, POLLOUT);
      }
    }
    first = false;
    while (c->Flush() == 1) WaitFor(c, POLLOUT);
    Frames(c);
  });
  return 1 / s;
}

void ChannelOneWay() {
  for (int per_flush : {1, 16, 128}) {
    Print("channel_one_way_64_bytes_" + std::to_string(per_flush) + "_per_flush_frames_per_s",
          OneWay(64, per_flush, 20'000, 0));
  }
  Print("channel_one_way_64_kib_gb_per_s", OneWay(65'536, 1, 1'000, 0) * 65'536 / 1e9);
}

// What a send buffer of each size gives: limits.h (kSocketSendBytes) rests on this.
void SendBuffer() {
  for (int kib : {64, 104, 208, 512, 1024, 2048, 4096}) {
    const std::string key = "send_buffer_" + std::to_string(kib) + "_kib_";
    Print(key + "small_frames_per_s", OneWay(64, 128, 20'000, kib * 1024));
    Print(key + "large_gb_per_s", OneWay(1 << 20, 1, 100, kib * 1024) * (1 << 20) / 1e9);
  }
}

const struct {
  const char* name;
  void (*measure)();
} kRows[] = {{"unix_socket", UnixSocket},
             {"futex", Futex},
             {"memcpy", Memcpy},
             {"streamed_writes", StreamedWrites},
             {"channel_round_trip", ChannelRoundTrip},
             {"channel_one_way", ChannelOneWay},
             {"send_buffer", SendBuffer}};

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    bool known = false;
    for (const auto& row : kRows) {
      if (std::strcmp(row.name, argv[i]) != 0) continue;
      known = true;
      row.measure();
    }
    if (known) continue;
    std::fprintf(stderr, "limits: no measurement called '%s'\n", argv[i]);
    return 2;
  }
  return 0;
}
