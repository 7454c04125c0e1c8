// What is written is read again; what is cut, garbled or oversized is refused and never read beyond its end (the
// address sanitizer watches: each payload lies in a block of just its size).
#include "object_manager/wire.h"

#include <memory>
#include <random>

#include "testing.h"

namespace ray::objects {
namespace {

std::span<const uint8_t> Bytes(const std::string& s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }

PullBody SomePull() {
  PullBody body{Urgency::kPrefetch, {}, {{"127.0.0.1", 6379}, {"fe80::1%eth0", 1}}};
  for (size_t i = 0; i < ObjectId::kBytes; ++i) body.key.bytes[i] = static_cast<uint8_t>(i);
  return body;
}

TEST(Wire, ReadsWhatItWrites) {
  const PullBody pull = SomePull();
  const auto read = ReadPull(Bytes(PullPayload(pull)));
  ASSERT_TRUE(read.has_value());
  EXPECT_TRUE(read->key == pull.key && read->sources == pull.sources && read->urgency == pull.urgency);
  const FreeBody there{pull.key, Address{"10.1.2.3", 65535}};
  EXPECT_TRUE(ReadFree(Bytes(FreePayload(there)))->home == there.home);
  EXPECT_FALSE(ReadFree(Bytes(FreePayload({pull.key, std::nullopt})))->home.has_value());
}

TEST(Wire, RefusesEveryTruncationAndAnythingBehind) {
  const std::string whole = PullPayload(SomePull());
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(ReadPull(Bytes(whole.substr(0, n))).has_value());
  EXPECT_FALSE(ReadPull(Bytes(whole + "x")).has_value());
}

TEST(Wire, RefusesHostsThatAreNotNumbersPortZeroAndTooMany) {
  std::string out;
  AppendAddress(&out, {"a b", 1});
  EXPECT_FALSE(ReadAddress(Bytes(out)).has_value());
  out.clear();
  AppendAddress(&out, {"10.0.0.1", 0});
  EXPECT_FALSE(ReadAddress(Bytes(out)).has_value());
  const std::vector<Address> many(kReferralsMax + 1, {"10.0.0.1", 1});
  EXPECT_FALSE(ReadAddresses(Bytes(AddressesBody(many)), kReferralsMax).has_value());
}

TEST(Wire, BoundsEachFrameByItsHeader) {
  const auto header = [](Peer type, uint32_t bytes) { return FrameHeader{bytes, static_cast<uint16_t>(type), 0, 1}; };
  EXPECT_TRUE(HeaderAllowed(header(Peer::kChunk, kChunkBytes), false));
  EXPECT_FALSE(HeaderAllowed(header(Peer::kChunk, kChunkBytes + 1), false));
  EXPECT_FALSE(HeaderAllowed(header(Peer::kChunk, 0), false));
  EXPECT_FALSE(HeaderAllowed(header(Peer::kChunk, 100), true));  // pullers send no objects
  EXPECT_FALSE(HeaderAllowed(header(Peer::kAsk, sizeof(AskBody)), false));
  EXPECT_FALSE(HeaderAllowed(header(Peer::kAsk, sizeof(AskBody) - 1), true));
  EXPECT_FALSE(HeaderAllowed(header(static_cast<Peer>(99), 0), true));
}

TEST(Wire, SurvivesGarbage) {
  std::mt19937 random(11);
  const std::string seeds[] = {PullPayload(SomePull()), FreePayload({SomePull().key, Address{"10.1.2.3", 9}}),
                               AddressesBody(SomePull().sources)};
  for (int i = 0; i < 200'000; ++i) {
    std::string s = seeds[random() % 3];
    for (uint32_t k = random() % 6; k > 0; --k) s[random() % s.size()] = static_cast<char>(random());
    s.resize(random() % (s.size() + 1));
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[s.size()]);
    if (!s.empty()) std::memcpy(exact.get(), s.data(), s.size());
    const std::span<const uint8_t> bytes(exact.get(), s.size());
    if (const auto pull = ReadPull(bytes)) ASSERT_TRUE(pull->sources.size() <= kSourcesMax);
    static_cast<void>(ReadFree(bytes));
    static_cast<void>(ReadAddress(bytes));
    if (const auto some = ReadAddresses(bytes, kReferralsMax)) ASSERT_TRUE(some->size() <= kReferralsMax);
  }
}

}  // namespace
}  // namespace ray::objects

RAY_TEST_MAIN()
