// A client killed at any instruction leaves the store whole. Three ways of choosing the instruction:
//   traced ones   a first child is single-stepped (ptrace) through each operation and its path recorded; then, for one
//                 instruction of the paths after the other, another child runs up to a breakpoint there and is killed
//   named ones    RAY_CRASH_POINT() in the library, each in turn
//   random ones   several children at work on a store too small for them, killed whenever
// The traced and the random deaths take RAY_KILL_SECONDS each (default 8), however slow the machine is or a sanitizer
// makes it; how many deaths that was is printed. The instructions come in an order drawn by a seed that is printed too,
// so that many short runs cover what one long run does: RAY_KILL_SECONDS=600 is enough for all of them, and
// RAY_KILL_SEED repeats a run's order.
// After each death the store's books are audited, and every object that can be found must have all its bytes.
// The store is a process of its own here, so that under a sanitizer it is the store that is checked.
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>

#include "fixture.h"
#include "plasma/crash_point.h"
#include "testing.h"

namespace ray::plasma {
namespace {

constexpr size_t kDeathsMin = 50;  // on the slowest machine: with fewer a test would say little
constexpr int kStepsMax = 300000;
constexpr uint64_t kOld = 7;  // there before the child begins
constexpr uint64_t kLargeBytes = 200000;

int64_t BudgetNs() {
  const char* seconds = std::getenv("RAY_KILL_SECONDS");
  return static_cast<int64_t>((seconds ? std::atof(seconds) : 8.0) * 1e9);
}

// Drawn anew for each run unless RAY_KILL_SEED gives it.
unsigned Seed() {
  static const unsigned seed = [] {
    const char* given = std::getenv("RAY_KILL_SEED");
    const unsigned drawn = given ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : std::random_device()();
    std::printf("  RAY_KILL_SEED=%u\n", drawn);
    std::fflush(stdout);
    return drawn;
  }();
  return seed;
}

// A store in a child process; dies with this one.
class StoreProcess {
 public:
  explicit StoreProcess(uint64_t pool_bytes) {
    int ready[2];
    if (pipe(ready) != 0) std::abort();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      ServerOptions options;
      options.pool.bytes = pool_bytes;
      options.socket_path = folder_.socket();
      std::unique_ptr<Server> server;
      const Status created = Server::Create(options, &server);
      if (!created.ok() || write(ready[1], "r", 1) != 1) _exit(2);
      const Status ran = server->Run();
      server.reset();
      _exit(ran.ok() ? 0 : 3);
    }
    close(ready[1]);
    char r;
    if (read(ready[0], &r, 1) != 1) std::fprintf(stderr, "the store did not start\n");
    close(ready[0]);
  }
  ~StoreProcess() { Stop(); }
  int Stop() {
    if (pid_ == 0) return status_;
    kill(pid_, SIGTERM);
    waitpid(pid_, &status_, 0);
    pid_ = 0;
    return status_;
  }
  std::shared_ptr<Client> Connect() const {
    std::shared_ptr<Client> client;
    const Status status = Client::Connect(folder_.socket(), {}, &client);
    if (!status.ok()) std::fprintf(stderr, "connect: %s\n", status.message().c_str());
    return client;
  }

