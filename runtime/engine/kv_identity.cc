#include "runtime/engine/kv_identity.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr int kSamples = 16;                   // a file
constexpr uint64_t kSampleBytes = 4096;

Status CannotRead(const std::string& path) { return IoError(fmt::format("cannot read {}: {}", path, std::strerror(errno))); }

Result<std::string> DescribeFile(const std::string& directory, const std::string& name) {
  std::string path = directory + "/" + name;
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return CannotRead(path);
  std::string text = fmt::format("\n{} {} {}.{:09}\n", name, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
  std::ifstream file(path, std::ios::binary);
  uint64_t size = static_cast<uint64_t>(info.st_size), last = size > kSampleBytes ? size - kSampleBytes : 0;
  for (int i = 0; i < kSamples; ++i) {
    std::string sample(std::min(kSampleBytes, size), 0);
    file.seekg(static_cast<std::streamoff>(last * static_cast<uint64_t>(i) / (kSamples - 1)));
    if (!file.read(sample.data(), static_cast<std::streamsize>(sample.size()))) return CannotRead(path);
    text += sample;
  }
  return text;
}

Result<std::string> ReadConfig(const EngineOptions& options) {
  if (options.model.empty()) return "shape " + options.shape;
  std::string path = options.model + "/config.json";
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return file ? Result<std::string>(text.str()) : CannotRead(path);
}

}  // namespace

Result<std::string> ModelIdentity(const EngineOptions& options, const std::vector<std::string>& files) {
  LM_ASSIGN_OR_RETURN(std::string text, ReadConfig(options));
  text += fmt::format("\n{} {} layers {} experts\n", options.load_format, options.num_layers, options.num_experts);
  for (const std::string& name : files) {
    LM_ASSIGN_OR_RETURN(std::string described, DescribeFile(options.model, name));
    text += described;
  }
  Sha256Digest digest = Sha256(text);
  return std::string(digest.begin(), digest.end());
}

Sha256Digest BlockIdentity(const std::string& model_identity, const RankSetup& s) {
  const CacheShape& cache = s.cache;
  std::string text = fmt::format("{} dtype {} weights {} kv {} block {} latent {} rope {} layers {}+{} of {} cp {}/{} heads {}+{}",
                                 model_identity, s.options.dtype, s.options.weights, CacheFormatName(cache.format),
                                 cache.block_size, cache.latent, cache.rope, s.shard.layers.begin, s.shard.layers.count,
                                 cache.layers, s.shard.cp_rank, s.shard.layout.cp, s.shard.kv_heads.begin, s.shard.kv_heads.count);
  return Sha256(text);
}

}  // namespace latentmesh
