// RowSums: sums of rows that lie anywhere in host memory. They are collected first, then computed on the device's threads.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device.h"
#include "kernels/dtype.h"

namespace latentmesh {

class RowSums {
 public:
  void Clear();
  void Begin(void* out);             // a sum of no rows yet
  void Add(const void* row);         // to the sum begun last
  // out (+)= the rows, in the order in which they were added; f32 or bf16 each.
  struct Types {
    DType rows, out;
    bool accumulate;
  };
  void Run(Device& device, int64_t hidden, const Types& types);

 private:
  struct Sum {
    size_t begin;
    int count;
    void* out;
  };
  std::vector<Sum> sums_;
  std::vector<const void*> rows_;
  std::vector<float> ones_;
};

}  // namespace latentmesh
