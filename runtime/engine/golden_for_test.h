// What the engine's tests hold results against: a golden's file, and the relative error of a tensor.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/checkpoint/safetensors.h"

namespace latentmesh {

// ||got - want|| / ||want||
inline double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size() && i < got.size(); ++i) {
    error += std::pow(double{got[i]} - want[i], 2);
    norm += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(error / norm);
}

struct Golden {
  std::vector<int32_t> input_ids, greedy_prompt, greedy_ids;
  std::vector<float> logits, hidden_states;

  explicit Golden(const std::string& folder) {
    auto file = SafetensorsFile::Open(folder + "/expected.safetensors");
    LM_CHECK_MSG(file.ok(), file.status().message());
    auto ints = [&](const char* name) { return file->ReadTensor(name)->ToInt32().value(); };
    auto floats = [&](const char* name) { return file->ReadTensor(name)->ToFloat().value(); };
    input_ids = ints("input_ids");
    greedy_prompt = ints("greedy_prompt");
    greedy_ids = ints("greedy_ids");
    logits = floats("logits");
    hidden_states = floats("hidden_states");
  }
};

}  // namespace latentmesh
