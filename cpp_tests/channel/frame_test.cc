// cpp/channel/frame.h: sizes and headers.
#include "channel/frame.h"

#include "testing.h"

namespace ray::channel {

TEST(Frame, TakesAWholeNumberOfWordsWhateverItsPayload) {
  EXPECT_EQ(FrameBytes(0), 8u);
  EXPECT_EQ(FrameBytes(1), 16u);
  EXPECT_EQ(FrameBytes(8), 16u);
  EXPECT_EQ(FrameBytes(9), 24u);
  for (size_t n = 0; n < 100; ++n) EXPECT_EQ(FrameBytes(n) % kFrameAlign, 0u);
  EXPECT_EQ(FrameBytes(kFrameBytesMax), size_t{kFrameBytesMax} + 8);
}

TEST(Frame, HeaderIsReadAsItWasWritten) {
  alignas(8) uint8_t bytes[8];
  StoreHeader(bytes, 200, 7, 0x01020304);
  const uint8_t wire[8] = {0x04, 0x03, 0x02, 0x01, 200, 7, 0, 0};
  EXPECT_EQ(std::memcmp(bytes, wire, 8), 0);
  Frame frame;
  ASSERT_TRUE(LoadHeader(bytes, &frame));
  EXPECT_EQ(frame.size, 0x01020304u);
  EXPECT_EQ(int{frame.type}, 200);
  EXPECT_EQ(int{frame.flags}, 7);
  EXPECT_TRUE(frame.data == bytes + 8);
}

TEST(Frame, HeaderWithReservedBitsOrAnOverlongPayloadIsNone) {
  alignas(8) uint8_t bytes[8];
  Frame frame;
  StoreHeader(bytes, 1, 0, kFrameBytesMax);
  EXPECT_TRUE(LoadHeader(bytes, &frame));
  StoreHeader(bytes, 1, 0, kFrameBytesMax + 1);
  EXPECT_FALSE(LoadHeader(bytes, &frame));
  for (int i = 6; i < 8; ++i) {
    StoreHeader(bytes, 1, 0, 4);
    bytes[i] = 1;
    EXPECT_FALSE(LoadHeader(bytes, &frame));
  }
}

}  // namespace ray::channel