 private:
  TemporaryFolder folder_;
  pid_t pid_ = 0;
  int status_ = 0;
};

// A death and a request may reach the store in one batch of events, in either order: once it has answered a request
// that was sent after the death, it has seen the death too.
void LetItNotice(Client* c) { static_cast<void>(c->Sync({})); }

// What must hold whoever has died. Returns what does not.
std::string Check(Client* c, pid_t dead) {
  LetItNotice(c);
  std::string wrong = Audit(c);
  std::vector<std::pair<Row, std::vector<uint32_t>>> rows;
  if (!c->List({}, &rows).ok()) return wrong + "no list";
  for (const auto& [row, pids] : rows) {
    const State state = static_cast<State>(row.state);
    if (row.creator_pid == static_cast<uint32_t>(dead) && state == State::kCreated)
      wrong += "an unsealed object is left\n";
    for (uint32_t pid : pids) {
      if (pid == static_cast<uint32_t>(dead)) wrong += "a pin is left\n";
    }
    Place place;
    const uint64_t n = NumberOf(row.key);
    if (state != State::kSealed || Get(c, n, &place) != Step::kDone) continue;
    if (!Right(place.address, place.data_bytes, n)) wrong += "object " + std::to_string(n) + " lacks bytes\n";
    c->Unpin(place.slot);
  }
  return wrong;
}

struct Operation {
  const char* name;
  std::function<void(Client*)> prepare;  // not watched
  std::function<void(Client*)> act;      // dies in here
};

std::vector<Operation> Operations() {
  const auto none = [](Client*) {};
  // One small object before, so that an extent is lent already and `act` is the path without the store.
  const auto lent = [](Client* c) { Put(c, 100, 64); };
  return {
      {"put", lent, [](Client* c) { Put(c, 1, 100); }},
      {"put_asking", none, [](Client* c) { Put(c, 1, 100); }},
      {"put_large", none, [](Client* c) { Put(c, 2, kLargeBytes); }},
      {"get", none,
       [](Client* c) {
         Place place;
         if (Get(c, kOld, &place) == Step::kDone) c->Unpin(place.slot);
       }},
      {"pin", none,
       [](Client* c) {
         if (c->TryPin(Key(kOld)) == Step::kDone) c->UnpinKey(Key(kOld));
       }},
      {"delete", lent, [](Client* c) { Delete(c, 100); }},
      {"delete_pinned",
       [](Client* c) {
         Place place;
         Put(c, 100, 64);
         Get(c, 100, &place);
       },
       [](Client* c) { Delete(c, 100); }},
      {"create_taken", lent,
       [](Client* c) {
         Place place;
         Create(c, Key(kOld), 10, &place);
       }},
      {"abort",
       [](Client* c) {
         Place place;
         Create(c, Key(3), 64, &place);
       },
       [](Client* c) { c->TryAbort(Key(3)); }},
      {"seal_told",  // somebody has subscribed, so the seal is told to the store as well
       [](Client* c) {
         Place place;
         static_cast<void>(c->Subscribe());
         static_cast<void>(c->Sync({}));
         Create(c, Key(5), 64, &place);
         Fill(place.address, 64, 5);
       },
       [](Client* c) { c->TrySeal(Key(5)); }},
      {"release", lent, [](Client* c) { c->Release(); }},
  };
}

// What a child may have left sealed goes, so that the next one begins alike.
void CleanUp(Client* c) {
  for (uint64_t n : {1, 2, 3, 5, 100}) Delete(c, n);
}

// A child that stops itself before and after op.act, so that a tracer can watch what is between. 0: tracing is not
// allowed.
pid_t TracedChild(const StoreProcess& store, const Operation& op) {
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto c = store.Connect();
    if (!c) _exit(2);
    op.prepare(c.get());
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(3);
    raise(SIGSTOP);
    op.act(c.get());
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSTOPPED(status) ? child : 0;
}

void Kill(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Waits for the next stop; true if it is SIGTRAP (a step or a breakpoint), false at the end of what is watched.
bool Trapped(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP;
}

#if defined(__x86_64__)
constexpr long kInstructionPointer = offsetof(user_regs_struct, rip);
constexpr unsigned long kBreakpoint = 0xcc;  // int3

unsigned long InstructionPointer(pid_t child) {
  return static_cast<unsigned long>(ptrace(PTRACE_PEEKUSER, child, kInstructionPointer, nullptr));
}

std::vector<unsigned long> Path(pid_t child) {
  std::vector<unsigned long> path;
  while (path.size() < kStepsMax) {
    path.push_back(InstructionPointer(child));
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 || !Trapped(child)) break;
  }
  return path;
}

// Lets the child run until it is about to execute the instruction at `address` for the `visit`th time. False: it never
// is, or no breakpoint can be set there (the kernel's own page that tells the time).
bool RunTo(pid_t child, unsigned long address, int visit) {
  errno = 0;
  const long word = ptrace(PTRACE_PEEKTEXT, child, address, nullptr);
  if (errno != 0) return false;
  const long trapping = static_cast<long>((static_cast<unsigned long>(word) & ~0xfful) | kBreakpoint);
  for (int seen = 1;; ++seen) {
    if (ptrace(PTRACE_POKETEXT, child, address, trapping) != 0) return false;
    if (ptrace(PTRACE_CONT, child, nullptr, nullptr) != 0 || !Trapped(child)) return false;
    if (ptrace(PTRACE_POKETEXT, child, address, word) != 0) return false;
    if (ptrace(PTRACE_POKEUSER, child, kInstructionPointer, address) != 0) return false;
    if (seen == visit) return true;
    if (ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr) != 0 || !Trapped(child)) return false;
  }
}

