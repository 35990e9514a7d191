#include <cstdio>

#include "launch/command.h"
#include "launch/files.h"
#include "launch/plan_report.h"

namespace latentmesh {
namespace {

class PlanCommand : public Command {
 public:
  std::string name() const override { return "plan"; }
  std::string help() const override { return "Memory, largest batch and rates of layouts, from config.json alone"; }
  void Register(FlagSet& flags) override { flags_.Register(flags); }

  Status Run(Job& job) override {
    if (job.rank() != 0) return Status::Ok();      // arithmetic: nothing for other ranks
    LM_ASSIGN_OR_RETURN(PlanAnswer answer, Answer());
    std::fputs(PlanText(answer).c_str(), stdout);
    if (!flags_.json_file.empty()) LM_RETURN_IF_ERROR(WriteFile(flags_.json_file, PlanJson(answer)));
    if (!flags_.svg_file.empty()) LM_RETURN_IF_ERROR(WriteFile(flags_.svg_file, PlanSvg(answer)));
    std::fflush(stdout);
    return RefusalOf(answer.question.request, answer.plans);
  }

 private:
  Result<PlanAnswer> Answer() const {
    PlanAnswer answer;
    LM_ASSIGN_OR_RETURN(answer.question, ReadPlanQuestion(flags_));
    const PlanRequest& request = answer.question.request;
    LM_ASSIGN_OR_RETURN(answer.plans, PlanLayouts(request));
    LM_ASSIGN_OR_RETURN(answer.published, CountModel(request.config, {request.stored, WeightsAs::kPublished}));
    answer.top = flags_.top;
    return answer;
  }

  PlanFlags flags_;
};

}  // namespace

std::unique_ptr<Command> MakePlanCommand() { return std::make_unique<PlanCommand>(); }

}  // namespace latentmesh
