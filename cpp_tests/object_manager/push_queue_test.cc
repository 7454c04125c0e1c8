// Who is served, who is referred to whom.
#include "object_manager/push_queue.h"

#include <random>

#include "testing.h"

namespace ray::objects {
namespace {

const ObjectId kKey{};
Address At(uint16_t port) { return {"10.0.0.1", port}; }

template <typename T>
std::vector<T> Take(PushQueue* q) {
  std::vector<T> out;
  for (const PushAction& a : q->TakeActions()) {
    if (const auto* wanted = std::get_if<T>(&a)) out.push_back(*wanted);
  }
  return out;
}

TEST(PushQueue, ServesTwoAndRefersTheThirdToThemOnceTheyHaveAByte) {
  PushQueue q;
  q.Go({1, 1}, kKey, false, At(1));
  q.Go({2, 1}, kKey, false, At(2));
  EXPECT_EQ(Take<Serve>(&q).size(), 2u);
  q.Go({3, 1}, kKey, false, At(3));
  EXPECT_EQ(q.TakeActions().size(), 0u);
  q.Sent({2, 1});
  const auto referred = Take<ReferTo>(&q);
  ASSERT_EQ(referred.size(), 1u);
  EXPECT_TRUE(referred[0].push == PushId({3, 1}));
  EXPECT_TRUE(referred[0].to == std::vector<Address>{At(2)});
  EXPECT_EQ(q.Check(), "");
}

TEST(PushQueue, ServesWhoWaitsWhenAPlaceIsFree) {
  PushQueue q;
  q.Go({1, 1}, kKey, false, At(1));
  q.Go({2, 1}, kKey, false, std::nullopt);
  q.Go({3, 1}, kKey, false, std::nullopt);  // could not be told apart from the others: is not referred
  q.Sent({1, 1});
  EXPECT_EQ(Take<Serve>(&q).size(), 2u);
  q.PeerGone(2);
  const auto served = Take<Serve>(&q);
  ASSERT_EQ(served.size(), 1u);
  EXPECT_EQ(served[0].push.peer, 3u);
  EXPECT_EQ(q.Check(), "");
}

TEST(PushQueue, ServesBeyondItsBoundWhoHasNobodyElse) {
  PushQueue q;
  for (uint64_t peer = 1; peer <= 3; ++peer) q.Go({peer, 1}, kKey, peer == 3, At(static_cast<uint16_t>(peer)));
  EXPECT_EQ(Take<Serve>(&q).size(), 3u);
}

TEST(PushQueue, RefersToWhoeverHasItAndKnowsWhomToTellOfItsEnd) {
  PushQueue q;
  q.Go({1, 1}, kKey, false, At(1));
  q.End({1, 1});
  q.Go({2, 1}, kKey, false, At(2));
  q.Go({3, 1}, kKey, false, At(3));
  q.TakeActions();
  q.Go({4, 1}, kKey, false, At(4));
  EXPECT_TRUE(Take<ReferTo>(&q).at(0).to == std::vector<Address>{At(1)});
  EXPECT_TRUE(q.WithCopies({kKey.bytes, 16}) == std::vector<ObjectId>{kKey});
  const uint8_t other[4] = {0xff, 0xff, 0xff, 0xff};
  EXPECT_EQ(q.WithCopies(other).size(), 0u);
  EXPECT_EQ(q.TakeCopies(kKey).size(), 3u);
  EXPECT_EQ(q.WithCopies({kKey.bytes, 16}).size(), 0u);
  EXPECT_EQ(q.TakeCopies(kKey).size(), 0u);
}

TEST(PushQueue, LosesNobodyWhateverHappens) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    PushQueue q;
    for (int step = 0; step < 300; ++step) {
      const PushId push{random() % 6, 1 + random() % 3};
      ObjectId key{};
      key.bytes[0] = static_cast<uint8_t>(push.transfer);
      switch (random() % 5) {
        case 0:
        case 1:
          q.Go(push, key, random() % 4 == 0,
               random() % 3 == 0 ? std::nullopt : std::optional<Address>(At(static_cast<uint16_t>(push.peer + 1))));
          break;
        case 2:
          q.Sent(push);
          break;
        case 3:
          q.End(push);
          break;
        case 4:
          if (random() % 8 == 0) q.PeerGone(push.peer);
          break;
      }
      for (const ReferTo& r : Take<ReferTo>(&q)) ASSERT_TRUE(!r.to.empty() && r.to.size() <= kReferralsMax);
      ASSERT_EQ(q.Check(), "");
    }
    for (uint64_t peer = 0; peer < 6; ++peer) q.PeerGone(peer);
    EXPECT_EQ(q.serving(), 0u);
    EXPECT_EQ(q.Check(), "");
  }
}

}  // namespace
}  // namespace ray::objects

RAY_TEST_MAIN()
