// Requests that go into the engine and outputs that come out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/sample/sampler.h"
#include "runtime/sample/sampling_params.h"
#include "runtime/schedule/generated_tokens.h"

namespace latentmesh {

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort };
const char* FinishReasonName(FinishReason reason);    // "stop", "length", "abort"; "" for kNone

// What one choice (of n) gained since the last output.
struct ChoiceDelta {
  int32_t index = 0;                   // 0 .. n - 1
  std::string text;                    // whole UTF-8 characters only; held back while a stop string may begin
  std::vector<int32_t> token_ids;
  std::vector<SampledToken> logprobs;  // one for each of token_ids, when asked for
  FinishReason finish = FinishReason::kNone;
  std::string stop_reason;             // the stop string or token id that ended it, if one did
};

struct RequestTimes {                  // seconds since submission; 0 until it happened
  double first_scheduled = 0;
  double first_token = 0;
  double finished = 0;
};

struct RequestOutput {
  std::string request_id;
  std::vector<ChoiceDelta> choices;
  std::vector<SampledToken> prompt_logprobs;   // once, with the first output; entry i scores prompt token i + 1
  bool finished = false;                       // all choices have finished: the last output of the request
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;                   // of the prompt, found in the prefix cache
  int32_t completion_tokens = 0;               // of all choices so far
  RequestTimes times;
};

// What a grammar asks of the tokens of one choice. Clone is called on the submitting thread, the rest on the engine's.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  virtual std::unique_ptr<TokenConstraint> Clone() const = 0;      // at the same point of the grammar
  // Sets the bits [vocab] of the tokens that may follow; ends of sequence are not among them.
  virtual void FillMask(std::span<uint64_t> mask) = 0;
  virtual void Accept(int32_t token_id) = 0;                       // a token of the mask
  virtual bool CanEnd() const = 0;                                 // the output may end here
  virtual bool Finished() const = 0;                               // and no token may follow
  virtual std::string source() const { return ""; }                // what TokenGrammars::FromSource makes it from again
};

struct Request {
  std::string id;                              // unique among live requests
  std::vector<int32_t> prompt_ids;
  SamplingParams sampling;
  std::shared_ptr<const TokenConstraint> constraint;   // optional; each choice follows a clone of it
  // Continues a request that another engine began: [n] what each choice has so far, as it was delivered there; or empty.
  // Outputs then begin with the token after these, and are those of a run without a break: the same random numbers,
  // penalties, stop strings, limits and counts. Neither text and logprobs of these tokens nor prompt_logprobs come again.
  std::vector<GeneratedTokens> generated;
  // Called on the engine's thread, in order; must not block (a slow reader buffers on its own side).
  std::function<void(const RequestOutput&)> on_output;
};

// What can be said of a request without knowing how long it may be. kInvalidArgument names the field.
Status CheckRequest(const Request& request, int64_t vocab_size);

}  // namespace latentmesh
