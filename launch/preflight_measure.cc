#include "launch/preflight_measure.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <thread>

namespace latentmesh {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// The same on all ranks: both ends of a message count alike.
constexpr int kRepeats = 3;
constexpr int kSmallRepeats = 10;
constexpr int64_t kColumns = 4096;
constexpr size_t kWeightBytes = size_t{256} << 20;  // more than caches hold
constexpr size_t kFileBytes = size_t{64} << 20;
constexpr double kFileSeconds = 2;
constexpr auto kSimulatedWait = std::chrono::milliseconds(30);

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Prober {
 public:
  Prober(const MeasureTools& tools, const MeasureOptions& options) : t_(tools), options_(options) {}

  // Seconds of the quickest of `repeats` runs after one that warms up.
  double Best(int repeats, const std::function<void()>& run) {
    double best = std::numeric_limits<double>::max();
    for (int i = 0; i <= repeats; ++i) {
      Clock::time_point start = Clock::now();
      if (options_.simulate_slow) std::this_thread::sleep_for(kSimulatedWait);
      run();
      t_.stream.Synchronize();
      if (i > 0) best = std::min(best, Since(start));
    }
    return std::max(best, 1e-9);
  }

  void Compute(RankProbe& probe);
  void Links(const std::vector<std::string>& hosts, RankProbe& probe);
  void Collectives(RankProbe& probe);
  void Files(RankProbe& probe);

 private:
  LinkProbe Exchange(int to, int from);
  void AllPairs(RankProbe& probe);
  void Matching(const std::function<int(int)>& partner_of, RankProbe& probe);
  void Sample(RankProbe& probe);
  double Collective(const CollectiveSize& size);
  double Slowest(double seconds);
  Tensor Filled(DType dtype, int64_t rows, int64_t cols);

  const MeasureTools& t_;
  const MeasureOptions& options_;
};

// Small normal numbers whatever the type: denormal ones and NaN may be slow.
Tensor Prober::Filled(DType dtype, int64_t rows, int64_t cols) {
  Tensor tensor(&t_.device, dtype, {rows, cols});
  t_.device.Fill(tensor.view.data, 0x3c, tensor.view.bytes(), t_.stream);
  return tensor;
}

// One token through a large matrix reads it once; many tokens through a smaller one are bound by multiply-adds.
void Prober::Compute(RankProbe& probe) {
  DType dtype = t_.device.kind() == DeviceKind::kCuda ? DType::kBF16 : DType::kF32;
  size_t bytes = std::min(kWeightBytes, t_.device.free_memory() / 4);
  int64_t rows = std::max<int64_t>(64, static_cast<int64_t>(bytes / (kColumns * DTypeSize(dtype))));
  bool gpu = t_.device.kind() == DeviceKind::kCuda;
  int64_t many = gpu ? 4096 : 64, product_rows = std::min<int64_t>(rows, gpu ? 4096 : 512);
  Tensor weight = Filled(dtype, rows, kColumns), x = Filled(dtype, many, kColumns),
         out = Filled(dtype, many, std::max(rows, product_rows));
  auto product = [&](int64_t tokens, int64_t n) {
    GemmParams p;
    p.x = x.view.Rows(0, tokens);
    p.w = {dtype, weight.view.data, n, kColumns};
    p.out = TensorView(out.view.data, dtype, {tokens, n});
    t_.ops.Gemm(p, t_.stream);
  };
  t_.world.Barrier(t_.stream);
  double read = Best(kRepeats, [&] { product(1, rows); });
  probe.memory_bandwidth = static_cast<double>(weight.view.bytes()) / read;
  t_.world.Barrier(t_.stream);
  double multiply = Best(kRepeats, [&] { product(many, product_rows); });
  probe.flops = 2.0 * static_cast<double>(many * product_rows * kColumns) / multiply;
  t_.world.Barrier(t_.stream);
}

LinkProbe Prober::Exchange(int to, int from) {
  Tensor buffer(&t_.device, DType::kU8, {2, static_cast<int64_t>(options_.link_bytes)});
  char* out = buffer.view.as<char>();
  char* in = out + options_.link_bytes;
  auto exchange = [&](size_t bytes) { t_.world.SendRecv(out, bytes, to, in, bytes, from, t_.stream); };
  LinkProbe link{t_.world.rank(), to};
  link.latency = Best(kSmallRepeats, [&] { exchange(8); });
  link.bandwidth = static_cast<double>(options_.link_bytes) / Best(kRepeats, [&] { exchange(options_.link_bytes); });
  return link;
}

void Prober::AllPairs(RankProbe& probe) {
  int me = t_.world.rank();
  for (int a = 0; a < t_.world.size(); ++a)
    for (int b = a + 1; b < t_.world.size(); ++b) {
      if (me == a) probe.links.push_back(Exchange(b, b));
      if (me == b) Exchange(a, a);
      t_.world.Barrier(t_.stream);
    }
}

// Disjoint pairs, so that a slow rank delays its partner only.
void Prober::Matching(const std::function<int(int)>& partner_of, RankProbe& probe) {
  int me = t_.world.rank(), partner = partner_of(me);
  if (partner >= 0 && partner < t_.world.size()) {
    LinkProbe link = Exchange(partner, partner);
    if (me < partner) probe.links.push_back(link);
  }
  t_.world.Barrier(t_.stream);
}

// Neighbours in both ways of pairing them, then ranks 2, 4, 8, ... apart.
void Prober::Sample(RankProbe& probe) {
  Matching([](int rank) { return rank ^ 1; }, probe);
  Matching([](int rank) { return ((rank + 1) ^ 1) - 1; }, probe);
  for (int distance = 2; distance < t_.world.size(); distance *= 2)
    Matching([distance](int rank) { return rank ^ distance; }, probe);
}

void Prober::Links(const std::vector<std::string>& hosts, RankProbe& probe) {
  if (t_.world.size() <= kAllPairsRanks)
    AllPairs(probe);
  else
    Sample(probe);
  for (LinkProbe& link : probe.links)
    link.same_host = hosts[static_cast<size_t>(link.from)] == hosts[static_cast<size_t>(link.to)];
}

double Prober::Slowest(double seconds) {
  std::vector<double> all(static_cast<size_t>(t_.world.size()));
  Tensor mine(&t_.device, DType::kU8, {8}), everyone(&t_.device, DType::kU8, {static_cast<int64_t>(all.size()) * 8});
  t_.device.CopyToDevice(mine.view.data, &seconds, 8, t_.stream);
  t_.world.AllGather(mine.view.data, everyone.view.data, 8, t_.stream);
  t_.device.CopyToHost(all.data(), everyone.view.data, all.size() * 8, t_.stream);
  t_.stream.Synchronize();
  return *std::max_element(all.begin(), all.end());
}

double Prober::Collective(const CollectiveSize& size) {
  size_t ranks = static_cast<size_t>(t_.world.size()), part = std::max<size_t>(4, size.bytes / ranks / 4 * 4);
  size_t bytes = size.operation == "all-reduce" ? std::max<size_t>(4, size.bytes / 4 * 4) : part * ranks;
  Tensor a(&t_.device, DType::kF32, {static_cast<int64_t>(bytes / 4)}),
      b(&t_.device, DType::kF32, {static_cast<int64_t>(bytes / 4)});
  t_.device.Fill(a.view.data, 0, bytes, t_.stream);
  std::vector<size_t> parts(ranks, part), offsets(ranks);
  for (size_t r = 0; r < ranks; ++r) offsets[r] = r * part;
  return Best(bytes < 100'000 ? kSmallRepeats : kRepeats, [&] {
    if (size.operation == "all-reduce")
      t_.world.AllReduceSum(a.view, t_.stream);
    else
      t_.world.AllToAllV({a.view.data, parts, offsets, b.view.data, parts, offsets}, t_.stream);
  });
}

