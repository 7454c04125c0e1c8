// cpp/channel/listener.h, and Dial's half of making a connection.
#include "channel/listener.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <thread>

#include "channel/counters.h"
#include "channel/fixture.h"
#include "testing.h"

namespace ray::channel {

TEST(Listener, MakesItsSocketForThisUserOnlyAndRemovesIt) {
  Folder folder;
  Status status;
  {
    auto listener = Listener::Listen(folder / "s", kBacklog, &status);
    ASSERT_TRUE(listener != nullptr);
    struct stat file;
    ASSERT_EQ(stat((folder / "s").c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0777u, 0600u);
    EXPECT_TRUE(fcntl(listener->fd(), F_GETFD) & FD_CLOEXEC);
    EXPECT_EQ(listener->Accept(), -1);
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "s"));
}

TEST(Listener, LeavesAFileAloneThatTookItsName) {
  Folder folder;
  Status status;
  {
    auto first = Listener::Listen(folder / "s", 16, &status);
    unlink((folder / "s").c_str());
    auto second = Listener::Listen(folder / "s", 16, &status);
    ASSERT_TRUE(second != nullptr);
    first.reset();
    EXPECT_TRUE(std::filesystem::exists(folder / "s"));
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "s"));
}

TEST(Listener, InAForkedChildEndsWithoutRemovingTheParentsSocket) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  InChild([&] {
    listener.reset();
    return 0;
  });
  EXPECT_TRUE(std::filesystem::exists(folder / "s"));
}

TEST(Listener, SaysWhatIsWrongWithAPath) {
  Folder folder;
  Status status;
  auto first = Listener::Listen(folder / "s", 16, &status);
  EXPECT_TRUE(Listener::Listen(folder / "s", 16, &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kAlreadyExists);
  EXPECT_TRUE(Listener::Listen(folder / "none/s", 16, &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kNotFound);
  EXPECT_TRUE(Listener::Listen("", 16, &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument);
  EXPECT_TRUE(Listener::Listen(folder / std::string(200, 'x'), 16, &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kInvalidArgument);
  EXPECT_TRUE(status.message().find("107") != std::string::npos);
}

TEST(Listener, APathTooLongForTheKernelWorksThroughItsFolder) {
  Folder folder;
  const std::string deep = folder / std::string(120, 'd');
  std::filesystem::create_directory(deep);
  Status status;
  auto listener = Listener::Listen(deep + "/s", 16, &status);
  ASSERT_TRUE(listener != nullptr);
  auto dialled = Connection::Dial(deep + "/s", MakeIdentity('D', 0), &status);
  ASSERT_TRUE(dialled != nullptr);
  auto accepted = Connection::Adopt(listener->Accept(), MakeIdentity('A', 1));
  EXPECT_GT(accepted->Fill(), 0);
  EXPECT_TRUE(accepted->open());
  listener.reset();
  EXPECT_FALSE(std::filesystem::exists(deep + "/s"));
}

TEST(Listener, OutOfDescriptorsItDropsTheConnectionInsteadOfLeavingItReadable) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 16, &status);
  const uint64_t before = counters().accepts_refused.load();
  Raw stranger(folder / "s");
  rlimit old;
  getrlimit(RLIMIT_NOFILE, &old);
  const int lowest = dup(0);
  close(lowest);
  const rlimit none{static_cast<rlim_t>(lowest), old.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  const int accepted = listener->Accept();
  setrlimit(RLIMIT_NOFILE, &old);
  EXPECT_EQ(accepted, -1);
  EXPECT_TRUE(stranger.Ended());
  EXPECT_EQ(counters().accepts_refused.load(), before + 1);
  EXPECT_FALSE(Ready(listener->fd(), POLLIN, 0));
  Raw next(folder / "s");
  const int fd = listener->Accept();
  EXPECT_GE(fd, 0);
  close(fd);
}

TEST(Dial, SaysWhoIsMissing) {
  Folder folder;
  Status status;
  EXPECT_TRUE(Connection::Dial(folder / "none", MakeIdentity('D', 0), &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kNotFound);
  InChild([&] {  // a listener that dies without tidying up
    Status in_child;
    auto listener = Listener::Listen(folder / "dead", 16, &in_child);
    _exit(0);
    return 0;
  });
  EXPECT_TRUE(Connection::Dial(folder / "dead", MakeIdentity('D', 0), &status) == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kDisconnected);
}

TEST(Dial, AFullAcceptQueueIsWaitedForAndThenReported) {
  Folder folder;
  Status status;
  auto listener = Listener::Listen(folder / "s", 0, &status);
  Raw first(folder / "s");  // a queue of 0 holds one
  auto refused = Connection::Dial(folder / "s", MakeIdentity('D', 0), &status);
  EXPECT_TRUE(refused == nullptr);
  EXPECT_TRUE(status.code() == StatusCode::kTimedOut);
  std::thread late([&] {
    int fd = -1;
    for (int i = 0; i < 2; ++i) {
      Ready(listener->fd(), POLLIN);
      fd = listener->Accept();
      if (fd >= 0) close(fd);
    }
  });
  auto dialled = Connection::Dial(folder / "s", MakeIdentity('D', 0), &status);
  late.join();
  EXPECT_TRUE(dialled != nullptr);
  EXPECT_TRUE(status.ok());
}

}  // namespace ray::channel
