// StreamWriter: the server-sent events of one streamed answer. What a client has not taken yet is kept merged, one
// delta a choice, so a slow reader costs the size of its text and nothing more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/openai_response.h"
#include "runtime/engine/request.h"

namespace latentmesh {

// I/O thread only. Everything given to the constructor must outlive it.
class StreamWriter {
 public:
  StreamWriter(const ApiRequest& request, const ApiAnswerMeta& meta, const TextCodec& codec);

  void Add(size_t prompt, const RequestOutput& output);
  size_t pending_bytes() const { return pending_bytes_; }        // roughly
  // The events of all that was added since; "" when there is nothing to say.
  std::string Take();
  // The usage event, if it was asked for, and [DONE].
  std::string End() const;
  TokenUsage usage() const;

 private:
  struct Choice {
    ChoiceDelta delta;                     // added and not taken yet
    bool pending = false;
    bool started = false;                  // its first event is out
    int64_t text_offset = 0;
  };
  void AppendEvent(std::string& out, size_t index);
  void AppendOpening(std::string& out, size_t index);
  void AppendChoice(std::string& out, size_t index, std::string_view text, std::string_view logprobs,
                    const ChoiceDelta* end) const;

  const ApiRequest& request_;
  const TextCodec& codec_;
  bool chat_;
  std::string prefix_;                     // an event up to its choice
  std::string suffix_;
  std::vector<Choice> choices_;            // prompt by prompt
  std::vector<size_t> order_;              // pending choices
  std::vector<std::vector<SampledToken>> prompt_logprobs_;
  std::vector<TokenUsage> usage_;          // of each prompt
  size_t pending_bytes_ = 0;
};

// `text` as a JSON string, with its quotes; text must be UTF-8.
void AppendJsonString(std::string& out, std::string_view text);
// One server-sent event.
std::string ServerSentEvent(std::string_view data);

}  // namespace latentmesh
