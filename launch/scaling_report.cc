// `bench scaling-report`: the results of `bench throughput` over several numbers of ranks as a table and a plot.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <cstdlib>

#include "launch/command.h"
#include "launch/files.h"
#include "launch/svg.h"

namespace latentmesh {
namespace {

struct ScalingRun {
  int ranks = 0;
  double tokens_per_second = 0;        // of all tokens
  double output_tokens_per_second = 0;
  std::string layout;
};

class ScalingReportCommand : public Command {
 public:
  std::string name() const override { return "bench scaling-report"; }
  std::string help() const override { return "Results of bench throughput over numbers of ranks: table and plot"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  std::vector<std::string> inputs_;
  std::string svg_;
};

void ScalingReportCommand::Register(FlagSet& flags) {
  flags.Section("Files");
  flags.AddList("--run", &inputs_, "RANKS:FILE, where FILE is what bench throughput --output-json wrote (repeatable)");
  flags.Required("--run");
  flags.Add("--svg", &svg_, "File for the plot of output tokens/s and efficiency");
}

Result<ScalingRun> ReadRun(const std::string& input) {
  char* rest = nullptr;
  ScalingRun run;
  run.ranks = static_cast<int>(std::strtol(input.c_str(), &rest, 10));
  if (run.ranks < 1 || *rest != ':') return InvalidArgument(fmt::format("--run {}: is not RANKS:FILE", input));
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(rest + 1));
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(text, error);
  const boost::json::object* object = error ? nullptr : value.if_object();
  auto number = [&](const char* field, double& to) {
    const boost::json::value* found = object == nullptr ? nullptr : object->if_contains(field);
    if (found == nullptr || !found->is_number()) return false;
    to = found->to_number<double>();
    return true;
  };
  if (!number("tokens_per_second", run.tokens_per_second) ||
      !number("output_tokens_per_second", run.output_tokens_per_second))
    return InvalidArgument(fmt::format("{}: is not a result of bench throughput --output-json", rest + 1));
  if (const auto* layout = object->if_contains("layout"); layout != nullptr && layout->is_string())
    run.layout = layout->get_string().c_str();
  return run;
}

// Per rank, against the run with the fewest ranks.
double Efficiency(const ScalingRun& run, const ScalingRun& base) {
  double alone = base.output_tokens_per_second / base.ranks;
  return alone > 0 ? run.output_tokens_per_second / run.ranks / alone : 0;
}

std::string Table(const std::vector<ScalingRun>& runs) {
  std::string text = fmt::format("{:>6} {:<20} {:>14} {:>16} {:>8} {:>11}\n", "ranks", "layout", "total tokens/s",
                                 "output tokens/s", "speedup", "efficiency");
  for (const ScalingRun& run : runs) {
    double efficiency = Efficiency(run, runs.front());
    text += fmt::format("{:>6} {:<20} {:>14.2f} {:>16.2f} {:>8.2f} {:>9.1f} %\n", run.ranks, run.layout,
                        run.tokens_per_second, run.output_tokens_per_second,
                        efficiency * run.ranks / runs.front().ranks, 100 * efficiency);
  }
  return text;
}

// Two charts, one above the other: they share the axis of ranks, not that of values.
std::string Plot(const std::vector<ScalingRun>& runs) {
  LineSeries measured{"measured", {}}, ideal{"linear", {}, true, false}, efficiency{"efficiency", {}};
  const ScalingRun& base = runs.front();
  for (const ScalingRun& run : runs) {
    measured.points.emplace_back(run.ranks, run.output_tokens_per_second);
    ideal.points.emplace_back(run.ranks, base.output_tokens_per_second / base.ranks * run.ranks);
    efficiency.points.emplace_back(run.ranks, 100 * Efficiency(run, base));
  }
  LineChart rate{.title = "Throughput over ranks", .x = {"ranks"}, .y = {"output tokens/s"}, .series = {measured, ideal}};
  LineChart share{.title = "Efficiency", .x = {"ranks"}, .y = {"% of linear"}, .series = {efficiency}};
  return fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\">\n{}<g transform=\"translate(0,{})\">\n"
                     "{}</g>\n</svg>\n", rate.width, rate.height + share.height, RenderSvg(rate), rate.height,
                     RenderSvg(share));
}

Status ScalingReportCommand::Run(Job& job) {
  if (job.size() > 1) return InvalidArgument("bench scaling-report: reads files only; start it alone");
  std::vector<ScalingRun> runs;
  for (const std::string& input : inputs_) {
    LM_ASSIGN_OR_RETURN(ScalingRun run, ReadRun(input));
    runs.push_back(std::move(run));
  }
  std::sort(runs.begin(), runs.end(), [](const ScalingRun& a, const ScalingRun& b) { return a.ranks < b.ranks; });
  std::fputs(Table(runs).c_str(), stdout);
  return svg_.empty() ? Status::Ok() : WriteFile(svg_, Plot(runs));
}

}  // namespace

std::unique_ptr<Command> MakeScalingReportCommand() { return std::make_unique<ScalingReportCommand>(); }

}  // namespace latentmesh
