// Greedy requests on a golden model whose experts are moved every few steps.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

inline EngineOptions BalanceOptions(const std::string& model, int redundant, int interval) {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 8;
  options.kv_memory = 64 << 20;
  options.expert_balance = true;
  options.redundant_experts = redundant;
  options.balance_interval = interval;
  return options;
}

struct GreedyGolden {
  explicit GreedyGolden(const std::string& folder) {
    auto file = SafetensorsFile::Open(folder + "/expected.safetensors");
    LM_CHECK_MSG(file.ok(), file.status().message());
    prompt = file->ReadTensor("greedy_prompt")->ToInt32().value();
    ids = file->ReadTensor("greedy_ids")->ToInt32().value();
  }
  std::vector<int32_t> prompt, ids;        // ids begin with the prompt
};

inline Status SubmitGreedy(Engine& engine, const std::string& id, const std::vector<int32_t>& prompt, int32_t tokens,
                           std::vector<int32_t>& out) {
  Request request;
  request.id = id;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  request.on_output = [&out](const RequestOutput& output) {
    for (const ChoiceDelta& c : output.choices) out.insert(out.end(), c.token_ids.begin(), c.token_ids.end());
  };
  return engine.Submit(std::move(request));
}

// Requests of one repeated token, each another, so that loads are far from even, then the golden's: `repeats` times, all in
// flight together. Every golden request must give the golden's tokens whatever is moved meanwhile.
inline Status RunUnderMoves(Engine& engine, const GreedyGolden& golden, int repeats, EngineStats& stats) {
  auto tokens = static_cast<int32_t>(golden.ids.size() - golden.prompt.size());
  std::vector<std::vector<int32_t>> outputs(static_cast<size_t>(repeats) * 2);
  for (int i = 0; i < repeats; ++i) {
    std::vector<int32_t> same(24, 7 + 3 * i);
    LM_RETURN_IF_ERROR(SubmitGreedy(engine, "skew" + std::to_string(i), same, tokens, outputs[static_cast<size_t>(2 * i)]));
    LM_RETURN_IF_ERROR(SubmitGreedy(engine, "golden" + std::to_string(i), golden.prompt, tokens,
                                    outputs[static_cast<size_t>(2 * i + 1)]));
  }
  engine.RunUntilIdle();
  stats = engine.Stats();
  std::vector<int32_t> expected(golden.ids.begin() + static_cast<std::ptrdiff_t>(golden.prompt.size()), golden.ids.end());
  for (int i = 0; i < repeats; ++i)
    if (outputs[static_cast<size_t>(2 * i + 1)] != expected)
      return {StatusCode::kInternal, "request golden" + std::to_string(i) + " gave other tokens than the golden"};
  return Status::Ok();
}

}  // namespace latentmesh
