#include "launch/options.h"

#include <fmt/format.h>

#include <cstdlib>

namespace latentmesh {
namespace {

// Puts a flag over a field when the flag was given.
template <typename T>
void Override(T& field, const std::optional<T>& flag) {
  if (flag.has_value()) field = *flag;
}

Result<std::pair<int32_t, float>> ParseLogitBias(const std::string& text) {
  char* rest = nullptr;
  long long id = std::strtoll(text.c_str(), &rest, 10);
  char* end = nullptr;
  float bias = *rest == ':' ? std::strtof(rest + 1, &end) : 0;
  bool ok = rest != text.c_str() && end != nullptr && end != rest + 1 && *end == '\0' && id >= 0 && id <= INT32_MAX;
  if (!ok) return InvalidArgument(fmt::format("--logit-bias: '{}' is not TOKEN_ID:BIAS", text));
  return std::pair<int32_t, float>(static_cast<int32_t>(id), bias);
}

void RegisterLayout(FlagSet& flags, ParallelConfig* layout) {
  flags.Section("Layout (world size = pp x dp x tp; 0 chooses)");
  flags.Add("--tp", &layout->tp, "Tensor parallel ranks: heads, vocabulary and dense width are split", kNonNegative);
  flags.Add("--dp", &layout->dp, "Data parallel ranks: sequences are dealt out; experts span dp x tp", kNonNegative);
  flags.Add("--pp", &layout->pp, "Pipeline stages: layers are split", kNonNegative);
  flags.Add("--cp", &layout->cp, "Context parallel ranks within tp: the blocks of a sequence's cache are dealt out",
            kNonNegative);
}

void RegisterMemory(FlagSet& flags, EngineOptions* engine) {
  flags.Section("Batch and memory (0 chooses)");
  flags.Add("--max-batch-tokens", &engine->max_batch_tokens, "Tokens a dp rank computes in one step", kNonNegative);
  flags.Add("--max-seqs", &engine->max_seqs, "Sequences a dp rank runs at once", kNonNegative);
  flags.Add("--max-model-len", &engine->max_model_len, "Longest prompt plus output; 0: max_position_embeddings",
            kNonNegative);
  flags.Add("--block-size", &engine->block_size, "Tokens a cache block holds", {.min = 1, .max = 65536});
  flags.AddSize("--kv-offload", &engine->kv_offload, "Host memory a rank for prefixes that the cache evicts; 0: none");
  flags.Add("--kv-store", &engine->kv_store, "Folder on a local disk that keeps prefixes, also for later runs");
  flags.AddSize("--kv-store-size", &engine->kv_store_size, "Bytes it may hold for each model and part of the layout");
  flags.AddSize("--kv-memory", &engine->kv_memory, "Memory of the cache a rank, e.g. 4GB or 512MiB; 0: what fits");
}

void RegisterBalance(FlagSet& flags, EngineOptions* engine, std::string* balance, std::string* micro_batches) {
  flags.Section("Experts");
  flags.AddChoice("--dispatch-dtype", &engine->dispatch_dtype, {"auto", "f32", "bf16", "fp8"},
                  "Numbers of tokens on their way to experts and back (fp8: bf16 back; CPU ranks); auto: as activations");
  flags.Add("--ranks-per-node", &engine->ranks_per_node,
            "Ranks taken for one node, to which a token is sent once; 0: those of one host", kNonNegative);
  flags.AddChoice("--micro-batches", micro_batches, {"auto", "1", "2"},
                  "2: steps in two halves, so that tokens travel to experts while the other half computes (dp above 1)");
  flags.AddChoice("--expert-balance", balance, {"off", "on"}, "Move and copy experts between ranks to follow the load");
  flags.Add("--redundant-experts", &engine->redundant_experts, "Copies of busy experts in each layer, over all ranks",
            kNonNegative);
  flags.Add("--balance-interval", &engine->balance_interval,
            "Steps between two looks at the loads of all ranks; 0: 128 with --expert-balance on, else never",
            kNonNegative);
}

}  // namespace

void ModelFlags::Register(FlagSet& flags) {
  flags.Section("Model and device");
  flags.Add("--model", &engine.model, "Checkpoint folder (config.json, *.safetensors, tokenizer.json)");
  flags.AddChoice("--load-format", &engine.load_format, {"auto", "dummy"},
                  "dummy: random weights, for measuring; needs --shape or a folder with config.json");
  flags.AddChoice("--shape", &engine.shape, {"mini", "v2-lite", "v3"},
                  "Instead of --model, with dummy weights: a shape by name");
  flags.Add("--num-layers", &engine.num_layers, "With dummy weights: only so many decoder layers; 0: all",
            kNonNegative);
  flags.Add("--num-experts", &engine.num_experts,
            "With dummy weights: only so many routed experts, as one rank of a larger layout holds; 0: all", kNonNegative);
  flags.AddChoice("--device", &engine.device, {"auto", "cpu", "cuda"}, "Where the model runs");
  flags.AddChoice("--dtype", &engine.dtype, {"auto", "f32", "bf16"}, "Type of weights and activations");
  flags.AddChoice("--weights", &engine.weights, {"auto", "f32", "bf16", "fp8", "int8", "int4"},
                  "What weight matrices are kept as, whatever the checkpoint stores; int8 and int4 on CPUs only");
  flags.AddChoice(
      "--kv-dtype", &engine.kv_dtype, {"auto", "f32", "bf16", "fp8", "6bit"},
      "Numbers of the cache; fp8 and 6bit hold latents (DeepSeek models) in 1 and 3/4 bytes, with a scale a 128");
  flags.Add("--threads", &engine.threads, "Compute threads a rank; 0: the cores of this rank", kNonNegative);
  flags.AddSwitch("--share-gpu", &engine.share_gpu, "Several ranks may use one GPU");
  RegisterLayout(flags, &engine.layout);
  flags.Add("--prefill-ranks", &engine.prefill_ranks, "dp ranks that only compute prompts, for the others to go on with",
            kNonNegative);
  flags.AddSwitch("--no-migration", &no_migration, "Sequences and cached prefixes stay on their dp rank");
  RegisterMemory(flags, &engine);
  RegisterBalance(flags, &engine, &expert_balance, &micro_batches);
  flags.Section("Running");
  flags.AddChoice("--attention", &attention, {"auto", "absorbed", "expanded"},
                  "Form of latent attention; auto switches at the crossover of their costs");
  flags.AddChoice(
      "--speculative", &engine.speculative, {"auto", "mtp", "ngram"},
      "Where drafts come from: the checkpoint's prediction layer, or the text so far; auto: mtp if there is one");
  flags.Add("--speculative-tokens", &engine.speculative_tokens,
            "Drafts a sequence and step at most; fewer where they do not pay; 0: off", {.min = 0, .max = 15});
  flags.AddSwitch("--speculative-fixed", &speculative_fixed,
                  "Always as many drafts as --speculative-tokens says, also where they do not pay");
  flags.AddChoice("--cuda-graphs", &engine.cuda_graphs, {"auto", "off"},
                  "Decode steps on GPUs are captured into graphs, one for each size of batch; off: queued one by one");
  flags.AddSwitch("--run-ahead", &engine.run_ahead,
                  "On one rank: a decode step is queued before the tokens of the one before it are known");
  flags.AddSwitch("--enforce-eager", &enforce_eager, "The same as --cuda-graphs off");
  flags.AddSwitch("--no-prefix-caching", &no_prefix_caching, "Compute every prompt, also where a prefix is cached");
  flags.AddSwitch("--dedicated-scheduler", &dedicated_scheduler, "Free rank 0 from model work (not available yet)");
  flags.Add("--seed", &engine.seed, "Seed of requests that bring none", kNonNegative);
  flags.Add("--step-timeout", &step_timeout, "Seconds a rank waits for another before the job is ended", {.min = 0.1});
  flags.Add("--idle-timeout", &idle_timeout, "Seconds an idle rank hears nothing before the job is ended", {.min = 2});
  flags.AddSwitch("--check-collectives", &engine.check_collectives,
                  "After each step, check that all ranks made the same calls and got what was sent (slow)");
  flags.Add("--inject-fault", &engine.inject_fault,
            "For tests: throw@RANK:STEP, corrupt@RANK:STEP or slow@RANK:STEP:SECONDS");
  flags.Add("--trace", &engine.trace, "File for a timeline of all ranks' steps (Chrome trace JSON; opens in Perfetto)");
  flags.AddChoice("--log-level", &log_level, {"trace", "debug", "info", "warn", "error", "off"},
                  "What is logged to stderr");
}

Result<EngineOptions> ModelFlags::Resolve() const {
  if (dedicated_scheduler) {
    return InvalidArgument("--dedicated-scheduler: this version has rank 0 compute as well; leave the flag out");
  }
  if (!engine.shape.empty() && engine.load_format != "dummy")
    return InvalidArgument("--shape " + engine.shape + ": a shape has no weights; add --load-format dummy");
  if (!engine.shape.empty() && !engine.model.empty()) return InvalidArgument("--shape and --model: give one");
  if (engine.shape.empty() && engine.model.empty())
    return InvalidArgument("--model is required (or --load-format dummy --shape NAME)");
  EngineOptions options = engine;
  options.prefix_caching = !no_prefix_caching;
  if (enforce_eager) options.cuda_graphs = "off";
  options.speculative_adapt = !speculative_fixed;
  options.migration = !no_migration;
  options.expert_balance = expert_balance == "on";
  options.micro_batches = micro_batches == "auto" ? 0 : std::stoi(micro_batches);
  options.attention = attention == "absorbed"   ? AttentionMode::kAbsorbed
                      : attention == "expanded" ? AttentionMode::kExpanded
                                                : AttentionMode::kAuto;
  return options;
}

void SamplingFlags::Register(FlagSet& flags) {
  flags.Section("Sampling (unset: generation_config.json of the checkpoint, then the value in brackets)");
  flags.Add("--max-tokens", &max_tokens, "Tokens to generate [128]", kPositive);
  flags.Add("--min-tokens", &min_tokens, "No end of sequence and no stop token before this many [0]", kNonNegative);
  flags.Add("--temperature", &temperature, "0 is greedy [1]", kNonNegative);
  flags.Add("--top-p", &top_p, "Smallest set of tokens with this probability [1]", {.min = 0, .max = 1});
  flags.Add("--top-k", &top_k, "Most likely tokens to draw from; 0 or -1: all [0]", {.min = -1});
  flags.Add("--min-p", &min_p, "Drop tokens below this fraction of the best one's probability [0]",
            {.min = 0, .max = 1});
  flags.Add("--n", &n, "Continuations of each prompt [1]", kPositive);
  flags.Add("--presence-penalty", &presence_penalty, "Subtracted from tokens generated before [0]",
            {.min = -2, .max = 2});
  flags.Add("--frequency-penalty", &frequency_penalty, "The same, times their count [0]", {.min = -2, .max = 2});
  flags.Add("--repetition-penalty", &repetition_penalty, "Divides the logits of tokens seen before [1]", kNonNegative);
  flags.AddList("--stop", &stop, "Text that ends the output (repeatable)");
  flags.AddNumbers("--stop-token-ids", &stop_token_ids, "Token ids that end the output");
  flags.AddSwitch("--include-stop-str-in-output", &include_stop_str_in_output, "Keep the stop text");
  flags.AddSwitch("--ignore-eos", &ignore_eos, "Go on after the end of sequence");
  flags.Add("--logprobs", &logprobs, "Log probabilities of this many alternatives (json)", kNonNegative);
  flags.Add("--prompt-logprobs", &prompt_logprobs, "The same for the prompt (json)", kNonNegative);
  flags.AddList("--logit-bias", &logit_bias, "TOKEN_ID:BIAS, added to a logit (repeatable)");
  flags.AddSwitch("--keep-special-tokens", &keep_special_tokens, "Print special tokens too");
  flags.AddChoice("--generation-config", &generation_config, {"auto", "none"}, "Defaults from generation_config.json");
}

Result<SamplingParams> SamplingFlags::Apply(SamplingParams params) const {
  Override(params.n, n);
  Override(params.temperature, temperature);
  Override(params.top_p, top_p);
  Override(params.top_k, top_k);
  Override(params.min_p, min_p);
  Override(params.presence_penalty, presence_penalty);
  Override(params.frequency_penalty, frequency_penalty);
  Override(params.repetition_penalty, repetition_penalty);
  Override(params.max_tokens, max_tokens);
  Override(params.min_tokens, min_tokens);
  if (logprobs.has_value()) params.logprobs = logprobs;
  if (prompt_logprobs.has_value()) params.prompt_logprobs = prompt_logprobs;
  if (ignore_eos) params.stop_token_ids.clear();     // ends of sequence from generation_config.json
  params.stop.insert(params.stop.end(), stop.begin(), stop.end());
  params.stop_token_ids.insert(params.stop_token_ids.end(), stop_token_ids.begin(), stop_token_ids.end());
  for (const std::string& text : logit_bias) {
    LM_ASSIGN_OR_RETURN(auto bias, ParseLogitBias(text));
    params.logit_bias.push_back(bias);
  }
  params.include_stop_str_in_output |= include_stop_str_in_output;
  params.ignore_eos |= ignore_eos;
  params.skip_special_tokens = !keep_special_tokens;
  return params;
}

}  // namespace latentmesh
