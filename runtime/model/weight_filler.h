// WeightFiller: reserves arena memory for one weight at a time and notes the request that will fill it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/model/weight_store.h"
#include "runtime/model/weights.h"

namespace latentmesh {

struct MatrixShape {
  int64_t rows;   // out features of the whole checkpoint tensor
  int64_t cols;
};

// Room for more experts than are loaded: at least `count` slots, each as large as the expert of prefix `like` takes.
struct ExpertSlots {
  std::string like;
  int32_t count = 0;
};

class WeightFiller {
 public:
  WeightFiller(const QuantizationConfig& quantization, const WeightLayoutOptions& options, const StoredDType& stored,
               Arena& arena, std::vector<TensorRequest>* requests)
      : quantization_(quantization), options_(options), stored_(stored), arena_(arena), requests_(requests) {}

  // NAME.weight (and NAME.weight_scale_inv when stored as FP8), the given part of it.
  WeightView Linear(const std::string& name, MatrixShape shape, Range rows, Range cols,
                    WeightUse use = WeightUse::kProjection);
  // PREFIX + projection for each of `prefixes`, one after the other.
  ExpertWeightsView Experts(const std::vector<std::string>& prefixes, const std::string& projection, MatrixShape shape,
                            const ExpertSlots& room);
  // A plain tensor (embedding).
  TensorView Matrix(const std::string& tensor, MatrixShape shape, Range rows, Range cols);
  // Tensors turned into f32.
  TensorView Float(const std::string& tensor, MatrixShape shape);
  TensorView Vector(const std::string& tensor, int64_t size);
  TensorView VectorPart(const std::string& tensor, int64_t size, Range part);

  const Status& status() const { return status_; }   // the first failure

 private:
  struct Slice { std::vector<int64_t> shape; Range rows; Range cols; };
  struct Part { std::string name; MatrixShape shape; Range rows; Range cols; };   // of a tensor NAME.weight
  KeptWeight Keep(const std::string& tensor, WeightUse use);
  DType Stored(const std::string& tensor);            // dtype in the checkpoint; kF32 and a failure when missing
  TensorRequest* Request(const std::string& tensor, const Slice& slice);   // nullptr when there is nothing to fill
  std::shared_ptr<WeightCopier> Copier();             // shared by all requests, for as long as one of them lives
  void RequestPlain(const std::string& tensor, const Slice& slice, void* target, DType as);
  WeightView BlockView(Range rows, Range cols) const;
  WeightView ViewOf(const KeptWeight& kept, void* data, Range rows, Range cols) const;
  Slice ScaleSlice(MatrixShape shape, Range rows, Range cols) const;
  void Fill(const Part& part, const WeightView& view);
  void FillScaled(const Part& part, const WeightTarget& target);
  ScaledMatrix::Finish Writer(const std::string& name, const WeightTarget& target) const;

  const QuantizationConfig& quantization_;
  WeightLayoutOptions options_;
  const StoredDType& stored_;
  Arena& arena_;
  std::vector<TensorRequest>* requests_;
  std::shared_ptr<WeightCopier> copier_;
  Status status_;
};

}  // namespace latentmesh
