#include "launch/resilient/launched_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "runtime/model/stored_formats.h"
#include "runtime/plan/plan_test_util.h"

namespace latentmesh {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::string Killed(const std::string& host) {
  return "latentmesh: error: rank 3 on " + host + ": step 7: in all_reduce on tp: killed by signal 9 (SIGKILL)";
}

TEST(HostListTest, TwoDeathsLeaveAHostOut) {
  HostList hosts({"a.site", "b.site", "c.site"}, 2);
  std::vector<std::string> all = hosts.all();
  hosts.JobStarts();
  hosts.ReadLine(Killed("b"));
  hosts.ReadLine(Killed("c"));                 // follows from the first
  EXPECT_EQ(hosts.deaths("b.site"), 1);
  EXPECT_EQ(hosts.deaths("c.site"), 0);
  EXPECT_EQ(hosts.Usable(all), all);
  hosts.JobStarts();
  hosts.ReadLine("latentmesh: error: rank 0 on a: rank 3 does not answer");      // not where it began
  hosts.ReadLine(Killed("b"));
  EXPECT_THAT(hosts.Usable(all), ElementsAre("a.site", "c.site"));
  EXPECT_THAT(hosts.Usable({"c.site"}), ElementsAre("c.site"));
  EXPECT_THAT(hosts.Usable({"b.site"}), ElementsAre("b.site"));      // better than none
}

TEST(HostListTest, SplitsAndFillsIn) {
  EXPECT_THAT(SplitHosts("a, b,,c\n"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(SplitHosts(""), IsEmpty());
  EXPECT_EQ(FillIn("ssh {host} true {host}", "host", "x"), "ssh x true x");
}

TEST(LaunchedJobTest, FlagsAreTakenOutWithTheirValues) {
  EXPECT_THAT(WithoutFlags({"serve", "--tp", "4", "--model=m", "--dp=2", "--tpx", "1"}, {"--tp", "--dp"}),
              ElementsAre("serve", "--model=m", "--tpx", "1"));
}

TEST(LaunchedJobTest, FewerRanksGetALayoutThatFits) {
  auto config = LoadModelConfig("launch/demo");
  ASSERT_TRUE(config.ok());
  auto fitting = [&](const ParallelConfig& wanted, int most) {
    PlanRequest request;
    request.config = *config;
    request.engine.layout = wanted;
    return FittingLayout(WithMemory(request, {}), most).value();      // no memory is known yet
  };
  RankLayout four = fitting({2, 2, 1, 1}, 4);
  EXPECT_EQ(four.ranks, 4);
  EXPECT_EQ(ToString(four.layout), "tp2 dp2 pp1 cp1");
  for (int most : {1, 2, 3, 5, 6, 7}) {
    RankLayout fewer = fitting({4, 2, 1, 1}, most);      // 8 ranks were there
    EXPECT_LE(fewer.ranks, most);
    EXPECT_GT(fewer.ranks, most / 2);
    EXPECT_EQ(fewer.layout.tp * fewer.layout.dp * fewer.layout.pp, fewer.ranks);
  }
}

// Of two hosts one answers at the second start.
TEST(LaunchedJobTest, SaysWhenTheRanksThatAreLeftCannotHoldTheModel) {
  PlanRequest model;
  model.config = plan_testing::V2Lite();
  model.stored = PublishedFormats(model.config).value();
  LaunchOptions options{.launcher = "true", .hosts = "host-a,host-b", .ranks = 2, .probe = "test {host} = host-a"};
  auto job = LaunchedJob::Create(options, {"/bin/true", {"serve"}}, model);
  ASSERT_TRUE(job.ok()) << job.status().message();
  Ready ready{.ranks = 2, .max_model_len = 4096, .layout = "tp2", .available = 20'000'000'000};
  auto start_again = [&] {
    (*job)->End(false);
    (*job)->Serves(ready);
    return (*job)->Start("token 127.0.0.1:1");
  };
  ASSERT_TRUE((*job)->Start("token 127.0.0.1:1").ok());
  Status refused = start_again();                    // 31 GB of weights
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.message(), testing::AllOf(testing::HasSubstr("1 ranks or fewer"), testing::HasSubstr("18.626 GiB free")));
  ready.available = 80'000'000'000;
  EXPECT_TRUE(start_again().ok());
  (*job)->End(false);
}

TEST(ChildProcessTest, KillsWhatItStartedAndReadsItsLines) {
  std::vector<std::string> lines;
  // The inner shell loses its parent and does not end on SIGTERM.
  std::string script = "read word; echo got $word; (trap '' TERM; sh -c 'trap \"\" TERM; echo inner; while :; do sleep 1; done') & exit 3";
  auto child = ChildProcess::Start({"sh", "-c", script}, "secret\n", [&](const std::string& line) { lines.push_back(line); });
  ASSERT_TRUE(child.ok());
  EXPECT_TRUE((*child)->Wait(10));
  EXPECT_EQ((*child)->ExitCode(), 3);
  EXPECT_FALSE((*child)->WaitAll(0.2));
  (*child)->Signal(SIGKILL);
  EXPECT_TRUE((*child)->WaitAll(10));
  child->reset();
  EXPECT_THAT(lines, testing::Contains("got secret"));
}

TEST(ChildProcessTest, SaysWhatCannotBeStarted) {
  std::vector<std::string> lines;
  auto child = ChildProcess::Start({"/no/such/program"}, "", [&](const std::string& line) { lines.push_back(line); });
  ASSERT_TRUE(child.ok());
  EXPECT_TRUE((*child)->WaitAll(10));
  EXPECT_EQ((*child)->ExitCode(), 127);
  child->reset();
  EXPECT_THAT(lines, ElementsAre(testing::HasSubstr("/no/such/program")));
}

}  // namespace
}  // namespace latentmesh
