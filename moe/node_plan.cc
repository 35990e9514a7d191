#include "moe/node_plan.h"

#include <algorithm>

#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

// Adds `value` to the rising values[0, count) unless it is there.
int Insert(int32_t* values, int count, int32_t value) {
  int at = count;
  while (at > 0 && values[at - 1] > value) --at;
  if (at > 0 && values[at - 1] == value) return count;
  std::copy_backward(values + at, values + count, values + count + 1);
  values[at] = value;
  return count + 1;
}

struct Need {
  int64_t rows = 0, slots = 0;
};

// Rows and slots that each member receives in one round.
void CountRound(const NodeLists& lists, int rounds, int round, std::vector<Need>& needs) {
  const NodeShape& shape = lists.shape;
  needs.assign(static_cast<size_t>(shape.per_node), {});
  std::vector<int64_t> last(needs.size(), -1);
  int64_t token = 0;                 // counted over all lists
  for (const TokenList& list : lists.lists) {
    Range range = SplitRange(list.tokens, rounds, round);
    for (int64_t t = range.begin; t < range.end(); ++t, ++token) {
      for (int32_t j = 0; j < lists.k; ++j) {
        int member = list.choices[t * lists.k + j].rank - shape.first();
        if (member < 0 || member >= shape.per_node) continue;
        ++needs[static_cast<size_t>(member)].slots;
        needs[static_cast<size_t>(member)].rows += last[static_cast<size_t>(member)] != token;
        last[static_cast<size_t>(member)] = token;
      }
    }
  }
}

bool HostsFit(const NodeLists& lists, const RoundLimits& limits, int rounds) {
  for (int m = 0; m < lists.shape.per_node; ++m) {
    int64_t hosted = 0;
    for (int n = 0; n < lists.shape.nodes(); ++n)
      if (n != lists.shape.node()) hosted += (lists.At(m, n).tokens + rounds - 1) / rounds;
    if (hosted > limits.max_rows) return false;
  }
  return true;
}

bool Fits(const NodeLists& lists, const RoundLimits& limits, int rounds) {
  if (!HostsFit(lists, limits, rounds)) return false;
  std::vector<Need> needs;
  for (int round = 0; round < rounds; ++round) {
    CountRound(lists, rounds, round, needs);
    for (const Need& need : needs)
      if (need.rows > limits.max_rows || need.slots > limits.max_slots) return false;
  }
  return true;
}

}  // namespace

int MembersOf(const WireChoice* choices, int32_t k, const NodeShape& shape, int32_t* members) {
  int count = 0;
  for (int32_t j = 0; j < k; ++j) {
    int member = choices[j].rank - shape.first();
    if (member >= 0 && member < shape.per_node) count = Insert(members, count, member);
  }
  return count;
}

int OtherNodesOf(const WireChoice* choices, int32_t k, const NodeShape& shape, int32_t* nodes) {
  int count = 0;
  for (int32_t j = 0; j < k; ++j) {
    int node = choices[j].rank / shape.per_node;
    if (node != shape.node()) count = Insert(nodes, count, node);
  }
  return count;
}

int RoundsForNode(const NodeLists& lists, const RoundLimits& limits) {
  LM_CHECK_MSG(limits.max_rows >= lists.shape.ranks && limits.max_slots >= int64_t{lists.shape.ranks} * limits.slots_per_row,
               "dispatch buffers must hold one row from every rank");
  int rounds = 1;
  while (!Fits(lists, limits, rounds)) ++rounds;
  return rounds;
}

void NodeRows::Build(const NodeLists& lists, int rounds, int round) {
  const NodeShape& shape = lists.shape;
  rows.clear(), expert.clear(), weight.clear(), first.clear();
  slot_begin.assign(1, 0);
  for (int m = 0; m < shape.per_node; ++m) {
    for (int n = 0; n < shape.nodes(); ++n) {
      const TokenList& list = lists.At(m, n);
      first.push_back(static_cast<int32_t>(rows.size()));
      Range range = SplitRange(list.tokens, rounds, round);
      for (int64_t t = range.begin; t < range.end(); ++t) {
        for (int32_t j = 0; j < lists.k; ++j) {
          const WireChoice& choice = list.choices[t * lists.k + j];
          if (choice.rank != shape.rank) continue;
          expert.push_back(choice.expert);
          weight.push_back(choice.weight);
        }
        if (static_cast<int64_t>(expert.size()) == slot_begin.back()) continue;
        rows.push_back({m, n, t});
        slot_begin.push_back(static_cast<int64_t>(expert.size()));
      }
    }
  }
}

}  // namespace latentmesh
