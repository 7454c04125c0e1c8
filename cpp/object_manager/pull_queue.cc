// The decisions of a puller; pull_queue.h has the states.
#include "object_manager/pull_queue.h"

#include <algorithm>

namespace ray::objects {

bool PullQueue::Pull::urgent() const {
  return std::any_of(askers.begin(), askers.end(), [](const auto& a) { return a.second == Urgency::kGet; });
}

PullQueue::Pull* PullQueue::Find(TransferId transfer, ObjectId* key) {
  const auto at = transfers_.find(transfer);
  if (at == transfers_.end()) return nullptr;  // of a source that we have left; its words still arrive
  *key = at->second;
  return &pulls_.find(*key)->second;
}

void PullQueue::AddSources(Pull& pull, const std::vector<Address>& addresses, bool first) {
  size_t at = first ? 0 : pull.sources.size();
  for (const Address& address : addresses) {
    if (pull.sources.size() >= kSourcesMax) return;
    const auto same = [&](const Source& s) { return s.address == address; };
    if (std::any_of(pull.sources.begin(), pull.sources.end(), same)) continue;
    Source source;
    source.address = address;
    pull.sources.insert(pull.sources.begin() + static_cast<ptrdiff_t>(at++), source);
  }
}

void PullQueue::Want(PullAsker asker, const PullBody& what, int64_t now_ns) {
  const auto [at, fresh] = pulls_.try_emplace(what.key);
  Pull& pull = at->second;
  pull.askers.emplace_back(asker, what.urgency);
  if (!fresh) {
    ++joined_;
    // Behind the others: indices of sources in use stay as they are.
    const size_t known = pull.sources.size();
    AddSources(pull, what.sources, false);
    if (pull.state == State::kQueued) Admit();
    if (pull.state == State::kPaused && pull.sources.size() > known) AskNext(what.key, pull, now_ns);
    return;
  }
  ++started_;
  pull.arrival = next_arrival_++;
  AddSources(pull, what.sources, false);
  AskNext(what.key, pull, now_ns);
}

void PullQueue::LetGo(PullAsker asker) {
  for (auto& [key, pull] : pulls_) {
    if (std::erase_if(pull.askers, [&](const auto& a) { return a.first == asker; }) == 0) continue;
    if (pull.askers.empty()) {
      const ObjectId gone = key;
      Drop(gone, pull);
    }
    return;
  }
}

void PullQueue::LineGone(uint64_t line) {
  std::vector<ObjectId> orphaned;
  for (auto& [key, pull] : pulls_) {
    std::erase_if(pull.askers, [&](const auto& a) { return a.first.line == line; });
    if (pull.askers.empty()) orphaned.push_back(key);
  }
  for (const ObjectId& key : orphaned) Drop(key, pulls_.find(key)->second);
}

void PullQueue::Leave(Pull& pull, bool tell_source) {
  if (pull.transfer == 0) return;
  if (tell_source) actions_.emplace_back(SendEnd{pull.transfer});
  transfers_.erase(pull.transfer);
  pull.transfer = 0;
}

void PullQueue::Drop(const ObjectId& key, Pull& pull) {
  Leave(pull, true);
  if (pull.state == State::kQueued) --queued_;
  // A room that nobody has begun to ask for isn't: it would be made for a new pull of this key, and undone under that.
  const size_t not_begun = std::erase_if(actions_, [&](const PullAction& action) {
    const auto* room = std::get_if<MakeRoom>(&action);
    return room != nullptr && room->key == key;
  });
  if (not_begun == 0 && (pull.state == State::kRoom || pull.has_extent)) actions_.emplace_back(DropRoom{key});
  pulls_.erase(key);
  Admit();
}

void PullQueue::Fail(const ObjectId& key, Pull& pull, Outcome outcome, const std::string& text) {
  ++failed_;
  for (const auto& [asker, urgency] : pull.askers) actions_.emplace_back(Tell{asker, key, outcome, text});
  Drop(key, pull);
}

void PullQueue::AskNext(const ObjectId& key, Pull& pull, int64_t now_ns) {
  Leave(pull, true);
  for (;;) {
    const auto next = std::find_if(pull.sources.begin(), pull.sources.end(),
                                   [](const Source& s) { return !s.lost && !s.silent && !s.referred; });
    const auto last =
        std::find_if(pull.sources.begin(), pull.sources.end(), [](const Source& s) { return !s.lost && !s.silent; });
    const auto chosen = next != pull.sources.end() ? next : last;  // who has referred us comes after those others
    if (chosen != pull.sources.end()) {
      pull.source = static_cast<size_t>(chosen - pull.sources.begin());
      chosen->broken = false;
      pull.transfer = next_transfer_++;
      transfers_.emplace(pull.transfer, key);
      if (pull.state == State::kFlowing) ++resumed_;
      if (pull.state != State::kRoom && pull.state != State::kQueued) pull.state = State::kAsking;
      pull.deadline_ns = now_ns + kSilenceNs;
      actions_.emplace_back(SendAsk{pull.transfer, chosen->address, key, pull.received});
      return;
    }
    if (Pause(pull, now_ns)) return;
    const bool any_silent =
        std::any_of(pull.sources.begin(), pull.sources.end(), [](const Source& s) { return s.silent && !s.lost; });
    if (!any_silent || ++pull.rounds >= kRoundsMax) break;
    for (Source& s : pull.sources) s.silent = false;
  }
  std::string text = "no copy of the object could be fetched";
  if (pull.sources.empty()) text += ": nobody was named who has it";
  size_t named = 0;
  for (const Source& s : pull.sources) {
    if (++named > kReferralsMax) break;
    text += "; " + s.address.Text() + ": " + (s.why.empty() ? "silent" : s.why);
  }
  Fail(key, pull, Outcome::kNoSource, text);
}

// All sources left are silent. True: some only because they can't be reached, and it is worth to wait for them.
bool PullQueue::Pause(Pull& pull, int64_t now_ns) {
  if (std::none_of(pull.sources.begin(), pull.sources.end(), [](const Source& s) { return s.broken && !s.lost; })) {
    return false;
  }
  if (pull.broken_since_ns == 0) pull.broken_since_ns = now_ns;
  if (now_ns - pull.broken_since_ns >= kBrokenNs) return false;
  if (pull.state == State::kRoom || pull.state == State::kQueued) return true;  // they are asked when there is room
  pull.pause_ns = std::clamp(2 * pull.pause_ns, kPauseMinNs, kPauseMaxNs);
  pull.state = State::kPaused;
  pull.deadline_ns = now_ns + pull.pause_ns;
  return true;
}

void PullQueue::Sizes(TransferId transfer, const SizesBody& sizes, int64_t now_ns) {
  ObjectId key;
  Pull* pull = Find(transfer, &key);
  if (pull == nullptr || pull->state == State::kFlowing) return;
  if (sizes.data_bytes > UINT64_MAX / 4 || sizes.metadata_bytes > UINT64_MAX / 4) {
    return SourceLost(transfer, "says that the object is larger than any memory", now_ns);
  }
  if (pull->sizes_known && (pull->data_bytes != sizes.data_bytes || pull->metadata_bytes != sizes.metadata_bytes)) {
    return SourceLost(transfer, "has an object of that id, but of another size", now_ns);
  }
  const uint64_t total = sizes.data_bytes + sizes.metadata_bytes;
  if (sizes.have_bytes < total && sizes.have_bytes <= pull->received) {
    return SourceLost(transfer, "is receiving it itself, and has no more of it than we", now_ns);
  }
  pull->broken_since_ns = pull->pause_ns = 0;
  pull->sizes_known = true;
  pull->data_bytes = sizes.data_bytes;
  pull->metadata_bytes = sizes.metadata_bytes;
  if (pull->has_extent) return Go(*pull, now_ns);
  pull->deadline_ns = INT64_MAX;  // now it is we who keep the source waiting
  if (pull->state != State::kAsking) return;
  if (pull->urgent()) {  // gets are asked for in the order in which they come here, at once
    pull->state = State::kRoom;
    actions_.emplace_back(MakeRoom{key, pull->data_bytes, pull->metadata_bytes});
    return;
  }
  pull->state = State::kQueued;
  ++queued_;
  Admit();
}

void PullQueue::Admit() {
  if (queued_ == 0) return;  // the usual case, and the rest looks at every pull
  std::vector<std::pair<uint64_t, Pulls::iterator>> gets, prefetches;
  bool get_waits = false;
  for (auto at = pulls_.begin(); at != pulls_.end(); ++at) {
    const bool urgent = at->second.urgent();
    if (at->second.state == State::kRoom && urgent) get_waits = true;
    if (at->second.state == State::kQueued) (urgent ? gets : prefetches).emplace_back(at->second.arrival, at);
  }
  // A prefetch that took the room for which a get waits would have it wait for nothing.
  auto& next = !gets.empty() ? gets : prefetches;
  if (gets.empty() && get_waits) return;
  std::sort(next.begin(), next.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [arrival, at] : next) {
    at->second.state = State::kRoom;
    --queued_;
    actions_.emplace_back(MakeRoom{at->first, at->second.data_bytes, at->second.metadata_bytes});
  }
}

void PullQueue::RoomMade(const ObjectId& key, int64_t now_ns) {
  const auto at = pulls_.find(key);
  // Not in ROOM: it was made for an earlier pull of this key, whose DropRoom is still to be done and undoes it.
  if (at == pulls_.end() || at->second.state != State::kRoom) return;
  Pull& pull = at->second;
  pull.has_extent = true;
  pull.state = State::kAsking;
  if (pull.total() == 0) return Finish(key, pull);
  if (pull.transfer != 0 && pull.deadline_ns == INT64_MAX) {
    Go(pull, now_ns);  // its sizes are known
  } else if (pull.transfer == 0) {
    AskNext(key, pull, now_ns);
  }
  Admit();
}

void PullQueue::Go(Pull& pull, int64_t now_ns) {
  pull.state = State::kFlowing;
  pull.deadline_ns = now_ns + kSilenceNs;
  actions_.emplace_back(SendGo{pull.transfer, pull.received, pull.sources[pull.source].referred});
}

void PullQueue::RoomRefused(const ObjectId& key, const std::string& why) {
  const auto at = pulls_.find(key);
  if (at != pulls_.end() && at->second.state == State::kRoom) Fail(key, at->second, Outcome::kNoRoom, why);
}

void PullQueue::Freed(const ObjectId& key) {
  const auto at = pulls_.find(key);
  if (at != pulls_.end()) Fail(key, at->second, Outcome::kNoSource, "its owner has freed it, or makes it anew");
}

void PullQueue::CameOtherwise(const ObjectId& key) {
  const auto at = pulls_.find(key);
  if (at == pulls_.end()) return;
  Pull& pull = at->second;
  Leave(pull, true);
  ++done_;
  for (const auto& [asker, urgency] : pull.askers) actions_.emplace_back(Tell{asker, key, Outcome::kHere, ""});
  pulls_.erase(at);
  Admit();
}

void PullQueue::Refer(TransferId transfer, const std::vector<Address>& to, int64_t now_ns) {
  ObjectId key;
  Pull* pull = Find(transfer, &key);
  if (pull == nullptr) return;
  pull->sources[pull->source].referred = true;
  AddSources(*pull, to, true);
  AskNext(key, *pull, now_ns);
}

void PullQueue::SourceLost(TransferId transfer, const std::string& why, int64_t now_ns) {
  ObjectId key;
  Pull* pull = Find(transfer, &key);
  if (pull == nullptr) return;
  Source& source = pull->sources[pull->source];
  source.lost = true;
  source.why = why;
  AskNext(key, *pull, now_ns);
}

void PullQueue::SourceBroken(TransferId transfer, const std::string& why, int64_t now_ns) {
  ObjectId key;
  Pull* pull = Find(transfer, &key);
  if (pull == nullptr) return;
  Source& source = pull->sources[pull->source];
  source.silent = source.broken = true;
  source.why = why;
  AskNext(key, *pull, now_ns);
}

void PullQueue::SourceDown(const Address& address, const std::string& why, int64_t now_ns) {
  std::vector<ObjectId> asking;
  for (auto& [key, pull] : pulls_) {
    for (size_t i = 0; i < pull.sources.size(); ++i) {
      Source& source = pull.sources[i];
      if (source.address != address) continue;
      source.lost = true;
      source.why = why;
      if (pull.state == State::kPaused || (pull.transfer != 0 && pull.source == i)) asking.push_back(key);
    }
  }
  for (const ObjectId& key : asking) {  // each may end other pulls' waiting, and its own
    if (const auto at = pulls_.find(key); at != pulls_.end()) AskNext(key, at->second, now_ns);
  }
}

void PullQueue::Got(TransferId transfer, uint64_t bytes, int64_t now_ns) {
  ObjectId key;
  Pull* pull = Find(transfer, &key);
  if (pull == nullptr || pull->state != State::kFlowing) return;
  pull->received += bytes;
  pull->deadline_ns = now_ns + kSilenceNs;
  if (pull->received >= pull->total()) Finish(key, *pull);
}

void PullQueue::Finish(const ObjectId& key, Pull& pull) {
  Leave(pull, true);
  ++done_;
  actions_.emplace_back(Seal{key});
  for (const auto& [asker, urgency] : pull.askers) actions_.emplace_back(Tell{asker, key, Outcome::kHere, ""});
  pulls_.erase(key);
  Admit();
}

void PullQueue::Tick(int64_t now_ns) {
  std::vector<TransferId> silent;
  std::vector<ObjectId> rested;
  for (const auto& [key, pull] : pulls_) {
    if (pull.transfer != 0 && pull.deadline_ns <= now_ns) silent.push_back(pull.transfer);
    if (pull.state == State::kPaused && pull.deadline_ns <= now_ns) rested.push_back(key);
  }
  for (const ObjectId& key : rested) {
    Pull& pull = pulls_.find(key)->second;
    for (Source& s : pull.sources) s.silent = s.broken = false;
    AskNext(key, pull, now_ns);
  }
  for (const TransferId transfer : silent) {
    ObjectId key;
    Pull* pull = Find(transfer, &key);
    if (pull == nullptr) continue;
    Source& source = pull->sources[pull->source];
    source.silent = true;
    source.why = "it sent nothing for " + std::to_string(kSilenceNs / kNsPerS) + " s";
    AskNext(key, *pull, now_ns);
  }
}

std::optional<int64_t> PullQueue::next_deadline_ns() const {
  std::optional<int64_t> next;
  for (const auto& [key, pull] : pulls_) {
    const bool waits = pull.transfer != 0 || pull.state == State::kPaused;
    if (waits && pull.deadline_ns != INT64_MAX && (!next || pull.deadline_ns < *next)) {
      next = pull.deadline_ns;
    }
  }
  return next;
}

std::optional<uint64_t> PullQueue::Received(const ObjectId& key) const {
  const auto at = pulls_.find(key);
  if (at == pulls_.end() || !at->second.has_extent) return std::nullopt;
  return at->second.received;
}

std::optional<ObjectId> PullQueue::KeyOf(TransferId transfer) const {
  const auto at = transfers_.find(transfer);
  if (at == transfers_.end()) return std::nullopt;
  return at->second;
}

uint64_t PullQueue::Missing(TransferId transfer) const {
  const auto at = transfers_.find(transfer);
  if (at == transfers_.end()) return 0;
  const Pull& pull = pulls_.find(at->second)->second;
  return pull.state == State::kFlowing ? pull.total() - pull.received : 0;
}

std::string PullQueue::Check() const {
  size_t in_use = 0;
  for (const auto& [key, pull] : pulls_) {
    const std::string which = "pull " + key.Hex().substr(0, 8) + ": ";
    if (pull.askers.empty()) return which + "nobody waits for it";
    if (pull.transfer != 0) {
      ++in_use;
      const auto at = transfers_.find(pull.transfer);
      if (at == transfers_.end() || !(at->second == key)) return which + "its transfer is not indexed";
      if (pull.source >= pull.sources.size()) return which + "it uses a source that it has not got";
    }
    switch (pull.state) {
      case State::kAsking:
        if (pull.transfer == 0) return which + "ASKING nobody";
        break;
      case State::kPaused:
        if (pull.transfer != 0) return which + "PAUSED, and asks";
        break;
      case State::kQueued:
      case State::kRoom:
        if (pull.has_extent) return which + "waits for room and has it";
        if (!pull.sizes_known) return which + "waits for room of unknown size";
        break;
      case State::kFlowing:
        if (pull.transfer == 0 || !pull.has_extent) return which + "FLOWING from nowhere, or to nowhere";
        if (pull.received > pull.total()) return which + "has more than all";
        break;
    }
    if (!pull.has_extent && pull.received != 0) return which + "bytes without an extent";
  }
  if (std::count_if(pulls_.begin(), pulls_.end(), [](const auto& p) { return p.second.state == State::kQueued; }) !=
      static_cast<ptrdiff_t>(queued_)) {
    return "the number of pulls that are QUEUED is wrong";
  }
  if (in_use != transfers_.size()) return "transfers that belong to no pull";
  return "";
}

}  // namespace ray::objects
