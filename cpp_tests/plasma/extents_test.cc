// Extents against the plainest model there is: one flag per 64-byte piece.
#include "plasma/extents.h"

#include <random>
#include <vector>

#include "testing.h"

namespace ray::plasma {
namespace {

TEST(Extents, LendsLowAddressesFirst) {
  Extents e(1 << 20);
  EXPECT_EQ(e.Take(100).value_or(1), 0u);
  EXPECT_EQ(e.Take(64).value_or(1), 128u);
  EXPECT_EQ(e.Free(0, 100), 128u);
  EXPECT_EQ(e.Take(1000).value_or(1), 192u);
  EXPECT_EQ(e.Take(128).value_or(1), 0u);
}

TEST(Extents, RefusesWhatDoesNotFitAndWhatIsFreeAlready) {
  Extents e(4096);
  EXPECT_FALSE(e.Take(4097));
  EXPECT_FALSE(e.Take(0));
  EXPECT_EQ(e.Free(0, 64), 0u);
  EXPECT_EQ(e.Take(4096).value_or(1), 0u);
  EXPECT_FALSE(e.Take(1));
  EXPECT_EQ(e.Free(64, 128), 128u);
  EXPECT_EQ(e.Free(0, 128), 0u);     // its second half is free
  EXPECT_EQ(e.Free(4096, 64), 0u);   // outside
  EXPECT_EQ(e.Free(4032, 128), 0u);  // partly outside
  EXPECT_EQ(e.Free(33, 64), 0u);     // not a multiple
  EXPECT_EQ(e.Free(0, ~uint64_t{0}), 0u);
  EXPECT_EQ(e.free_bytes(), 128u);
}

TEST(Extents, EndsEarlierWhenCapped) {
  Extents e(1 << 20);
  EXPECT_EQ(e.Take(4096).value_or(1), 0u);
  e.Cap(1 << 19);
  EXPECT_EQ(e.pool_bytes(), uint64_t{1} << 19);
  EXPECT_EQ(e.free_bytes(), (uint64_t{1} << 19) - 4096);
  EXPECT_FALSE(e.Take(1 << 19));
}

TEST(Extents, AgreesWithAMapOfEveryPiece) {
  constexpr uint64_t kPieces = 4096;
  std::mt19937_64 random(7);
  Extents e(kPieces * 64);
  std::vector<bool> used(kPieces);
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 || taken.empty()) {
      const uint64_t pieces = 1 + random() % (random() % 10 == 0 ? 600 : 20);
      const auto offset = e.Take(pieces * 64 - random() % 64);
      if (!offset) {
        uint64_t run = 0, longest = 0;
        for (bool u : used) longest = std::max(longest, run = u ? 0 : run + 1);
        EXPECT_LT(longest, pieces);
        continue;
      }
      for (uint64_t i = 0; i < pieces; ++i) {
        ASSERT_FALSE(used[*offset / 64 + i]);
        used[*offset / 64 + i] = true;
      }
      taken.emplace_back(*offset, pieces);
    } else {
      const size_t which = random() % taken.size();
      const auto [offset, pieces] = taken[which];
      taken[which] = taken.back();
      taken.pop_back();
      EXPECT_NE(e.Free(offset, pieces * 64), 0u);
      for (uint64_t i = 0; i < pieces; ++i) used[offset / 64 + i] = false;
    }
  }
  uint64_t free_pieces = 0;
  for (bool u : used) free_pieces += u ? 0 : 1;
  EXPECT_EQ(e.free_bytes(), free_pieces * 64);
  for (const auto& [offset, pieces] : taken) EXPECT_NE(e.Free(offset, pieces * 64), 0u);
  EXPECT_EQ(e.range_count(), 1u);
  EXPECT_EQ(e.largest_free_bytes(), kPieces * 64);
}

}  // namespace
}  // namespace ray::plasma

RAY_TEST_MAIN()
