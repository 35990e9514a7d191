#include "launch/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/command.h"
#include "launch/options.h"
#include "launch/prompts.h"

namespace latentmesh {
namespace {

using testing::ContainsRegex;
using testing::ElementsAre;
using testing::HasSubstr;

// A command with one flag of each kind.
class ProbeCommand : public Command {
 public:
  std::string name() const override { return "group probe"; }
  std::string help() const override { return "probes"; }
  std::string group_help() const override { return "a group"; }
  void Register(FlagSet& flags) override {
    flags.Section("Probe flags");
    flags.Add("--count", &count, "how many", {.min = 1, .max = 10});
    flags.Add("--rate", &rate, "how fast", kNonNegative);
    flags.Add("--maybe", &maybe, "optional");
    flags.AddSwitch("--on", &on, "switch");
    flags.AddList("--text", &texts, "texts");
    flags.AddNumbers("--ids", &ids, "ids");
    flags.AddSize("--memory", &memory, "size");
    flags.AddChoice("--color", &color, {"red", "green"}, "colour");
  }
  Status Run(Job&) override { return Status::Ok(); }

  int32_t count = 3;
  double rate = 0.5;
  std::optional<int32_t> maybe;
  bool on = false;
  std::vector<std::string> texts;
  std::vector<int32_t> ids;
  uint64_t memory = 0;
  std::string color = "red";
};

class FlagsTest : public testing::Test {
 protected:
  FlagsTest() {
    auto command = std::make_unique<ProbeCommand>();
    probe_ = command.get();
    commands_.push_back(std::move(command));
  }
  Result<ParsedLine> Parse(std::vector<const char*> words) {
    words.insert(words.begin(), "latentmesh");
    return ParseCommandLine(static_cast<int>(words.size()), words.data(), commands_);
  }
  std::string ErrorOf(std::vector<const char*> words) {
    auto line = Parse(std::move(words));
    if (line.ok()) return "no error";
    EXPECT_EQ(line.status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(line.status().message().find('\n'), std::string::npos);
    return line.status().message();
  }

  std::vector<std::unique_ptr<Command>> commands_;
  ProbeCommand* probe_;
};

TEST_F(FlagsTest, KeepsDefaults) {
  auto line = Parse({"group", "probe"});
  ASSERT_TRUE(line.ok()) << line.status().message();
  EXPECT_EQ(line->command, probe_);
  EXPECT_EQ(probe_->count, 3);
  EXPECT_FALSE(probe_->maybe.has_value());
}

TEST_F(FlagsTest, ReadsEveryKind) {
  auto line = Parse({"group", "probe", "--count", "7", "--rate=2.5", "--maybe", "-1", "--on", "--text", "-a b",
                     "--text", "--on", "--ids", "0,12,7", "--memory", "1.5GiB", "--color", "green"});
  ASSERT_TRUE(line.ok()) << line.status().message();
  EXPECT_EQ(probe_->count, 7);
  EXPECT_EQ(probe_->rate, 2.5);
  EXPECT_EQ(probe_->maybe, -1);
  EXPECT_TRUE(probe_->on);
  EXPECT_THAT(probe_->texts, ElementsAre("-a b", "--on"));
  EXPECT_THAT(probe_->ids, ElementsAre(0, 12, 7));
  EXPECT_EQ(probe_->memory, 1610612736u);
  EXPECT_EQ(probe_->color, "green");
}

TEST_F(FlagsTest, RefusesWithOneLineNamingTheFlag) {
  EXPECT_THAT(ErrorOf({"group", "probe", "--count", "0"}), HasSubstr("--count"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--count", "0"}), HasSubstr("between 1 and 10"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--count", "two"}), HasSubstr("--count"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--count", "2.5"}), HasSubstr("--count"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--rate", "-1"}), HasSubstr("--rate"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--rate", "nan"}), HasSubstr("--rate"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--ids", "1,x"}), HasSubstr("--ids"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--memory", "lots"}), HasSubstr("--memory"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--color", "blue"}), HasSubstr("red, green"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--colour", "red"}), HasSubstr("--colour"));
  EXPECT_THAT(ErrorOf({"group", "probe", "stray"}), HasSubstr("stray"));
  EXPECT_THAT(ErrorOf({"group", "probe", "--count"}), HasSubstr("--count"));
  EXPECT_THAT(ErrorOf({"nothing"}), HasSubstr("nothing"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("--help"));
  EXPECT_THAT(ErrorOf({"group"}), HasSubstr("group --help"));
}

TEST_F(FlagsTest, HelpShowsFlagsAndDefaults) {
  auto line = Parse({"group", "probe", "--help"});
  ASSERT_TRUE(line.ok());
  EXPECT_EQ(line->command, nullptr);
  EXPECT_THAT(line->print, HasSubstr("Probe flags"));
  EXPECT_THAT(line->print, HasSubstr("--memory SIZE"));
  EXPECT_THAT(line->print, HasSubstr("red|green"));
  EXPECT_THAT(line->print, ContainsRegex("INT ?(=3|\\[3\\])"));      // the form differs between versions of CLI11
  EXPECT_THAT(line->print, HasSubstr("latentmesh group probe"));
  EXPECT_THAT(Parse({"--help"})->print, HasSubstr("group"));
  EXPECT_THAT(Parse({"--version"})->print, HasSubstr(LATENTMESH_VERSION));
}

TEST(AllCommands, EveryOneHasHelpAndRefusesUnknownFlags) {
  for (const auto& command : MakeAllCommands()) {
    std::vector<std::string> words = {"latentmesh"};
    std::string name = command->name();
    size_t space = name.find(' ');
    words.push_back(name.substr(0, space));
    if (space != std::string::npos) words.push_back(name.substr(space + 1));
    auto parse = [&](const std::string& flag) {
      auto commands = MakeAllCommands();
      std::vector<const char*> arguments;
      for (const std::string& word : words) arguments.push_back(word.c_str());
      arguments.push_back(flag.c_str());
      return ParseCommandLine(static_cast<int>(arguments.size()), arguments.data(), commands);
    };
    auto help = parse("--help");
    ASSERT_TRUE(help.ok()) << name << help.status().message();
    EXPECT_THAT(help->print, HasSubstr(command->help())) << name;
    EXPECT_FALSE(parse("--no-such-flag").ok()) << name;
  }
}

TEST(ParseSize, KnowsUnits) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("1024"), 1024u);
  EXPECT_EQ(*ParseSize("4GB"), 4'000'000'000u);
  EXPECT_EQ(*ParseSize("512MiB"), 512u << 20);
  EXPECT_EQ(*ParseSize("0.5 k"), 500u);
  EXPECT_EQ(*ParseSize("2tib"), 2ull << 40);
  for (const char* bad : {"", "GB", "4XB", "-1", "1e30", "inf", "4GB 5"}) EXPECT_FALSE(ParseSize(bad).ok()) << bad;
}

TEST(FormatSize, UsesDecimalUnits) {
  EXPECT_EQ(FormatSize(512), "512 B");
  EXPECT_EQ(FormatSize(3.21e9), "3.21 GB");
}

TEST(ParseNumberList, RefusesWhatIsNoNumber) {
  EXPECT_THAT(*ParseNumberList("5"), ElementsAre(5));
  EXPECT_THAT(*ParseNumberList("0, 12,-7"), ElementsAre(0, 12, -7));
  for (const char* bad : {"", "1,,2", "1,", "1.5", "99999999999"}) EXPECT_FALSE(ParseNumberList(bad).ok()) << bad;
}

TEST(PromptFlags, CollectsInOrderAndNeedsOne) {
  PromptFlags flags;
  EXPECT_FALSE(flags.Load().ok());
  flags.prompt_ids = {"1,2"};
  flags.prompts = {"a"};
  auto prompts = flags.Load();
  ASSERT_TRUE(prompts.ok());
  EXPECT_EQ((*prompts)[0].text, "a");
  EXPECT_THAT((*prompts)[1].ids, ElementsAre(1, 2));
  flags.prompts_file = "/no/such/file";
  EXPECT_EQ(flags.Load().status().code(), StatusCode::kIo);
}

}  // namespace
}  // namespace latentmesh
