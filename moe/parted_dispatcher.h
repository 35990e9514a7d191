// PartedDispatcher: base of dispatchers whose parts really start and finish; the whole calls follow from the parts.
#pragma once

#include "moe/dispatcher.h"

namespace latentmesh {

class PartedDispatcher : public TokenDispatcher {
 public:
  int Plan(const DispatchParams& params, Stream& stream) final {
    StartPlan(params, stream);
    return FinishPlan(stream);
  }
  DispatchHandle Dispatch(int round, Stream& stream) final {
    StartDispatch(round, stream);
    return FinishDispatch(stream);
  }
  void Combine(const DispatchHandle& handle, const TensorView& expert_out, const TensorView& out, Stream& stream) final {
    StartCombine(handle, expert_out, stream);
    FinishCombine(out, stream);
  }

  void StartPlan(const DispatchParams& params, Stream& stream) override = 0;
  int FinishPlan(Stream& stream) override = 0;
  void StartDispatch(int round, Stream& stream) override = 0;
  DispatchHandle FinishDispatch(Stream& stream) override = 0;
  void StartCombine(const DispatchHandle& handle, const TensorView& expert_out, Stream& stream) override = 0;
  void FinishCombine(const TensorView& out, Stream& stream) override = 0;
};

}  // namespace latentmesh
