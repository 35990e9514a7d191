#include <fmt/format.h>

#include "kernels/cpu/kernel_table.h"
#include "launch/bench_ops_run.h"
#include "launch/command.h"

namespace latentmesh {
namespace {

// The tables to measure: the best of this machine ("best"), one by name, or all. Empty: this machine has none so named.
std::vector<const KernelTable*> ChosenKernels(const std::string& name) {
  int count;
  const KernelTable* const* tables = RunnableKernels(&count);
  std::vector<const KernelTable*> chosen;
  for (int i = 0; i < count; ++i) {
    if (name == "all" || name == tables[i]->name || (name == "best" && i == count - 1)) chosen.push_back(tables[i]);
  }
  return chosen;
}

class BenchOpsCommand : public Command {
 public:
  std::string name() const override { return "bench ops"; }
  std::string help() const override {
    return "The CPU's operations, checked and then timed, as shares of the bandwidth and peak measured here";
  }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Measure() const;

  OpsBenchOptions options_;
  std::string isa_ = "best", clock_ = "wall";
};

void BenchOpsCommand::Register(FlagSet& flags) {
  flags.Add("--filter", &options_.filter, "Text that an operation's name must contain: \"mini\", \"int8\", \"gate_up\"");
  flags.AddChoice("--isa", &isa_, {"best", "all", "portable", "avx2", "avxvnni", "avx512", "amx"},
                  "Instruction set of the kernels");
  flags.Add("--seconds", &options_.seconds, "Time for each operation; the shortest of at least three runs counts", {.min = 0});
  flags.Add("--threads", &options_.threads, "Compute threads; 0: the cores of this rank", kNonNegative);
  flags.AddChoice("--clock", &clock_, {"wall", "cpu"}, "cpu: the thread's own time, for --threads 1 on a shared machine");
}

Status BenchOpsCommand::Run(Job& job) {
  if (job.size() > 1)
    return InvalidArgument(fmt::format("bench ops measures one rank; start it without mpirun (there are {} ranks)", job.size()));
  options_.thread_clock = clock_ == "cpu";
  if (options_.thread_clock && options_.threads != 1)
    return InvalidArgument("--clock cpu counts one thread's time: give --threads 1");
  const std::vector<const KernelTable*> tables = ChosenKernels(isa_);
  if (tables.empty()) return InvalidArgument("--isa " + isa_ + ": this machine or build has no such kernels");
  Status status = Status::Ok();
  for (const KernelTable* table : tables) {
    SetKernels(table);
    if (status.ok()) status = Measure();
  }
  SetKernels(nullptr);
  return status;
}

Status BenchOpsCommand::Measure() const {
  OpsBench bench(options_);
  bench.Run();
  if (!bench.wrong().empty()) return {StatusCode::kMismatch, bench.wrong().front() + "; it was not timed"};
  if (bench.rows().empty()) return InvalidArgument("--filter " + options_.filter + ": no operation's name contains this");
  return Status::Ok();
}

}  // namespace

std::unique_ptr<Command> MakeBenchOpsCommand() { return std::make_unique<BenchOpsCommand>(); }

}  // namespace latentmesh
