// Speculative decoding: where draft tokens come from and how many pay.
//
// Verification needs no code of its own: every row of a step is sampled with the random number that belongs to its place in
// the output, and a draft is accepted when the sampled token equals it. For drafts proposed with certainty this is the
// rejection sampling of Leviathan et al. (2023): a draft d is accepted with probability p(d), and otherwise the token comes
// from p without d. So the output is the one of plain decoding, token for token, also for seeded sampling.
#pragma once

#include <array>
#include <cstdint>

namespace latentmesh {

// Chooses the number of drafts for the next step from measured acceptance and measured step times, so that drafting is off
// when it does not pay by at least 5 %. Not thread-safe.
class DraftController {
 public:
  // With adapt == false it always chooses `most`.
  explicit DraftController(int32_t most, bool adapt = true) : most_(most), adapt_(adapt) {}

  // For a step that decodes `sequences` sequences. Now and then tries a count that was not the best of late.
  int32_t Choose(int64_t sequences);
  // After a step that decoded `sequences` sequences with up to `drafts` drafts each and nothing else (no prompt). Making
  // drafts is told apart, as the drafts made after a step are verified in the next one.
  void ObserveStep(int64_t sequences, int32_t drafts, double seconds);
  // Making `drafts` > 0 drafts for each of `sequences` sequences took so long.
  void ObserveDrafting(int64_t sequences, int32_t drafts, double seconds);
  // One sequence's verification: of `proposed` drafts the first `accepted` held.
  void ObserveVerification(int32_t proposed, int32_t accepted);

  // Expected tokens a step with k drafts, from the acceptance measured at each place.
  double ExpectedTokens(int32_t drafts) const;

 private:
  static constexpr int kBuckets = 12;          // by powers of two of the sequences in a step
  static constexpr int kMost = 16;
  static int Bucket(int64_t sequences);
  struct Cost {
    double seconds = 0;                        // moving mean
    int64_t samples = 0;
    void Add(double latest);
  };
  using Costs = std::array<std::array<Cost, kMost + 1>, kBuckets>;
  int32_t Best(int bucket) const;
  int32_t Other(int32_t best);                 // a count to try

  int32_t most_;
  bool adapt_;
  int64_t since_try_ = 0;
  int64_t tries_ = 0;
  std::array<double, kMost> acceptance_ = FirstGuess();
  Costs step_{}, drafting_{};
  static std::array<double, kMost> FirstGuess();
};

struct SpeculationStats {
  int64_t verifications = 0;     // sequence steps that carried drafts
  int64_t drafts = 0;            // tokens proposed
  int64_t accepted = 0;          // of those
};

}  // namespace latentmesh
