// The decisions of a server of objects; push_queue.h says which.
#include "object_manager/push_queue.h"

#include <algorithm>
#include <cstring>

namespace ray::objects {

void PushQueue::Go(PushId push, const ObjectId& key, bool must_serve, const std::optional<Address>& where) {
  if (!pushes_.emplace(push, key).second) return;  // twice: the first one goes on
  Object& object = objects_[key];
  object.waiting.push_back({push, must_serve, where});
  Decide(key, object);
}

std::vector<Address> PushQueue::Others(const ObjectId& key, Object& object, const Push& push) {
  std::vector<Address> out;
  const auto at = copies_.find(key);
  if (at == copies_.end() || !push.where) return out;
  for (const Address& a : at->second) {
    // Those being served count once they have a byte: before, they could not serve it on.
    const auto now = std::find_if(object.now.begin(), object.now.end(), [&](const Push& p) { return p.where == a; });
    if (a != *push.where && (now == object.now.end() || now->sent)) out.push_back(a);
  }
  if (out.size() > 1) {
    std::rotate(out.begin(), out.begin() + static_cast<ptrdiff_t>(object.turn++ % out.size()), out.end());
  }
  if (out.size() > kReferralsMax) out.resize(kReferralsMax);
  return out;
}

void PushQueue::Start(const ObjectId& key, Object& object, Push push) {
  actions_.emplace_back(Serve{push.id});
  ++serving_;
  ++served_;
  if (push.where) {
    const auto at = copies_.find(key);
    if (at != copies_.end() || copies_.size() < kSpreadKeysMax) {
      std::vector<Address>& copies = copies_[key];
      if (copies.size() < kSpreadCopiesMax && std::find(copies.begin(), copies.end(), *push.where) == copies.end()) {
        copies.push_back(*push.where);
      }
    }
  }
  object.now.push_back(std::move(push));
}

void PushQueue::Decide(const ObjectId& key, Object& object) {
  std::deque<Push> waiting = std::exchange(object.waiting, {});
  for (Push& push : waiting) {
    if (push.must_serve || object.now.size() < kServedAtOnceMax) {
      Start(key, object, std::move(push));
      continue;
    }
    std::vector<Address> others = Others(key, object, push);
    if (others.empty()) {
      object.waiting.push_back(std::move(push));
      continue;
    }
    ++referred_;
    pushes_.erase(push.id);
    actions_.emplace_back(ReferTo{push.id, std::move(others)});
  }
}

void PushQueue::Sent(PushId push) {
  const auto at = pushes_.find(push);
  if (at == pushes_.end()) return;
  Object& object = objects_.find(at->second)->second;
  for (Push& p : object.now) {
    if (p.id != push || p.sent) continue;
    p.sent = true;
    if (!object.waiting.empty()) Decide(at->second, object);
    return;
  }
}

void PushQueue::End(PushId push) {
  const auto at = pushes_.find(push);
  if (at == pushes_.end()) return;
  const ObjectId key = at->second;
  pushes_.erase(at);
  const auto found = objects_.find(key);
  Object& object = found->second;
  serving_ -= std::erase_if(object.now, [&](const Push& p) { return p.id == push; });
  std::erase_if(object.waiting, [&](const Push& p) { return p.id == push; });
  Decide(key, object);
  if (object.now.empty() && object.waiting.empty()) objects_.erase(found);
}

void PushQueue::PeerGone(uint64_t peer) {
  for (auto at = pushes_.lower_bound({peer, 0}); at != pushes_.end() && at->first.peer == peer;
       at = pushes_.lower_bound({peer, 0})) {
    End(at->first);
  }
}

std::vector<ObjectId> PushQueue::WithCopies(std::span<const uint8_t> prefix) const {
  std::vector<ObjectId> found;
  for (const auto& [key, at] : copies_) {
    if (std::memcmp(key.bytes, prefix.data(), prefix.size()) == 0) found.push_back(key);
  }
  return found;
}

std::vector<Address> PushQueue::TakeCopies(const ObjectId& key) {
  const auto node = copies_.extract(key);
  return node.empty() ? std::vector<Address>() : std::move(node.mapped());
}

std::string PushQueue::Check() const {
  size_t now = 0, all = 0;
  for (const auto& [key, object] : objects_) {
    now += object.now.size();
    all += object.now.size() + object.waiting.size();
    if (object.now.empty()) return "an object that nobody is sent, and yet somebody waits for or nobody wants";
  }
  if (now != serving_) return "the number of transfers being sent is wrong";
  if (all != pushes_.size()) return "a transfer is in no list, or in two";
  return "";
}

}  // namespace ray::objects
