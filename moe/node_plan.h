// NodePlan: the host-side arithmetic of a dispatch by nodes. No communication.
//
// A node is a run of `per_node` neighbouring ep ranks. Each member of a node hosts one list of tokens a node: its own
// tokens, and those that the rank with its place in another node has sent here, each once. All members can read all lists
// hosted in their node, and from the same lists conclude the same rows.
#pragma once

#include <cstdint>
#include <vector>

#include "moe/exchange_plan.h"

namespace latentmesh {

struct NodeShape {
  int ranks = 1, per_node = 1, rank = 0;
  int nodes() const { return ranks / per_node; }
  int node() const { return rank / per_node; }
  int member() const { return rank % per_node; }                      // place within the node
  int first() const { return node() * per_node; }
  int Peer(int node) const { return node * per_node + member(); }     // the rank with this place in another node
};

// One choice of a token, as published: where its expert is, and its weight.
struct WireChoice {
  uint16_t rank;                     // ep rank
  uint16_t expert;                   // local there
  float weight;
};
static_assert(sizeof(WireChoice) == 8);

struct TokenList {
  const WireChoice* choices = nullptr;   // [tokens, k]
  int64_t tokens = 0;
};

struct NodeLists {
  NodeShape shape;
  int32_t k = 1;
  std::vector<TokenList> lists;      // [per_node, nodes]: lists[member * nodes + node the tokens come from]
  const TokenList& At(int member, int node) const { return lists[static_cast<size_t>(member * shape.nodes() + node)]; }
};

// Members of the node that hold experts of one token, rising. Returns how many; at most k.
int MembersOf(const WireChoice* choices, int32_t k, const NodeShape& shape, int32_t* members);
// Other nodes that hold experts of one token, rising.
int OtherNodesOf(const WireChoice* choices, int32_t k, const NodeShape& shape, int32_t* nodes);

// The smallest number of rounds, each taking SplitRange's share of every list, in which every member of the node receives at
// most max_rows rows and max_slots slots, and hosts at most max_rows tokens of other nodes.
int RoundsForNode(const NodeLists& lists, const RoundLimits& limits);

struct DispatchVolume;
// Adds the (token, other rank) and (token, expert on another rank) pairs of this rank's own tokens: rows_sent, slots_sent.
void CountDestinations(const NodeLists& lists, DispatchVolume& volume);

// What one member receives in a round: rows by host, then by node, then by token.
struct NodeRows {
  struct Row {
    int32_t member = 0, node = 0;    // of the list
    int64_t token = 0;               // in the list
  };
  std::vector<Row> rows;
  std::vector<int64_t> slot_begin;   // [rows + 1]
  std::vector<int32_t> expert;       // [slots]
  std::vector<float> weight;         // [slots]
  std::vector<int32_t> first;        // [per_node, nodes] first row of each list
  void Build(const NodeLists& lists, int rounds, int round);
};

}  // namespace latentmesh
