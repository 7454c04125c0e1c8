// PullQueue by example, and under random events with its indices derived anew after each.
#include "object_manager/pull_queue.h"

#include <random>
#include <set>
#include <string>

#include "testing.h"

namespace ray::objects {
namespace {

ObjectId Key(uint8_t n) {
  ObjectId key{};
  key.bytes[0] = n;
  return key;
}
Address At(uint16_t port) { return {"10.0.0.1", port}; }
PullBody Body(uint8_t n, std::vector<Address> sources, Urgency urgency = Urgency::kGet) {
  return {urgency, Key(n), std::move(sources)};
}
template <typename T>
std::vector<T> Take(PullQueue* q) {
  std::vector<T> out;
  for (const PullAction& a : q->TakeActions()) {
    if (const auto* wanted = std::get_if<T>(&a)) out.push_back(*wanted);
  }
  return out;
}
constexpr SizesBody kWhole{1000, 24, 1024};

// The pull of key n flows from its first source; returns the transfer.
TransferId Flow(PullQueue* q, uint8_t n, std::vector<Address> sources) {
  q->Want({1, n}, Body(n, std::move(sources)), 0);
  const TransferId t = Take<SendAsk>(q).at(0).transfer;
  q->Sizes(t, kWhole, 0);
  q->RoomMade(Key(n), 0);
  q->TakeActions();
  return t;
}

TEST(PullQueue, FetchesOnceHoweverManyAsk) {
  PullQueue q;
  q.Want({1, 1}, Body(7, {At(1)}), 0);
  q.Want({2, 9}, Body(7, {At(1)}), 0);
  const auto asks = Take<SendAsk>(&q);
  ASSERT_EQ(asks.size(), 1u);
  q.Sizes(asks[0].transfer, kWhole, 0);
  ASSERT_EQ(Take<MakeRoom>(&q).size(), 1u);
  q.RoomMade(Key(7), 0);
  const auto go = Take<SendGo>(&q);
  EXPECT_EQ(go.at(0).offset, 0u);
  q.Got(asks[0].transfer, 1000, 0);
  EXPECT_EQ(q.TakeActions().size(), 0u);
  q.Got(asks[0].transfer, 24, 0);
  const auto told = Take<Tell>(&q);
  ASSERT_EQ(told.size(), 2u);
  EXPECT_TRUE(told[1].outcome == Outcome::kHere);
  EXPECT_EQ(q.size(), 0u);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, NobodyIsAskedAtAnAddressThatIsDown) {
  PullQueue q;
  Flow(&q, 1, {At(1), At(2)});
  Flow(&q, 2, {At(1)});
  Flow(&q, 3, {At(3), At(1)});
  q.SourceDown(At(1), "its node is down", 0);
  const auto actions = q.TakeActions();
  size_t asked = 0, told = 0;
  for (const PullAction& a : actions) {
    if (const auto* ask = std::get_if<SendAsk>(&a)) {
      EXPECT_TRUE(ask->source == At(2) && ask->key == Key(1));
      ++asked;
    }
    if (const auto* tell = std::get_if<Tell>(&a)) {
      EXPECT_TRUE(tell->outcome == Outcome::kNoSource && tell->key == Key(2));
      EXPECT_TRUE(tell->text.find("its node is down") != std::string::npos);
      ++told;
    }
  }
  EXPECT_EQ(asked, 1u);
  EXPECT_EQ(told, 1u);
  q.SourceDown(At(3), "its node is down", 0);
  EXPECT_EQ(Take<Tell>(&q).size(), 1u);  // the other that it knew of was down already
  EXPECT_EQ(q.size(), 1u);
  EXPECT_EQ(q.Check(), "");
}

// All in one read of a local socket: the room must not be made for the new pull and then undone under it.
TEST(PullQueue, ARoomGivenUpBeforeItWasAskedForIsNotAskedForAnyMore) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1)}), 0);
  q.Sizes(Take<SendAsk>(&q).at(0).transfer, kWhole, 0);
  ASSERT_EQ(Take<MakeRoom>(&q).size(), 1u);
  q.Want({1, 2}, Body(2, {At(1)}, Urgency::kPrefetch), 0);
  q.Sizes(Take<SendAsk>(&q).at(0).transfer, kWhole, 0);
  q.LetGo({1, 1});  // now there would be room for the other
  q.LetGo({1, 2});
  q.Want({1, 3}, Body(2, {At(1)}), 0);
  for (const PullAction& action : q.TakeActions()) {
    EXPECT_FALSE(std::holds_alternative<MakeRoom>(action));
    if (const auto* drop = std::get_if<DropRoom>(&action)) EXPECT_TRUE(drop->key == Key(1));
  }
  EXPECT_FALSE(q.Received(Key(2)).has_value());
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, ARoomMadeForAnEarlierPullIsNotTheNewOnes) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1)}), 0);
  q.Sizes(Take<SendAsk>(&q).at(0).transfer, kWhole, 0);
  ASSERT_EQ(Take<MakeRoom>(&q).size(), 1u);
  q.LetGo({1, 1});
  q.Want({1, 2}, Body(1, {At(1)}), 0);
  q.RoomMade(Key(1), 0);  // the answer was on its way; DropRoom, which undoes it, is still to be done
  size_t told = 0;
  for (const PullAction& action : q.TakeActions()) told += std::holds_alternative<Tell>(action);
  EXPECT_EQ(told, 0u);
  EXPECT_FALSE(q.Received(Key(1)).has_value());
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, GoesOnFromAnotherSourceAtTheOffsetReached) {
  PullQueue q;
  const TransferId t = Flow(&q, 1, {At(1), At(2)});
  q.Got(t, 600, 0);
  q.SourceLost(t, "died", 0);
  const auto asks = Take<SendAsk>(&q);
  ASSERT_EQ(asks.size(), 1u);
  EXPECT_EQ(asks[0].offset, 600u);
  EXPECT_TRUE(asks[0].source == At(2));
  q.Sizes(asks[0].transfer, kWhole, 0);
  const auto go = Take<SendGo>(&q);
  EXPECT_EQ(go.at(0).offset, 600u);
  q.Got(t, 100, 0);  // the dead one's, still on the way
  q.Got(asks[0].transfer, 424, 0);
  EXPECT_EQ(Take<Seal>(&q).size(), 1u);
  EXPECT_EQ(q.resumed(), 1u);
}

