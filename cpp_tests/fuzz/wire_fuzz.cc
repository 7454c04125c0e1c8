// Every decoder that turns bytes into values by itself: addresses, pulls and frees of the object manager, the frames of
// the store's socket, the reader of the engine's frames. What is accepted is the same after it was written and read.
#include "fuzz/input.h"
#include "object_manager/wire.h"
#include "wire.h"  // ray/_core: the engine's

using namespace ray::objects;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

std::span<const uint8_t> Span(const std::string& s) { return {reinterpret_cast<const uint8_t*>(s.data()), s.size()}; }

void Bodies(const std::string& bytes) {
  const auto payload = Span(bytes);
  if (const auto address = ReadAddress(payload)) {
    std::string out;
    AppendAddress(&out, *address);
    Require(out == bytes, "an address is written as it was read");
  }
  if (const auto addresses = ReadAddresses(payload, kSourcesMax)) {
    Require(addresses->size() <= kSourcesMax && AddressesBody(*addresses) == bytes, "so are several");
  }
  if (const auto pull = ReadPull(payload)) Require(PullPayload(*pull) == bytes, "so is a pull");
  if (const auto body = ReadFree(payload)) Require(FreePayload(*body) == bytes, "so is a free");
}

void Frames(Input* in) {
  FrameReader reader(in->Byte() < 128 ? ray::plasma::kRequestBytesMax : 100);
  const uint8_t cut = in->Byte();
  const std::string stream = in->Rest();
  FrameHeader header;
  std::span<const uint8_t> payload;
  size_t handed = 0;
  for (size_t at = 0; at < stream.size();) {
    const size_t piece = std::min<size_t>(stream.size() - at, 1 + cut);
    reader.Feed(stream.data() + at, piece);
    at += piece;
    while (reader.Next(&header, &payload)) {
      Require(stream.compare(handed + sizeof(header), payload.size(), reinterpret_cast<const char*>(payload.data()),
                             payload.size()) == 0,
              "payloads are the bytes that came");
      handed += sizeof(header) + payload.size();
      Require(!(HeaderAllowed(header, true) && HeaderAllowed(header, false)), "each frame has one direction");
      Bodies(std::string(reinterpret_cast<const char*>(payload.data()), payload.size()));
    }
  }
  Require(handed <= stream.size(), "no more comes out than went in");
}

// The calls that receive.pxi makes, in an order that the input chooses.
void Engine(Input* in) {
  const std::string order = in->Bytes(in->Byte());
  const std::string frame = in->Rest();
  ray::wire::Reader reader(reinterpret_cast<const uint8_t*>(frame.data()), frame.size());
  for (char c : order) {
    const bool was_ok = reader.ok;
    switch (c & 7) {
      case 0:
        reader.U8();
        break;
      case 1:
        reader.U16();
        break;
      case 2:
        reader.U64();
        break;
      case 3:
        reader.Header();
        break;
      default: {
        const size_t n = c & 8 ? reader.U64() : reader.U32();
        const uint8_t* taken = reader.Take(n);
        Require(taken == nullptr || n <= frame.size(), "nothing beyond the end");
        if (taken != nullptr && n > 0) Require(taken[n - 1] + taken[0] >= 0, "it can be read");
        break;
      }
    }
    Require(was_ok || !reader.ok, "what ran past the end stays wrong");
    Require(reader.left() <= frame.size(), "the reader stays inside");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input in(data, bytes);
  switch (in.Byte() % 3) {
    case 0:
      Bodies(in.Rest());
      break;
    case 1:
      Frames(&in);
      break;
    default:
      Engine(&in);
  }
  return 0;
}
