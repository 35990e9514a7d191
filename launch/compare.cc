#include "launch/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace latentmesh {

double RelativeError(std::span<const float> out, std::span<const float> ref) {
  LM_CHECK(out.size() == ref.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    double d = static_cast<double>(out[i]) - ref[i];
    difference += d * d;
    norm += static_cast<double>(ref[i]) * ref[i];
  }
  if (!std::isfinite(difference) || !std::isfinite(norm)) return std::numeric_limits<double>::quiet_NaN();
  if (difference == 0) return 0;
  return norm == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(difference / norm);
}

int64_t ArgmaxAgreement(std::span<const float> out, std::span<const float> ref, int64_t cols) {
  int64_t agree = 0;
  for (size_t row = 0; row + cols <= out.size(); row += cols) {
    auto best = [&](std::span<const float> x) {
      auto begin = x.begin() + row;
      return std::max_element(begin, begin + cols) - begin;
    };
    agree += best(out) == best(ref);
  }
  return agree;
}

void Comparison::Record(bool ok, const std::string& line) {
  ++checks_;
  std::fputs((line + (ok ? "  ok\n" : "  FAILED\n")).c_str(), stdout);
  if (ok) return;
  if (failed_++ == 0) first_failure_ = line;
}

void Comparison::Values(const std::string& what, std::span<const float> out, std::span<const float> ref) {
  if (out.size() != ref.size()) {
    return Record(false, fmt::format("{}: {} values, reference has {}", what, out.size(), ref.size()));
  }
  double error = RelativeError(out, ref);
  Record(error <= tolerance_, fmt::format("{}: relative error {:.2e} (bound {:.0e})", what, error, tolerance_));
}

void Comparison::Argmax(const std::string& what, std::span<const float> out, std::span<const float> ref, int64_t cols) {
  if (out.size() != ref.size() || out.empty()) return;
  auto rows = static_cast<int64_t>(out.size()) / cols;
  int64_t agree = ArgmaxAgreement(out, ref, cols);
  std::string line = fmt::format("{}: argmax agrees in {} of {} rows ({:.1f} %)", what, agree, rows,
                                 100.0 * static_cast<double>(agree) / static_cast<double>(rows));
  // Rounding may swap two close candidates: within a loose tolerance agreement is information, not a check.
  constexpr double kExact = 1e-4;
  if (tolerance_ <= kExact) return Record(agree == rows, line);
  std::fputs((line + "\n").c_str(), stdout);
}

void Comparison::Ids(const std::string& what, const std::vector<int32_t>& out, const std::vector<int32_t>& ref) {
  auto [o, r] = std::mismatch(out.begin(), out.end(), ref.begin(), ref.end());
  if (o == out.end() && r == ref.end()) return Record(true, fmt::format("{}: {} ids equal", what, out.size()));
  Record(false, fmt::format("{}: first difference at {} of {}: {} instead of {}", what, o - out.begin(), ref.size(),
                            o == out.end() ? "end" : std::to_string(*o), r == ref.end() ? "end" : std::to_string(*r)));
}

void Comparison::Bounded(const std::string& what, double value, double bound) {
  Record(value <= bound, fmt::format("{}: {:.2e} (bound {:.2e})", what, value, bound));
}

Status Comparison::Finish() const {
  std::fflush(stdout);
  if (failed_ == 0) return Status::Ok();
  return {StatusCode::kMismatch,
          fmt::format("{} of {} checks failed; the first: {}", failed_, checks_, first_failure_)};
}

}  // namespace latentmesh
