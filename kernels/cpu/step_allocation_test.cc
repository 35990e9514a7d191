// The operations of a decode step allocate nothing once their scratch has grown: neither from the heap (counted here, for
// the whole test program) nor from the device.
#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels/cpu/ops_test_util.h"

// gcc 12 inlines one of a pair and then sees a mismatch (GCC bug 103993).
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace {
std::atomic<long> heap_allocations{0};
}  // namespace

void* operator new(std::size_t size) {
  ++heap_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace latentmesh::test {
namespace {

// One layer's operations for a batch of sequences with one token each.
class Step {
 public:
  Step(Random& random, int64_t tokens, int bits) : t_(tokens) {
    shape_ = {kHidden, kHidden, bits};
    packed_.resize(static_cast<size_t>(shape_.bytes() * kExperts));
    const Rows numbers = RandomRows(random, kHidden, kHidden);
    for (int e = 0; e < kExperts; ++e)
      PackWeights(numbers.view().f32(), shape_, packed_.data() + e * shape_.bytes());
    x_ = RandomRows(random, tokens, kHidden);
    logits_ = RandomRows(random, tokens, kExperts);
    wide_ = Rows(DType::kF32, tokens, kHidden);
    sorted_ = Rows(DType::kF32, tokens * kTopK, kHidden);
    hidden_ = Rows(DType::kF32, tokens * kTopK, kHidden);
    kv_b_ = RandomRows(random, kHeads * 2 * kNope, kLatent);
    q_latent_ = Rows(DType::kF32, tokens, kHeads * kLatent);
    cache_bytes_.resize(static_cast<size_t>(tokens * kDepth * CacheRecordBytes(CacheFormat::kBF16, kLatent, kRope)));
    for (int64_t i = 0; i < tokens; ++i) {
      table_.push_back(static_cast<int32_t>(i)), start_.push_back(static_cast<int32_t>(i)), lengths_.push_back(kDepth);
    }
    start_.push_back(static_cast<int32_t>(tokens));
    ids_.resize(tokens * kTopK), offsets_.resize(kExperts + 1), source_ = row_ = ids_;
    weights_.resize(tokens * kTopK);
    for (int64_t i = 0; i < tokens; ++i) pointers_.push_back(x_.view().f32() + i * kHidden);
    for (int64_t i = 0; i < tokens * kTopK; ++i) token_.push_back(static_cast<int32_t>(i % tokens));
  }

  void Run(Ops& ops, Stream& stream) {
    const WeightView w{DType::kU8, packed_.data(), kHidden, kHidden, nullptr, 0, 0, 0, 0, 0, shape_.bits};
    const ExpertWeightsView experts{w, kExperts, shape_.bytes(), 0};
    ops.Gemm({x_.view(), w, {}, wide_.view()}, stream);
    const HeadsView q = AsHeads(x_.view(), kHeads, kNope + kRope), latent = AsHeads(q_latent_.view(), kHeads, kLatent);
    const WeightView kv_b{DType::kF32, kv_b_.view().data, kHeads * 2 * kNope, kLatent};
    ops.HeadGemm({q.Dims(0, kNope), kv_b, 2 * kNope, 0, kNope, true, latent}, stream);
    const CacheView cache{cache_bytes_.data(), CacheFormat::kBF16, t_, kDepth, kLatent, kRope};
    const PagedBatch batch{static_cast<int32_t>(t_), 1, kDepth, start_.data(), lengths_.data(), table_.data(), 1, {}};
    ops.MlaAttention({latent, q.Dims(kNope, kRope), cache, batch, 0.1f, latent, {}}, stream);
    ops.Route({logits_.view(), {}, ScoringFunc::kSoftmax, TopkMethod::kGreedy, 1, 1, kTopK, true, 1.0f, ids_.data(),
               weights_.data()}, stream);
    ops.SortByExpert({ids_.data(), t_ * kTopK, kExperts, offsets_.data(), source_.data(), row_.data()}, stream);
    ops.GatherRows({x_.view(), source_.data(), t_ * kTopK, kTopK, sorted_.view()}, stream);
    ops.GroupedGateUp({sorted_.view(), offsets_.data(), experts, experts, hidden_.view()}, stream);
    ops.GroupedGemm({hidden_.view(), offsets_.data(), experts, sorted_.view()}, stream);
    ops.GatherGateUp({{pointers_.data(), t_, DType::kF32, kHidden}, token_.data(), offsets_.data(), experts, experts,
                      hidden_.view()}, stream);
    ops.GroupedDownSum({hidden_.view(), token_.data(), weights_.data(), offsets_.data(), experts, wide_.view()}, stream);
    ops.CombineRows({sorted_.view(), row_.data(), weights_.data(), kTopK, wide_.view(), false}, stream);
    ops.GateUp({x_.view(), w, w, wide_.view()}, stream);
  }

 private:
  static constexpr int32_t kExperts = 5, kTopK = 2, kLatent = 24, kRope = 8, kDepth = 200;
  static constexpr int64_t kHeads = 3, kNope = 24, kHidden = kHeads * (kNope + kRope);
  int64_t t_;
  PackedShape shape_;
  std::vector<uint8_t> packed_;
  Rows x_, logits_, wide_, sorted_, hidden_, kv_b_, q_latent_;
  std::vector<char> cache_bytes_;
  std::vector<int32_t> table_, start_, lengths_, ids_, offsets_, source_, row_, token_;
  std::vector<const void*> pointers_;
  std::vector<float> weights_;
};

class StepAllocation : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(All, StepAllocation, testing::ValuesIn(AllOpsCases()), OpsCaseName);

TEST_P(StepAllocation, IsNone) {
  Random random(30);
  for (int bits : {8, 4}) {
    Step large(random, 9, bits), small(random, 3, bits);
    large.Run(ops(), stream());
    const long before = heap_allocations;
    const size_t free = ops().device().free_memory();
    large.Run(ops(), stream());
    small.Run(ops(), stream());
    large.Run(ops(), stream());
    EXPECT_EQ(heap_allocations, before);
    EXPECT_EQ(ops().device().free_memory(), free);
  }
}

TEST(HeapCounter, CountsAllocations) {
  const long before = heap_allocations;
  std::vector<int> one(7);
  EXPECT_GT(heap_allocations, before) << one.size();
}

}  // namespace
}  // namespace latentmesh::test
