// Pre-tokenization: cuts a text into the pieces that BPE encodes one by one, as tokenizer.json's pre_tokenizer says.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "runtime/text/regex.h"

namespace latentmesh {

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// The pieces of one text. Views point into the text or into `owned`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;  // pieces that differ from the text; addresses stay valid
  bool at_text_start = true;      // false after an added token
};

// One step. Immutable, so it may serve many threads.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void Apply(Pieces& pieces) const = 0;
};

// Cuts each piece at the matches of `regex`; `invert` swaps matches and gaps.
std::unique_ptr<PreTokenizer> MakeSplit(Regex regex, SplitBehavior behavior, bool invert);
// Puts a space before each piece that does not start with one.
std::unique_ptr<PreTokenizer> MakePrefixSpace();
// SentencePiece's form: spaces become `replacement`, one is put before the first or each piece, pieces start there.
struct MetaspaceOptions {
  std::string replacement = "\u2581";
  enum class Prepend { kNever, kFirst, kAlways } prepend = Prepend::kAlways;
  bool split = true;
};
std::unique_ptr<PreTokenizer> MakeMetaspace(MetaspaceOptions options);
std::unique_ptr<PreTokenizer> MakeSequence(std::vector<std::unique_ptr<PreTokenizer>> steps);

// GPT-2's pattern, which the ByteLevel step uses with use_regex.
extern const char kGpt2Pattern[];

struct ParsedPreTokenizer {
  std::unique_ptr<PreTokenizer> step;
  bool byte_level = false;  // BPE sees raw bytes
};

// From the JSON text of tokenizer.json's "pre_tokenizer" (null: one piece a text). Refuses unknown types by name.
Result<ParsedPreTokenizer> ParsePreTokenizer(std::string_view json);

}  // namespace latentmesh
