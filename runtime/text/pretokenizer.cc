#include "runtime/text/pretokenizer.h"

#include <algorithm>

namespace latentmesh {

const char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

struct Part {
  size_t begin, end;
  bool match;
};

std::vector<Part> CutAtMatches(const Regex& regex, std::string_view piece, bool invert) {
  std::vector<Part> parts;
  size_t previous = 0;
  RegexSearch search(regex, piece);
  while (const std::optional<RegexMatch> found = search.Next()) {
    if (found->begin != previous) parts.push_back({previous, found->begin, invert});
    parts.push_back({found->begin, found->end, !invert});
    previous = found->end;
  }
  if (previous != piece.size()) parts.push_back({previous, piece.size(), invert});
  return parts;
}

// Joins a match to the part before it, unless that is a match too; with `contiguous`, parts of one kind to each other.
std::vector<Part> JoinToPrevious(const std::vector<Part>& parts, bool contiguous) {
  std::vector<Part> out;
  bool previous_match = false;
  for (const Part& part : parts) {
    const bool join = contiguous ? part.match == previous_match : part.match && !previous_match;
    if (join && !out.empty()) out.back().end = part.end;
    else out.push_back(part);
    previous_match = part.match;
  }
  return out;
}

std::vector<Part> JoinToNext(const std::vector<Part>& parts) {
  std::vector<Part> out;
  bool next_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->match && !next_match && !out.empty()) out.back().begin = part->begin;
    else out.push_back(*part);
    next_match = part->match;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

class Split : public PreTokenizer {
 public:
  Split(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  void Apply(Pieces& pieces) const override {
    std::vector<std::string_view> out;
    for (const std::string_view piece : pieces.views) {
      for (const Part& part : Cut(piece)) {
        const bool removed = behavior_ == SplitBehavior::kRemoved && part.match;
        if (!removed && part.end > part.begin) out.push_back(piece.substr(part.begin, part.end - part.begin));
      }
    }
    pieces.views = std::move(out);
  }

 private:
  std::vector<Part> Cut(std::string_view piece) const {
    std::vector<Part> parts = CutAtMatches(regex_, piece, invert_);
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious: return JoinToPrevious(parts, false);
      case SplitBehavior::kContiguous: return JoinToPrevious(parts, true);
      case SplitBehavior::kMergedWithNext: return JoinToNext(parts);
      default: return parts;
    }
  }

  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class PrefixSpace : public PreTokenizer {
 public:
  void Apply(Pieces& pieces) const override {
    for (std::string_view& piece : pieces.views)
      if (!piece.starts_with(' ')) piece = pieces.owned.emplace_back(" " + std::string(piece));
  }
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(MetaspaceOptions options) : options_(std::move(options)) {}

  void Apply(Pieces& pieces) const override {
    std::vector<std::string_view> out;
    for (size_t i = 0; i < pieces.views.size(); ++i) {
      const bool first = i == 0 && pieces.at_text_start;
      const std::string& marked = pieces.owned.emplace_back(Mark(pieces.views[i], first));
      if (options_.split) CutAtMarks(marked, out);
      else out.push_back(marked);
    }
    pieces.views = std::move(out);
  }

 private:
  std::string Mark(std::string_view piece, bool first) const {
    using Prepend = MetaspaceOptions::Prepend;
    std::string out;
    const bool prepend = options_.prepend == Prepend::kAlways || (options_.prepend == Prepend::kFirst && first);
    if (prepend && !piece.starts_with(' ') && !piece.starts_with(options_.replacement)) out = options_.replacement;
    for (const char c : piece) {
      if (c == ' ') out += options_.replacement;
      else out += c;
    }
    return out;
  }

  void CutAtMarks(std::string_view text, std::vector<std::string_view>& out) const {
    while (!text.empty()) {
      const size_t next = text.find(options_.replacement, 1);
      out.push_back(text.substr(0, next));
      text = next == std::string_view::npos ? std::string_view() : text.substr(next);
    }
  }

  MetaspaceOptions options_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  void Apply(Pieces& pieces) const override {
    for (const auto& step : steps_) step->Apply(pieces);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

}  // namespace

std::unique_ptr<PreTokenizer> MakeSplit(Regex regex, SplitBehavior behavior, bool invert) {
  return std::make_unique<Split>(std::move(regex), behavior, invert);
}
std::unique_ptr<PreTokenizer> MakePrefixSpace() { return std::make_unique<PrefixSpace>(); }
std::unique_ptr<PreTokenizer> MakeMetaspace(MetaspaceOptions options) {
  return std::make_unique<Metaspace>(std::move(options));
}
std::unique_ptr<PreTokenizer> MakeSequence(std::vector<std::unique_ptr<PreTokenizer>> steps) {
  return std::make_unique<Sequence>(std::move(steps));
}

}  // namespace latentmesh