void Prober::Collectives(RankProbe& probe) {
  for (const CollectiveSize& size : options_.collectives) {
    t_.world.Barrier(t_.stream);
    probe.collectives.push_back(
        {size.operation, size.purpose, static_cast<double>(size.bytes), Slowest(Collective(size))});
  }
}

// A part of the largest shard that differs by rank, not from this host's page cache where the system lets us say so.
void Prober::Files(RankProbe& probe) {
  std::error_code error;
  std::vector<std::pair<uintmax_t, fs::path>> shards;
  for (fs::directory_iterator it(options_.checkpoint, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".safetensors") shards.emplace_back(it->file_size(error), it->path());
  if (shards.empty()) return;
  auto [size, path] = *std::max_element(shards.begin(), shards.end());
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  size_t length = std::min<size_t>(size, kFileBytes);
  off_t begin =
      static_cast<off_t>((size - length) / static_cast<size_t>(t_.world.size()) * static_cast<size_t>(probe.rank));
  posix_fadvise(file, begin, static_cast<off_t>(length), POSIX_FADV_DONTNEED);
  std::vector<char> buffer(size_t{4} << 20);
  Clock::time_point start = Clock::now();
  size_t done = 0;
  while (done < length && Since(start) < kFileSeconds) {
    ssize_t got = pread(file, buffer.data(), std::min(buffer.size(), length - done), begin + static_cast<off_t>(done));
    if (got <= 0) break;
    done += static_cast<size_t>(got);
  }
  if (done > 0) probe.file_bandwidth = static_cast<double>(done) / std::max(1e-9, Since(start));
  close(file);
}

}  // namespace

void Measure(const MeasureTools& tools, const MeasureOptions& options, const std::vector<std::string>& hosts,
             RankProbe& probe) {
  Prober prober(tools, options);
  prober.Compute(probe);
  if (tools.world.size() > 1) {
    prober.Links(hosts, probe);
    prober.Collectives(probe);
  }
  if (!options.checkpoint.empty()) prober.Files(probe);
  tools.world.Barrier(tools.stream);
}

}  // namespace latentmesh
