// MoveCosts: from which length on copying a cached prefix from another dp rank is cheaper than computing it. Both sides are
// measured in this job: steps with many tokens give the seconds a prompt token costs, transfers those of a moved one.
#pragma once

#include <cstdint>

namespace latentmesh {

class MoveCosts {
 public:
  // A step in which the busiest shard computed `tokens`.
  void ObserveStep(int64_t tokens, double seconds);
  // A transfer before a step, of blocks that hold `tokens`.
  void ObserveMove(int64_t tokens, double seconds);
  // 0 while one side is unknown: the first copy is the measurement. INT64_MAX: copying does not pay.
  int64_t LeastTokens() const;

  double compute_seconds() const { return compute_; }   // a prompt token; 0: not measured
  double move_seconds() const { return move_; }         // a moved token; 0: not measured

 private:
  double step_ = 0;              // a step with next to nothing to compute
  double compute_ = 0;
  double move_ = 0;
  double least_move_ = 0;        // the shortest transfer: what one costs at least
};

}  // namespace latentmesh