TEST(Kill, LeavesTheStoreWholeAfterEachInstruction) {
  StoreProcess store(8 << 20);
  auto witness = store.Connect();
  ASSERT_TRUE(witness);
  EXPECT_TRUE(Put(witness.get(), kOld, 1000) == Step::kDone);
  struct Target {
    size_t operation;
    unsigned long address;
    int visit;
  };
  const std::vector<Operation> operations = Operations();
  std::vector<Target> targets;
  for (size_t i = 0; i < operations.size(); ++i) {
    const pid_t first = TracedChild(store, operations[i]);
    if (first == 0) {
      std::printf("  this machine does not let a process be traced: skipped\n");
      return;
    }
    const std::vector<unsigned long> path = Path(first);
    Kill(first);
    CleanUp(witness.get());
    ASSERT_LT(path.size(), static_cast<size_t>(kStepsMax));
    // Each instruction when first executed, and once more if it is in a loop.
    std::map<unsigned long, int> visits;
    for (unsigned long address : path) {
      if (++visits[address] <= 2) targets.push_back({i, address, visits[address]});
    }
    std::printf("  %s: %zu instructions executed, %zu different ones\n", operations[i].name, path.size(),
                visits.size());
  }
  std::shuffle(targets.begin(), targets.end(), std::mt19937_64(Seed()));
  const int64_t until = NowNs() + BudgetNs();
  std::vector<int> deaths(operations.size());
  size_t tried = 0;
  while (tried < targets.size() && (tried < kDeathsMin || NowNs() < until)) {
    const Target& target = targets[tried++];
    const Operation& op = operations[target.operation];
    const pid_t child = TracedChild(store, op);
    ASSERT_NE(child, 0);
    deaths[target.operation] += RunTo(child, target.address, target.visit) ? 1 : 0;
    Kill(child);
    const std::string wrong = Check(witness.get(), child);
    if (!wrong.empty()) std::fprintf(stderr, "%s, killed before %#lx:\n", op.name, target.address);
    ASSERT_EQ(wrong, "");
    CleanUp(witness.get());
  }
  std::printf("  killed before %zu of %zu instructions:", tried, targets.size());
  int all = 0;
  for (size_t i = 0; i < operations.size(); ++i) {
    std::printf(" %s %d", operations[i].name, deaths[i]);
    all += deaths[i];
  }
  std::printf("\n");
  std::fflush(stdout);
  EXPECT_GT(all, static_cast<int>(kDeathsMin) / 2);
  EXPECT_EQ(Audit(witness.get()), "");
  witness.reset();
  EXPECT_EQ(store.Stop(), 0);
}
#endif

