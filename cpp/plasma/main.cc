// PROCESS plasma_store, one per node: owns the shared memory and whatever clients cannot do in it themselves.
//
// With --spill-directory it has threads that move objects to disk and back (spill_disk.h).
// With --objects-socket it has one more thread, the object manager (object_manager/transfer_loop.h).
//
// Started by the node process (ray._launch) or by hand; talked to by every driver and worker through --socket. Owns the
// pool, the object table and one journal per client, all unnamed files: when this process and its clients have ended,
// in whatever way, nothing of them is left but the socket's name (removed here on a normal end, by the session's sweep
// otherwise). When it dies, clients see it at their next call (layout.h, `life`) and lose the objects; when a client
// dies, it undoes what that one left. It ends itself when its lifeline closes or the parent that passed it dies.
#include <arpa/inet.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "channel/network_proof.h"
#include "object_manager/transfer_loop.h"
#include "plasma/server.h"

namespace {

constexpr uint64_t kMemoryBytesMin = 1 << 20;
constexpr uint64_t kMemoryBytesMax = uint64_t{1} << 46;
constexpr char kNoSize[] = ": not a size of 1 byte to 64 TiB; 1GB, 512MiB and 1048576 are";
constexpr int kSpillThreadsMax = 64;

constexpr char kUsage[] =
    "usage: plasma_store --memory BYTES --socket PATH [--directory DIR] [--huge-pages]\n"
    "                    [--lifeline-fd N] [--ready-fd N] [--objects-socket PATH --token-file PATH]\n"
    "  -m, --memory BYTES   size of the store; 512MB, 1GB, 2GiB are understood\n"
    "  -s, --socket PATH    Unix socket to listen on, at most 107 bytes\n"
    "  -d, --directory DIR  keep the memory in an unnamed file there (default: a memfd)\n"
    "  -h, --huge-pages     the memory is huge pages; DIR, if given, is a hugetlbfs mount\n"
    "      --lifeline-fd N  end when the other end of this pipe is closed, or the parent dies\n"
    "      --objects-socket PATH  run an object manager too, which listens there for local processes\n"
    "      --token-file PATH      its secret, 64 hexadecimal digits, that other nodes' stores must prove to know\n"
    "      --reached-at HOST:PORT  where other stores reach it, if that is known already\n"
    "      --spill-directory DIR  objects that do not fit go to unnamed files there; may be given several times\n"
    "      --spill-bytes-max BYTES  no more than that on all disks together (default: what they have)\n"
    "      --spill-batch BYTES    make so much room at once, an eighth of the store at most (default: 100MiB)\n"
    "      --spill-threads N      threads that write and read them (default: 2)\n"
    "      --spill-disk-use F     write to no file system that is used to more than this part (default: 0.95)\n"
    "      --ready-fd N     one byte 1 is written there when serving, or the text of an error\n";

// "1GB", "64MiB", "1.5g", "1048576"; powers of 1024 with "i" or a bare letter, of 1000 with "B" alone after the letter.
std::optional<uint64_t> ParseBytes(const char* text) {
  char* rest = nullptr;
  errno = 0;
  const double number = std::strtod(text, &rest);
  if (rest == text || errno != 0 || !(number > 0)) return std::nullopt;
  std::string unit(rest);
  for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  double factor = 1;
  const std::string letters = "kmgt";
  if (!unit.empty() && unit != "b") {
    const size_t power = letters.find(unit[0]);
    if (power == std::string::npos) return std::nullopt;
    const std::string after = unit.substr(1);
    if (!after.empty() && after != "b" && after != "ib") return std::nullopt;
    const double base = after == "b" ? 1000 : 1024;
    for (size_t i = 0; i <= power; ++i) factor *= base;
  }
  const double bytes = number * factor;
  if (bytes < 1 || bytes > static_cast<double>(kMemoryBytesMax)) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

std::optional<int> ParseFd(const char* text) {
  char* rest = nullptr;
  const long fd = std::strtol(text, &rest, 10);
  if (rest == text || *rest != 0 || fd < 0 || fcntl(static_cast<int>(fd), F_GETFD) < 0) return std::nullopt;
  return static_cast<int>(fd);
}

void Tell(int ready_fd, const std::string& text) {
  if (ready_fd < 0) return;
  if (write(ready_fd, text.data(), text.size()) < 0)
    std::fprintf(stderr, "plasma_store: --ready-fd: %s\n", std::strerror(errno));
  close(ready_fd);
}

int Fail(int ready_fd, const std::string& text) {
  std::fprintf(stderr, "plasma_store: %s\n", text.c_str());
  Tell(ready_fd, text);
  return 1;
}

// Whether the file begins with the token in hexadecimal.
bool ReadToken(const char* path, uint8_t out[ray::channel::kTokenBytes]) {
  char text[2 * ray::channel::kTokenBytes];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const ssize_t n = read(fd, text, sizeof(text));
  close(fd);
  if (n != static_cast<ssize_t>(sizeof(text))) return false;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t i = 0; i < ray::channel::kTokenBytes; ++i) {
    const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

// "10.0.0.1:6379", "::1:6379": what is behind the last colon is the port.
std::optional<ray::objects::Address> ParseAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  char* rest = nullptr;
  const char* port_text = text.c_str() + colon + 1;
  const long port = std::strtol(port_text, &rest, 10);
  if (rest == port_text || *rest != '\0' || port < 1 || port > 65535) return std::nullopt;
  const std::string host = text.substr(0, colon);
  in6_addr parsed;
  if (inet_pton(AF_INET, host.c_str(), &parsed) != 1 && inet_pton(AF_INET6, host.c_str(), &parsed) != 1) {
    return std::nullopt;
  }
  return ray::objects::Address{host, static_cast<uint16_t>(port)};
}

// Shows itself to other stores as a node process does; as nobody's, until it is told where it is reached (StoreTag).
ray::Status StartTransfers(ray::objects::TransferOptions* options, std::unique_ptr<ray::objects::TransferLoop>* out) {
  options->identity.role = 2;
  if (getrandom(options->identity.tag, sizeof(options->identity.tag), 0) != sizeof(options->identity.tag)) {
    return ray::Status::FromErrno("getrandom", errno);
  }
  std::string token(reinterpret_cast<const char*>(options->identity.token), ray::channel::kTokenBytes);
  options->identity.network_proof = [token] {
    return std::make_unique<ray::channel::NetworkProof>(reinterpret_cast<const uint8_t*>(token.data()));
  };
  return ray::objects::TransferLoop::Start(*options, out);
}

}  // namespace

int main(int argc, char** argv) {
  ray::plasma::ServerOptions options;
  ray::objects::TransferOptions transfers;
  bool has_token = false;
  int ready_fd = -1;
  std::string wrong;
  enum {
    kLifeline = 256,
    kReady,
    kHelp,
    kObjectsSocket,
    kTokenFile,
    kReachedAt,
    kTls,
    kSpillDirectory,
    kSpillMax,
    kSpillBatch,
    kSpillThreads,
    kSpillUse
  };
  const option longs[] = {{"memory", required_argument, nullptr, 'm'},
                          {"socket", required_argument, nullptr, 's'},
                          {"directory", required_argument, nullptr, 'd'},
                          {"huge-pages", no_argument, nullptr, 'h'},
                          {"lifeline-fd", required_argument, nullptr, kLifeline},
                          {"ready-fd", required_argument, nullptr, kReady},
                          {"objects-socket", required_argument, nullptr, kObjectsSocket},
                          {"token-file", required_argument, nullptr, kTokenFile},
                          {"reached-at", required_argument, nullptr, kReachedAt},
                          {"tls", no_argument, nullptr, kTls},
                          {"spill-directory", required_argument, nullptr, kSpillDirectory},
                          {"spill-bytes-max", required_argument, nullptr, kSpillMax},
                          {"spill-batch", required_argument, nullptr, kSpillBatch},
                          {"spill-threads", required_argument, nullptr, kSpillThreads},
                          {"spill-disk-use", required_argument, nullptr, kSpillUse},
                          {"help", no_argument, nullptr, kHelp},
                          {nullptr, 0, nullptr, 0}};
  for (int o; (o = getopt_long(argc, argv, "m:s:d:h", longs, nullptr)) != -1;) {
    switch (o) {
      case 'm':
        if (const auto bytes = ParseBytes(optarg)) {
          options.pool.bytes = *bytes;
        } else {
          wrong = std::string("--memory ") + optarg + kNoSize;
        }
        break;
      case 's':
        options.socket_path = optarg;
        break;
      case 'd':
        options.pool.directory = optarg;
        break;
      case 'h':
        options.pool.huge_pages = true;
        break;
      case kLifeline:
        if (const auto fd = ParseFd(optarg)) {
          options.lifeline_fd = *fd;
        } else {
          wrong = std::string("--lifeline-fd ") + optarg + ": not an open file descriptor";
        }
        break;
      case kReady:
        if (const auto fd = ParseFd(optarg)) {
          ready_fd = *fd;
        } else {
          wrong = std::string("--ready-fd ") + optarg + ": not an open file descriptor";
        }
        break;
      case kObjectsSocket:
        transfers.socket_path = optarg;
        break;
      case kTls:
        transfers.identity.tls = true;
        break;
      case kTokenFile:
        if (!ReadToken(optarg, transfers.identity.token)) {
          wrong = std::string("--token-file ") + optarg + ": no file of 64 hexadecimal digits";
        }
        has_token = true;
        break;
      case kReachedAt:
        transfers.reached_at = ParseAddress(optarg);
        if (!transfers.reached_at) wrong = std::string("--reached-at ") + optarg + ": not a numeric HOST:PORT";
        break;
      case kSpillDirectory:
        options.spill.limits.directories.push_back(optarg);
        break;
      case kSpillMax:
      case kSpillBatch:
        if (const auto bytes = ParseBytes(optarg)) {
          (o == kSpillMax ? options.spill.limits.bytes_max : options.spill.batch_bytes) = *bytes;
        } else {
          wrong = std::string("--spill-bytes-max or --spill-batch ") + optarg + kNoSize;
        }
        break;
      case kSpillThreads:
        options.spill.disk.threads = std::atoi(optarg);
        if (options.spill.disk.threads < 1 || options.spill.disk.threads > kSpillThreadsMax) {
          wrong = std::string("--spill-threads ") + optarg + ": must be 1 to " + std::to_string(kSpillThreadsMax);
        }
        break;
      case kSpillUse:
        options.spill.disk.disk_use_max = std::atof(optarg);
        if (!(options.spill.disk.disk_use_max > 0 && options.spill.disk.disk_use_max <= 1)) {
          wrong = std::string("--spill-disk-use ") + optarg + ": must be above 0 and at most 1";
        }
        break;
      case kHelp:
        std::fputs(kUsage, stdout);
        return 0;
      default:
        std::fputs(kUsage, stderr);
        Tell(ready_fd, "unknown option");
        return 2;
    }
  }
  if (wrong.empty() && optind < argc) wrong = std::string("unexpected argument ") + argv[optind];
  if (wrong.empty() && options.socket_path.empty()) wrong = "--socket is missing";
  if (wrong.empty() && has_token == transfers.socket_path.empty()) {
    wrong = "--objects-socket and --token-file belong together";
  }
  if (wrong.empty() && transfers.reached_at && !has_token) wrong = "--reached-at needs --objects-socket";
  if (wrong.empty() && options.pool.bytes < kMemoryBytesMin) {
    wrong = "--memory must be at least " + std::to_string(kMemoryBytesMin) + " bytes";
  }
  if (!wrong.empty()) {
    Fail(ready_fd, wrong);
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (ready_fd >= 0) fcntl(ready_fd, F_SETFD, FD_CLOEXEC);
  if (options.lifeline_fd >= 0) fcntl(options.lifeline_fd, F_SETFD, FD_CLOEXEC);
  // Three descriptors a client.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  std::unique_ptr<ray::plasma::Server> server;
  if (const ray::Status s = ray::plasma::Server::Create(options, &server); !s.ok()) return Fail(ready_fd, s.message());
  std::unique_ptr<ray::objects::TransferLoop> loop;
  if (has_token) {
    transfers.plasma_socket = options.socket_path;
    if (const ray::Status s = StartTransfers(&transfers, &loop); !s.ok()) return Fail(ready_fd, s.message());
  }
  Tell(ready_fd, std::string(1, '\x01'));
  const ray::Status end = server->Run();
  server.reset();  // first: the object manager may be waiting for an answer, and so finds out that none comes
  loop.reset();
  if (!end.ok()) return Fail(-1, end.message());
  return 0;
}
