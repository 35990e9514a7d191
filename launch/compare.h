// Comparison: relative errors ‖out - ref‖ / ‖ref‖ and argmax agreement against a bound; prints a line a check to
// stdout.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// Frobenius norms in double; a NaN or an infinity anywhere gives NaN. 0 when both are all zero.
double RelativeError(std::span<const float> out, std::span<const float> ref);
// Rows of [rows, cols] whose largest element stands in the same column (ties: the first).
int64_t ArgmaxAgreement(std::span<const float> out, std::span<const float> ref, int64_t cols);

class Comparison {
 public:
  explicit Comparison(double tolerance) : tolerance_(tolerance) {}
  double tolerance() const { return tolerance_; }

  void Values(const std::string& what, std::span<const float> out, std::span<const float> ref);
  void Argmax(const std::string& what, std::span<const float> out, std::span<const float> ref, int64_t cols);
  void Ids(const std::string& what, const std::vector<int32_t>& out, const std::vector<int32_t>& ref);
  // A number that must not exceed `bound`.
  void Bounded(const std::string& what, double value, double bound);
  // kMismatch names the first check that failed and counts them.
  Status Finish() const;

 private:
  void Record(bool ok, const std::string& line);
  double tolerance_;
  int checks_ = 0, failed_ = 0;
  std::string first_failure_;
};

}  // namespace latentmesh
