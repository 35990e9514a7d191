// balance_ranks TP DP PP: under mpirun, the golden's greedy tokens while experts move between processes.
#include <cstdio>
#include <cstdlib>

#include "parallel/bootstrap.h"
#include "tests/balance/balance_case.h"

namespace latentmesh {
namespace {

Status Check(Engine& engine, const GreedyGolden& golden) {
  EngineStats stats;
  LM_RETURN_IF_ERROR(RunUnderMoves(engine, golden, 4, stats));
  std::printf("%lld layers moved, %lld copies sent, max/mean %.3f (contiguous %.3f)\n",
              static_cast<long long>(stats.expert_layers_moved), static_cast<long long>(stats.experts_sent),
              stats.expert_max_over_mean, stats.expert_contiguous_max_over_mean);
  if (stats.experts_sent > 0) return Status::Ok();
  return {StatusCode::kInternal, "no expert was moved: nothing was tested"};
}

int Main(int argc, char** argv) {
  auto job = Job::Join(&argc, &argv);
  if (!job.ok() || argc != 4) return 2;
  GreedyGolden golden("tests/golden/v3-tiny");
  EngineOptions options = BalanceOptions("tests/golden/v3-tiny", 3, 2);
  options.layout = {std::atoi(argv[1]), std::atoi(argv[2]), std::atoi(argv[3]), 1};
  auto runtime = Runtime::Create(**job, options);
  Status status = runtime.ok() ? (*runtime)->Run([&](Engine& e) { return Check(e, golden); }) : runtime.status();
  if (!status.ok() && (*job)->rank() == 0) std::fprintf(stderr, "%s\n", status.message().c_str());
  return ExitCode(status.code());
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Main(argc, argv); }
