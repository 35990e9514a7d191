#include "moe/expert_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ExpertPlacement, ContiguousSplitsUnevenCounts) {
  ExpertPlacement p = ExpertPlacement::Contiguous(7, 3);
  EXPECT_THAT(p.LocalExperts(0), ElementsAre(0, 1, 2));
  EXPECT_THAT(p.LocalExperts(1), ElementsAre(3, 4));
  EXPECT_THAT(p.LocalExperts(2), ElementsAre(5, 6));
  EXPECT_EQ(p.SiteOf(4), (ExpertSite{1, 1}));
  EXPECT_EQ(p.MaxLocalCount(), 3);
  EXPECT_FALSE(p.has_replicas());
}

TEST(ExpertPlacement, RanksMayHoldNothing) {
  ExpertPlacement p = ExpertPlacement::Contiguous(2, 4);
  EXPECT_EQ(p.LocalCount(1), 1);
  EXPECT_EQ(p.LocalCount(3), 0);
  EXPECT_EQ(p.sites(), 2);
}

TEST(ExpertPlacement, SaltVisitsEveryReplicaEvenly) {
  ExpertPlacement p = ExpertPlacement::FromTable(3, {{0, 2}, {2, 1}, {2, 0}}).value();
  EXPECT_EQ(p.Replicas(2), 3);
  EXPECT_TRUE(p.has_replicas());
  std::vector<int> visits(3);
  for (uint64_t salt = 0; salt < 30; ++salt) {
    ExpertSite site = p.SiteOf(2, salt);
    EXPECT_EQ(p.LocalExperts(site.rank)[site.local], 2);
    ++visits[site.rank];
  }
  EXPECT_THAT(visits, ElementsAre(10, 10, 10));
  EXPECT_EQ(p.RankOf(1, 12345), 1);
}

TEST(ExpertPlacement, EverySiteNamesItsExpert) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    ExpertPlacement p = ExpertPlacement::Contiguous(24, ranks);
    for (int e = 0; e < 24; ++e)
      for (const ExpertSite& site : p.Sites(e)) EXPECT_EQ(p.LocalExperts(site.rank)[site.local], e);
  }
}

TEST(ExpertPlacement, RefusesBadTables) {
  EXPECT_THAT(ExpertPlacement::FromTable(3, {{0, 1}, {1}}).status().message(), HasSubstr("expert 2 is on no rank"));
  EXPECT_THAT(ExpertPlacement::FromTable(2, {{0, 1}, {2}}).status().message(), HasSubstr("rank 1: expert 2 is out"));
  EXPECT_THAT(ExpertPlacement::FromTable(2, {{0, 1, 0}}).status().message(), HasSubstr("expert 0 stands twice"));
  EXPECT_FALSE(ExpertPlacement::FromTable(0, {{}}).ok());
  EXPECT_FALSE(ExpertPlacement::FromTable(1, {}).ok());
}

}  // namespace
}  // namespace latentmesh