TEST(PullQueue, LeavesASilentSourceForAnotherAndComesBackToItWhenThatIsAllThereIs) {
  PullQueue q;
  Flow(&q, 1, {At(1), At(2)});
  int64_t now = *q.next_deadline_ns();
  q.Tick(now - 1);
  EXPECT_EQ(q.TakeActions().size(), 0u);
  std::vector<uint16_t> asked;
  std::vector<Tell> told;
  while (told.empty()) {
    q.Tick(now);
    for (const PullAction& a : q.TakeActions()) {
      if (const auto* ask = std::get_if<SendAsk>(&a)) asked.push_back(ask->source.port);
      if (const auto* tell = std::get_if<Tell>(&a)) told.push_back(*tell);
    }
    now += kSilenceNs;
  }
  EXPECT_TRUE(asked == std::vector<uint16_t>({2, 1, 2, 1, 2}));
  EXPECT_TRUE(told[0].outcome == Outcome::kNoSource);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, ASourceThatCannotBeReachedIsAskedAgainUntilItIsDown) {
  PullQueue q;
  const TransferId t = Flow(&q, 1, {At(1), At(2)});
  q.Got(t, 600, 0);
  q.SourceBroken(t, "it closed the connection", 0);
  auto asks = Take<SendAsk>(&q);
  ASSERT_EQ(asks.size(), 1u);
  EXPECT_TRUE(asks[0].source == At(2));
  q.SourceLost(asks[0].transfer, "it has not got the object", 0);
  EXPECT_EQ(Take<SendAsk>(&q).size(), 0u);
  EXPECT_EQ(q.Check(), "");
  for (int i = 0; i < 8; ++i) {  // the pauses grow to a second
    const int64_t now = *q.next_deadline_ns();
    q.Tick(now - 1);
    EXPECT_EQ(Take<SendAsk>(&q).size(), 0u);
    q.Tick(now);
    asks = Take<SendAsk>(&q);
    ASSERT_EQ(asks.size(), 1u);
    EXPECT_TRUE(asks[0].source == At(1));
    EXPECT_EQ(asks[0].offset, 600u);
    q.SourceBroken(asks[0].transfer, "no route to host", now);
    EXPECT_TRUE(*q.next_deadline_ns() - now <= kPauseMaxNs);
  }
  q.SourceDown(At(1), "its node is down", *q.next_deadline_ns());
  EXPECT_TRUE(Take<Tell>(&q).at(0).outcome == Outcome::kNoSource);
  EXPECT_EQ(q.size(), 0u);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, ASourceThatCannotBeReachedWhileRoomIsMadeIsAskedWhenItIsMade) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1)}), 0);
  const TransferId t = Take<SendAsk>(&q).at(0).transfer;
  q.Sizes(t, kWhole, 0);
  ASSERT_EQ(Take<MakeRoom>(&q).size(), 1u);
  q.SourceBroken(t, "it closed the connection", 0);
  EXPECT_EQ(Take<SendAsk>(&q).size(), 0u);
  q.RoomMade(Key(1), 0);
  EXPECT_EQ(Take<SendAsk>(&q).size(), 0u);
  q.Tick(*q.next_deadline_ns());
  EXPECT_EQ(Take<SendAsk>(&q).size(), 1u);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, AnotherSourceEndsThePauseAndOneThatStaysAwayTheWaiting) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1)}), 0);
  q.SourceBroken(Take<SendAsk>(&q).at(0).transfer, "no route to host", 0);
  q.Want({1, 2}, Body(1, {At(2)}), 1);
  auto asks = Take<SendAsk>(&q);
  EXPECT_TRUE(asks.at(0).source == At(2));
  int64_t now = 1;
  std::vector<Tell> told;
  while (told.empty()) {
    ASSERT_TRUE(now <= 2 * kBrokenNs);
    for (const SendAsk& ask : asks) q.SourceBroken(ask.transfer, "no route to host", now);
    asks.clear();
    for (const PullAction& a : q.TakeActions()) {
      if (const auto* ask = std::get_if<SendAsk>(&a)) asks.push_back(*ask);
      if (const auto* tell = std::get_if<Tell>(&a)) told.push_back(*tell);
    }
    if (!asks.empty() || !told.empty()) continue;
    now = *q.next_deadline_ns();
    q.Tick(now);
  }
  EXPECT_TRUE(now >= kBrokenNs);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, GivesUpWithEachSourcesReasonWhenNoneIsLeft) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1), At(2)}), 0);
  for (int i = 0; i < 2; ++i) q.SourceLost(Take<SendAsk>(&q).at(0).transfer, "reason " + std::to_string(i), 0);
  const auto told = Take<Tell>(&q);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_TRUE(told[0].text.find("10.0.0.1:1: reason 0") != std::string::npos);
  EXPECT_TRUE(told[0].text.find("10.0.0.1:2: reason 1") != std::string::npos);
  EXPECT_EQ(q.size(), 0u);
}

