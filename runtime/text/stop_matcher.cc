#include "runtime/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace latentmesh {
namespace {

std::vector<size_t> Borders(std::string_view text) {
  std::vector<size_t> border(text.size() + 1, 0);
  for (size_t n = 2; n <= text.size(); ++n) {
    size_t k = border[n - 1];
    while (k > 0 && text[k] != text[n - 1]) k = border[k];
    border[n] = text[k] == text[n - 1] ? k + 1 : 0;
  }
  return border;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop) : include_stop_(include_stop) {
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) continue;
    std::vector<size_t> border = Borders(stops[i]);
    patterns_.push_back({i, std::move(stops[i]), std::move(border), 0});
  }
}

size_t StopMatcher::Advance(const Pattern& pattern, size_t matched, char c) {
  while (matched > 0 && pattern.text[matched] != c) matched = pattern.border[matched];
  return pattern.text[matched] == c ? matched + 1 : 0;
}

const StopMatcher::Pattern* StopMatcher::Step(char c) {
  const Pattern* complete = nullptr;
  for (Pattern& pattern : patterns_) {
    pattern.matched = Advance(pattern, pattern.matched, c);
    const bool longer = !complete || pattern.text.size() > complete->text.size();
    if (pattern.matched == pattern.text.size() && longer) complete = &pattern;
  }
  return complete;
}

std::string StopMatcher::Push(std::string_view text) {
  if (found_) return "";
  for (const char c : text) {
    held_ += c;
    const Pattern* complete = Step(c);
    if (!complete) continue;
    found_ = complete->index;
    if (!include_stop_) held_.resize(held_.size() - complete->text.size());
    return std::exchange(held_, "");
  }
  size_t keep = 0;
  for (const Pattern& pattern : patterns_) keep = std::max(keep, pattern.matched);
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Finish() { return std::exchange(held_, ""); }

}  // namespace latentmesh
