// What other stores and local processes make the pull and push queues do: any events in any order, about objects and
// transfers that exist or never did. After each the indices are derived anew.
#include <set>

#include "fuzz/input.h"
#include "object_manager/pull_queue.h"
#include "object_manager/push_queue.h"

using namespace ray::objects;
using ray::fuzz::Input;
using ray::fuzz::Require;

namespace {

ray::ObjectId Key(uint8_t n) {
  ray::ObjectId key{};
  key.bytes[0] = n % 5;
  return key;
}

std::vector<Address> Addresses(Input* in) {
  std::vector<Address> out(in->Byte() % 4);
  for (Address& a : out) a = {"10.0.0.1", static_cast<uint16_t>(1 + in->Byte() % 6)};
  return out;
}

void Pull(Input* in) {
  PullQueue q;
  int64_t now = 0;
  TransferId newest = 0;
  std::set<uint8_t> rooms;    // asked for: our own store answers nothing else
  std::set<uint8_t> extents;  // made
  // As TransferLoop::Act does it: what several events have brought is done in order, and the store may answer at once.
  const auto act = [&](bool at_once) {
    for (auto actions = q.TakeActions(); !actions.empty(); actions = q.TakeActions()) {
      for (const PullAction& action : actions) {
        if (const auto* ask = std::get_if<SendAsk>(&action)) newest = std::max(newest, ask->transfer);
        if (const auto* seal = std::get_if<Seal>(&action)) {
          Require(extents.erase(seal->key.bytes[0]) == 1, "what is sealed is there");
        }
        if (const auto* drop = std::get_if<DropRoom>(&action)) {
          rooms.erase(drop->key.bytes[0]);
          extents.erase(drop->key.bytes[0]);
        }
        if (const auto* room = std::get_if<MakeRoom>(&action)) {
          if (at_once) {
            extents.insert(room->key.bytes[0]);
            q.RoomMade(room->key, now);
          } else {
            rooms.insert(room->key.bytes[0]);
          }
        }
      }
    }
    for (uint8_t n = 0; n < 5; ++n) {
      Require(q.Received(Key(n)).has_value() == (extents.count(n) != 0), "an extent is there if the pull has one");
    }
  };
  while (!in->empty()) {
    const uint8_t op = in->Byte() % 14, key = in->Byte();
    const TransferId transfer = newest < 4 ? newest : newest - in->Byte() % 4;
    PullBody wanted;
    switch (op) {
      case 0:
      case 1:
        wanted.urgency = op == 1 ? Urgency::kGet : Urgency::kPrefetch;
        wanted.key = Key(key);
        wanted.sources = Addresses(in);
        q.Want({uint64_t{key} % 3, in->Byte()}, wanted, now);
        break;
      case 2:
        q.LetGo({uint64_t{key} % 3, in->Byte()});
        break;
      case 3:
        q.LineGone(key % 3);
        break;
      case 4:
        q.Sizes(transfer, {in->Size(), in->Size(), in->Size()}, now);
        break;
      case 5:
        q.Sizes(transfer, {100, 10, 110}, now);
        break;
      case 6:
        q.Refer(transfer, Addresses(in), now);
        break;
      case 7:
        if (key % 2 == 0) {
          q.SourceBroken(transfer, "broken", now);
        } else {
          q.SourceLost(transfer, "lost", now);
        }
        break;
      case 8:
        q.SourceDown({"10.0.0.1", static_cast<uint16_t>(1 + key % 6)}, "down", now);
        break;
      case 9: {  // the object manager reads no more of a transfer than is missing (ChunkRoom)
        const uint64_t bytes = std::min<uint64_t>(q.Missing(transfer), in->Size());
        if (bytes > 0) q.Got(transfer, bytes, now);
        break;
      }
      case 10:
        if (rooms.erase(key % 5) > 0) {
          extents.insert(key % 5);
          q.RoomMade(Key(key), now);
        }
        act(false);
        break;
      case 11:
        if (rooms.erase(key % 5) > 0) q.RoomRefused(Key(key), "no");
        act(false);
        break;
      case 12:
        if (key & 128) {
          act(false);
          if (rooms.erase(key % 5) > 0) q.CameOtherwise(Key(key));
        } else {
          q.Freed(Key(key));
        }
        break;
      default:
        now += key * ray::kNsPerS / 16;
        q.Tick(now);
    }
    // The frames that one read from a local process brings are followed by one Act.
    if (op > 3 || !(key & 64)) act(key & 32);
    const std::string wrong = q.Check();
    Require(wrong.empty(), wrong.c_str());
  }
  for (uint64_t line = 0; line < 3; ++line) q.LineGone(line);
  Require(q.size() == 0, "nothing is pulled for nobody");
}

void Push(Input* in) {
  PushQueue q;
  while (!in->empty()) {
    const uint8_t op = in->Byte() % 6, key = in->Byte();
    const PushId push{uint64_t{in->Byte()} % 6, uint64_t{key} % 7};
    const auto where = Addresses(in);
    switch (op) {
      case 0:
      case 1:
        q.Go(push, Key(key), op, where.empty() ? std::nullopt : std::optional(where[0]));
        break;
      case 2:
        q.Sent(push);
        break;
      case 3:
        q.End(push);
        break;
      case 4:
        q.PeerGone(push.peer);
        break;
      default:
        q.TakeCopies(Key(key));
        q.WithCopies({&key, 1});
    }
    q.TakeActions();
    const std::string wrong = q.Check();
    Require(wrong.empty(), wrong.c_str());
  }
  for (uint64_t peer = 0; peer < 6; ++peer) q.PeerGone(peer);
  Require(q.serving() == 0, "nothing is sent to nobody");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes > 4096) return 0;
  Input in(data, bytes);
  if (in.Byte() & 1) {
    Pull(&in);
  } else {
    Push(&in);
  }
  return 0;
}