TEST(PullQueue, IsCancelledWhenTheLastOneLetsGo) {
  PullQueue q;
  Flow(&q, 1, {At(1)});
  q.Want({2, 5}, Body(1, {}), 0);
  q.LetGo({1, 1});
  EXPECT_EQ(q.TakeActions().size(), 0u);
  q.LineGone(2);
  const auto actions = q.TakeActions();
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_TRUE(std::holds_alternative<SendEnd>(actions[0]));
  EXPECT_TRUE(std::holds_alternative<DropRoom>(actions[1]));
  EXPECT_EQ(q.size(), 0u);
}

TEST(PullQueue, DoesNotTakeASourceThatHasNoMoreThanItself) {
  PullQueue q;
  const TransferId t = Flow(&q, 1, {At(1), At(2), At(3)});
  q.Got(t, 500, 0);
  q.SourceLost(t, "died", 0);
  const auto second = Take<SendAsk>(&q);
  q.Sizes(second.at(0).transfer, {1000, 24, 500}, 0);  // fed by us, perhaps
  const auto third = Take<SendAsk>(&q);
  ASSERT_EQ(third.size(), 1u);
  EXPECT_TRUE(third[0].source == At(3));
  q.Sizes(third[0].transfer, {1000, 24, 501}, 0);
  EXPECT_EQ(Take<SendGo>(&q).size(), 1u);
}

