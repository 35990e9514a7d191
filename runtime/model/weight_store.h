// Brings loaded weights into the form and the place in which a rank keeps them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "runtime/checkpoint/weight_loader.h"
#include "runtime/model/weight_format.h"

namespace latentmesh {

// What narrowing did to the weights of one tensor on this rank: sqrt(error / norm) is its relative error.
struct WeightError {
  std::string name;
  double error = 0;                // sum of (kept - given)^2
  double norm = 0;                 // sum of given^2
};

// kInvalidModel unless the slice holds floating-point numbers.
Status RequireNumbers(const LoadedSlice& slice);

// Copies weights to the device, all of them on one stream; each copy has ended when the call returns. One thread at a time.
class WeightCopier {
 public:
  explicit WeightCopier(Device& device) : device_(device), stream_(device.CreateStream()) {}
  void Copy(void* target, const void* data, size_t bytes);

 private:
  Device& device_;
  std::unique_ptr<Stream> stream_;
};

// Copies a slice to the device at `target` as a plain type.
Status StorePlain(WeightCopier& copier, const LoadedSlice& slice, void* target, DType as);

// Where one matrix goes. `view` describes it on the device: plain, FP8 (its scales are written, too) or packed.
struct WeightTarget {
  std::shared_ptr<WeightCopier> copier;
  WeightView view;
};

// Writes a dense f32 matrix of view.rows x view.cols there; returns what rounding did.
WeightError StoreMatrix(const WeightTarget& target, const std::vector<float>& numbers);

// Collects an FP8 matrix and its scales, in whichever order they arrive, and hands the product to `finish`.
class ScaledMatrix {
 public:
  using Finish = std::function<void(const std::vector<float>&)>;
  // `blocks` has the shape, blocks and offsets of the slice.
  ScaledMatrix(const WeightView& blocks, Finish finish) : blocks_(blocks), finish_(std::move(finish)) {}
  Status TakeData(const LoadedSlice& slice);
  Status TakeScales(const LoadedSlice& slice);

 private:
  void FinishIfComplete();

  WeightView blocks_;
  Finish finish_;
  std::vector<uint8_t> data_;
  std::vector<float> scales_;
};

}  // namespace latentmesh