TEST(Kill, LeavesTheStoreWholeAfterEachNamedPoint) {
  StoreProcess store(8 << 20);
  auto witness = store.Connect();
  ASSERT_TRUE(witness);
  EXPECT_TRUE(Put(witness.get(), kOld, 1000) == Step::kDone);
  for (const Operation& op : Operations()) {
    for (long point = 1;; ++point) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        auto c = store.Connect();
        if (!c) _exit(2);
        op.prepare(c.get());
        crash_countdown = point;
        op.act(c.get());
        _exit(0);
      }
      int status = 0;
      waitpid(child, &status, 0);
      const std::string wrong = Check(witness.get(), child);
      if (!wrong.empty()) std::fprintf(stderr, "%s, killed at point %ld:\n", op.name, point);
      ASSERT_EQ(wrong, "");
      CleanUp(witness.get());
      if (WIFEXITED(status)) {  // it has fewer points than that
        EXPECT_EQ(WEXITSTATUS(status), 0);
        break;
      }
    }
  }
}

[[noreturn]] void Work(const StoreProcess& store, unsigned seed) {
  std::mt19937_64 random(seed);
  auto c = store.Connect();
  if (!c) _exit(2);
  std::vector<uint32_t> pinned;
  for (;;) {
    const uint64_t n = 1000 + random() % 60;
    switch (random() % 8) {
      case 0:
        Delete(c.get(), n);
        break;
      case 1: {
        Place place;
        if (Create(c.get(), Key(n), n % 7 == 0 ? kLargeBytes : n, &place, 0.01) == Step::kDone && random() % 2 == 0) {
          c->TryAbort(Key(n));
          c->Unpin(place.slot);
        }
        break;
      }
      case 2:
      case 3:
      case 4:
        if (Put(c.get(), n, n % 7 == 0 ? kLargeBytes : n, 0.01) == Step::kDied) _exit(4);
        break;
      default: {
        Place place;
        if (Get(c.get(), n, &place) != Step::kDone) break;
        if (!Right(place.address, place.data_bytes, n)) _exit(5);
        pinned.push_back(place.slot);
        if (pinned.size() > 4) {
          c->Unpin(pinned.front());
          pinned.erase(pinned.begin());
        }
      }
    }
  }
}

TEST(Kill, LeavesTheStoreWholeAfterDeathsAtRandomUnderLoad) {
  StoreProcess store(2 << 20);
  auto witness = store.Connect();
  ASSERT_TRUE(witness);
  std::mt19937_64 random(Seed());
  std::vector<pid_t> children;
  unsigned seed = Seed();
  const int64_t until = NowNs() + BudgetNs();
  size_t deaths = 0;
  for (; deaths < kDeathsMin || NowNs() < until; ++deaths) {
    while (children.size() < 3) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        Work(store, seed);
      }
      ++seed;
      children.push_back(child);
    }
    // The one place where chance is wanted: how far they get.
    usleep(static_cast<useconds_t>(random() % 8000));
    const size_t which = random() % children.size();
    const pid_t dead = children[which];
    children.erase(children.begin() + static_cast<long>(which));
    kill(dead, SIGKILL);
    int status = 0;
    waitpid(dead, &status, 0);
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);  // 5: read wrong bytes
      return;
    }
    // The others are at work, so the books cannot be compared with the table now; the dead one's marks can.
    LetItNotice(witness.get());
    std::vector<std::pair<Row, std::vector<uint32_t>>> rows;
    ASSERT_TRUE(witness->List({}, &rows).ok());
    for (const auto& [row, pids] : rows) {
      EXPECT_FALSE(row.creator_pid == static_cast<uint32_t>(dead) && static_cast<State>(row.state) == State::kCreated);
      for (uint32_t pid : pids) EXPECT_NE(pid, static_cast<uint32_t>(dead));
    }
  }
  for (pid_t child : children) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  std::printf("  %zu deaths\n", deaths);
  EXPECT_EQ(Check(witness.get(), 0), "");
  uint64_t freed = 0;
  EXPECT_TRUE(witness->Evict(2 << 20, {}, &freed).ok());
  const StatsAnswer s = Stats(witness.get());
  EXPECT_EQ(s.free_bytes, s.pool_bytes);
  EXPECT_EQ(s.slots_free, s.slots);
  witness.reset();
  EXPECT_EQ(store.Stop(), 0);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
