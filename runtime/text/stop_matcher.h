// Finds stop strings in text that arrives in pieces, across their borders.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace latentmesh {

// One stream of text. Not thread-safe.
//
// Text that may be the beginning of a stop string is held back until later text decides. Each stop string is followed
// by its Knuth-Morris-Pratt automaton, so a byte costs amortized O(1) per stop string.
class StopMatcher {
 public:
  // Empty stop strings are ignored. `include_stop`: a found stop string belongs to the output.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  // The text that is now certain to belong to the output. Once stopped, further text is dropped.
  std::string Push(std::string_view text);
  // At the end of the stream: what was held back.
  std::string Finish();

  bool stopped() const { return found_.has_value(); }
  // The index of the stop string that was found: the one that ended first, of those the one that began first.
  std::optional<size_t> found() const { return found_; }

 private:
  struct Pattern {
    size_t index;                // in the caller's list
    std::string text;
    std::vector<size_t> border;  // border[n]: longest proper prefix of text[0, n) that is also its suffix
    size_t matched = 0;
  };
  static size_t Advance(const Pattern& pattern, size_t matched, char c);
  // Steps every pattern by one byte; the pattern that is complete now, or null.
  const Pattern* Step(char c);

  std::vector<Pattern> patterns_;
  bool include_stop_;
  std::optional<size_t> found_;
  std::string held_;
};

}  // namespace latentmesh
