// Bounds-checked reading and plain writing; wire.h has the drawing.
#include "object_manager/wire.h"

#include <algorithm>
#include <cstring>

#include "common/sha256.h"

namespace ray::objects {

namespace {
constexpr size_t kKeyBytes = ObjectId::kBytes;
constexpr size_t kHostBytesMax = 63;  // a numeric IPv6 address with its zone has at most 62

// Takes one address off the front of *rest.
bool TakeAddress(std::span<const uint8_t>* rest, Address* out) {
  if (rest->size() < 3) return false;
  uint16_t port;
  std::memcpy(&port, rest->data(), 2);
  const size_t length = (*rest)[2];
  if (length == 0 || length > kHostBytesMax || rest->size() - 3 < length || port == 0) return false;
  out->host.assign(reinterpret_cast<const char*>(rest->data()) + 3, length);
  const auto fits = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == ':' ||
           c == '%';
  };
  if (!std::all_of(out->host.begin(), out->host.end(), fits)) return false;
  out->port = port;
  *rest = rest->subspan(3 + length);
  return true;
}
}  // namespace

Tag StoreTag(const Address& address) {
  const std::string text = "ray store at " + address.Text();
  Sha256 hash;
  hash.Add(text.data(), text.size());
  return Tag::FromBytes(hash.Finish().data());
}

void AppendAddress(std::string* out, const Address& address) {
  const uint16_t port = address.port;
  out->append(reinterpret_cast<const char*>(&port), 2);
  out->push_back(static_cast<char>(address.host.size()));
  out->append(address.host);
}

std::string AddressesBody(const std::vector<Address>& addresses) {
  std::string out;
  const uint16_t count = static_cast<uint16_t>(addresses.size());
  out.append(reinterpret_cast<const char*>(&count), 2);
  for (const Address& a : addresses) AppendAddress(&out, a);
  return out;
}

std::optional<Address> ReadAddress(std::span<const uint8_t> payload) {
  Address address;
  if (!TakeAddress(&payload, &address) || !payload.empty()) return std::nullopt;
  return address;
}

std::optional<std::vector<Address>> ReadAddresses(std::span<const uint8_t> payload, size_t addresses_max) {
  uint16_t count;
  if (payload.size() < sizeof(count)) return std::nullopt;
  std::memcpy(&count, payload.data(), sizeof(count));
  payload = payload.subspan(sizeof(count));
  if (count > addresses_max) return std::nullopt;
  std::vector<Address> out(count);
  for (Address& address : out) {
    if (!TakeAddress(&payload, &address)) return std::nullopt;
  }
  if (!payload.empty()) return std::nullopt;
  return out;
}

std::optional<PullBody> ReadPull(std::span<const uint8_t> payload) {
  if (payload.size() < 1 + kKeyBytes || payload[0] > static_cast<uint8_t>(Urgency::kPrefetch)) return std::nullopt;
  PullBody body;
  body.urgency = static_cast<Urgency>(payload[0]);
  body.key = ObjectId::FromBytes(payload.data() + 1);
  auto sources = ReadAddresses(payload.subspan(1 + kKeyBytes), kSourcesMax);
  if (!sources) return std::nullopt;
  body.sources = std::move(*sources);
  return body;
}

std::string PullPayload(const PullBody& body) {
  std::string out(1, static_cast<char>(body.urgency));
  out.append(reinterpret_cast<const char*>(body.key.bytes), kKeyBytes);
  out += AddressesBody(body.sources);
  return out;
}

std::optional<FreeBody> ReadFree(std::span<const uint8_t> payload) {
  if (payload.size() < kKeyBytes) return std::nullopt;
  FreeBody body;
  body.key = ObjectId::FromBytes(payload.data());
  payload = payload.subspan(kKeyBytes);
  if (payload.empty()) return body;
  body.home = ReadAddress(payload);
  if (!body.home) return std::nullopt;
  return body;
}

std::string FreePayload(const FreeBody& body) {
  std::string out(reinterpret_cast<const char*>(body.key.bytes), kKeyBytes);
  if (body.home) AppendAddress(&out, *body.home);
  return out;
}

bool HeaderAllowed(const FrameHeader& header, bool from_puller) {
  if (header.zero != 0) return false;
  const uint32_t n = header.payload_bytes;
  switch (static_cast<Peer>(header.type)) {
    case Peer::kWhere:
      return from_puller && n <= kControlBytesMax;
    case Peer::kAsk:
      return from_puller && n == sizeof(AskBody);
    case Peer::kGo:
      return from_puller && n == sizeof(GoBody);
    case Peer::kEnd:
      return from_puller && n == 0;
    case Peer::kFree:
    case Peer::kClaim:
    case Peer::kUnclaim:
    case Peer::kLapse:
      return from_puller && n == kKeyBytes;
    case Peer::kSizes:
      return !from_puller && n == sizeof(SizesBody);
    case Peer::kChunk:
      return !from_puller && n > 0 && n <= kChunkBytes;
    case Peer::kRefer:
    case Peer::kGone:
      return !from_puller && n <= kControlBytesMax;
    case Peer::kClaimed:
      return !from_puller && n == 1;
  }
  return false;
}

}  // namespace ray::objects