TEST(PullQueue, DoesNotMixTwoObjectsOfOneId) {
  PullQueue q;
  const TransferId t = Flow(&q, 1, {At(1), At(2)});
  q.Got(t, 500, 0);
  q.SourceLost(t, "died", 0);
  q.Sizes(Take<SendAsk>(&q).at(0).transfer, {2000, 24, 2024}, 0);
  EXPECT_TRUE(Take<Tell>(&q).at(0).outcome == Outcome::kNoSource);
}

TEST(PullQueue, FollowsReferralsAndInsistsWithTheFirstWhenTheyLeadNowhere) {
  PullQueue q;
  const TransferId t = Flow(&q, 1, {At(1)});
  q.Refer(t, {At(2), At(3)}, 0);
  for (const uint16_t port : {2, 3}) {
    const auto ask = Take<SendAsk>(&q);
    EXPECT_EQ(ask.at(0).source.port, port);
    q.SourceLost(ask[0].transfer, "gone", 0);
  }
  const auto back = Take<SendAsk>(&q);
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].source.port, 1);
  q.Sizes(back[0].transfer, kWhole, 0);
  EXPECT_TRUE(Take<SendGo>(&q).at(0).must_serve);
}

TEST(PullQueue, AsksForAPrefetchsRoomOnlyWhileNoGetWaitsForOne) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1)}), 0);
  q.Want({1, 2}, Body(2, {At(1)}, Urgency::kPrefetch), 0);
  q.Want({1, 3}, Body(3, {At(1)}, Urgency::kPrefetch), 0);
  const auto asks = Take<SendAsk>(&q);
  for (const SendAsk& ask : asks) q.Sizes(ask.transfer, kWhole, 0);
  EXPECT_EQ(Take<MakeRoom>(&q).size(), 1u);
  EXPECT_EQ(q.Check(), "");
  q.Want({2, 1}, Body(3, {}), 0);  // now somebody waits for it
  EXPECT_TRUE(Take<MakeRoom>(&q).at(0).key == Key(3));
  q.RoomMade(Key(1), 0);
  EXPECT_EQ(Take<MakeRoom>(&q).size(), 0u);
  q.RoomMade(Key(3), 0);
  EXPECT_TRUE(Take<MakeRoom>(&q).at(0).key == Key(2));
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, EndsWhenTheObjectIsFreed) {
  PullQueue q;
  Flow(&q, 1, {At(1)});
  q.Freed(Key(1));
  const auto actions = q.TakeActions();
  ASSERT_EQ(actions.size(), 3u);
  EXPECT_TRUE(std::get<Tell>(actions[0]).outcome == Outcome::kNoSource);
  EXPECT_TRUE(std::holds_alternative<SendEnd>(actions[1]) && std::holds_alternative<DropRoom>(actions[2]));
  EXPECT_EQ(q.size(), 0u);
}

TEST(PullQueue, FindsAnotherSourceWhileItWaitsForRoom) {
  PullQueue q;
  q.Want({1, 1}, Body(1, {At(1), At(2)}), 0);
  const TransferId first = Take<SendAsk>(&q).at(0).transfer;
  q.Sizes(first, kWhole, 0);
  q.SourceLost(first, "died", 0);
  const TransferId second = Take<SendAsk>(&q).at(0).transfer;
  q.RoomMade(Key(1), 0);
  EXPECT_EQ(Take<SendGo>(&q).size(), 0u);  // it has not said yet that it has it
  q.Sizes(second, kWhole, 0);
  EXPECT_EQ(Take<SendGo>(&q).size(), 1u);
  EXPECT_EQ(q.Check(), "");
}

TEST(PullQueue, EveryAskerIsToldOrGoneWhateverHappens) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    PullQueue q;
    std::set<std::pair<uint64_t, uint64_t>> waiting;
    std::vector<TransferId> transfers;
    std::set<uint8_t> rooms, extents;
    int64_t now = 0;
    uint64_t request = 0;
    const auto carry_out = [&] {
      for (const PullAction& a : q.TakeActions()) {
        if (const auto* ask = std::get_if<SendAsk>(&a)) transfers.push_back(ask->transfer);
        if (const auto* room = std::get_if<MakeRoom>(&a)) ASSERT_TRUE(rooms.insert(room->key.bytes[0]).second);
        if (const auto* drop = std::get_if<DropRoom>(&a)) {
          ASSERT_TRUE(rooms.erase(drop->key.bytes[0]) + extents.erase(drop->key.bytes[0]) == 1);
        }
        if (const auto* seal = std::get_if<Seal>(&a)) ASSERT_EQ(extents.erase(seal->key.bytes[0]), 1u);
        if (const auto* tell = std::get_if<Tell>(&a)) {
          ASSERT_EQ(waiting.erase({tell->asker.line, tell->asker.request}), 1u);
        }
      }
      ASSERT_EQ(q.Check(), "");
    };
    for (int step = 0; step < 400; ++step) {
      now += random() % (kSilenceNs / 4);
      const TransferId t = transfers.empty() ? 0 : transfers[random() % transfers.size()];
      switch (random() % 10) {
        case 0:
        case 1: {
          const uint64_t line = random() % 3;
          std::vector<Address> sources;
          for (uint32_t i = random() % 4; i > 0; --i) sources.push_back(At(static_cast<uint16_t>(1 + random() % 5)));
          waiting.insert({line, ++request});
          q.Want({line, request}, Body(static_cast<uint8_t>(random() % 4), sources, static_cast<Urgency>(random() % 2)),
                 now);
          break;
        }
        case 2:
          q.Sizes(t, {1000, 24, random() % 4 != 0 ? 1024 : random() % 1024}, now);
          break;
        case 3:
          if (q.Missing(t) > 0) q.Got(t, std::min<uint64_t>(q.Missing(t), 1 + random() % 800), now);
          break;
        case 4:
          if (!rooms.empty()) {
            const uint8_t n = *rooms.begin();
            rooms.erase(n);
            if (random() % 5 == 0) {
              q.RoomRefused(Key(n), "never");
              // The queue drops the request that was refused; the shell finds nothing to drop.
              for (const PullAction& a : q.TakeActions()) {
                if (const auto* tell = std::get_if<Tell>(&a)) waiting.erase({tell->asker.line, tell->asker.request});
                if (const auto* room = std::get_if<MakeRoom>(&a)) rooms.insert(room->key.bytes[0]);
              }
            } else {
              extents.insert(n);
              q.RoomMade(Key(n), now);
            }
          }
          break;
        case 5:
          if (random() % 4 == 0) {
            q.SourceDown(At(static_cast<uint16_t>(1 + random() % 8)), "down", now);
          } else if (random() % 2 == 0) {
            q.SourceBroken(t, "broken", now);
          } else {
            q.SourceLost(t, "lost", now);
          }
          break;
        case 6:
          q.Refer(t, {At(static_cast<uint16_t>(1 + random() % 8))}, now);
          break;
        case 7:
          q.Tick(now);
          break;
        case 9:
          if (random() % 4 == 0) q.Freed(Key(static_cast<uint8_t>(random() % 4)));
          break;
        case 8:
          if (!waiting.empty()) {
            const auto one = *waiting.begin();
            waiting.erase(waiting.begin());
            q.LetGo({one.first, one.second});
          }
          break;
      }
      carry_out();
    }
    for (uint64_t line = 0; line < 3; ++line) q.LineGone(line);
    waiting.clear();
    carry_out();
    EXPECT_EQ(q.size(), 0u);
    EXPECT_TRUE(rooms.empty() && extents.empty());
  }
}

}  // namespace
}  // namespace ray::objects

RAY_TEST_MAIN()
