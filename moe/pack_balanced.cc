// PackBalanced: heaviest item first into the lightest pack that may take it, then exchanges until none helps.
#include <algorithm>
#include <cstddef>
#include <utility>

#include "moe/expert_balance.h"

namespace latentmesh {
namespace {

class Packer {
 public:
  Packer(std::vector<PackItem> items, std::span<const int> capacities)
      : items_(std::move(items)), capacities_(capacities.begin(), capacities.end()), packs_(capacities.size()) {
    std::stable_sort(items_.begin(), items_.end(), [](const PackItem& a, const PackItem& b) {
      return a.load != b.load ? a.load > b.load : a.owner < b.owner;
    });
    int32_t owners = 0;
    for (const PackItem& item : items_) owners = std::max(owners, item.owner + 1);
    for (Pack& pack : packs_) pack.holds.assign(owners, false);
  }

  void PlaceAll() {
    for (size_t i = 0; i < items_.size(); ++i) {
      int pack = Lightest(items_[i].owner);
      if (pack >= 0)
        Put(pack, i);
      else
        PlaceByShift(i);
    }
  }

  // Each exchange lowers the heaviest pack (or the number of equally heavy ones), so this ends; the bound is for
  // rounding. Exchanges with little effect are not worth moving weights for.
  void Refine() {
    for (size_t step = 0; step < 4 * items_.size() && ExchangeOnce(); ++step) {
    }
  }

  std::vector<std::vector<int32_t>> Owners() const {
    std::vector<std::vector<int32_t>> owners(packs_.size());
    for (size_t p = 0; p < packs_.size(); ++p) {
      for (size_t i : packs_[p].items) owners[p].push_back(items_[i].owner);
      std::sort(owners[p].begin(), owners[p].end());
    }
    return owners;
  }

 private:
  struct Pack {
    double load = 0;
    std::vector<size_t> items;
    std::vector<bool> holds;                     // by owner
  };

  bool Full(int p) const { return static_cast<int>(packs_[p].items.size()) >= capacities_[p]; }
  int size() const { return static_cast<int>(packs_.size()); }

  void Put(int p, size_t item) {
    packs_[p].items.push_back(item);
    packs_[p].holds[items_[item].owner] = true;
    packs_[p].load += items_[item].load;
  }
  void Remove(int p, size_t item) {
    Pack& pack = packs_[p];
    pack.items.erase(std::find(pack.items.begin(), pack.items.end(), item));
    pack.holds[items_[item].owner] = false;
    pack.load -= items_[item].load;
  }

  int Lightest(int32_t owner) const {
    int best = -1;
    for (int p = 0; p < size(); ++p)
      if (!Full(p) && !packs_[p].holds[owner] && (best < 0 || packs_[p].load < packs_[best].load)) best = p;
    return best;
  }

  // Every pack with room holds this owner already. A pack P without it has an item that a pack Q with room lacks: that
  // item moves to Q, and the new one takes its place.
  void PlaceByShift(size_t item) {
    for (int q = 0; q < size(); ++q) {
      if (Full(q)) continue;
      for (int p = 0; p < size(); ++p) {
        if (packs_[p].holds[items_[item].owner]) continue;
        for (size_t other : packs_[p].items) {
          if (packs_[q].holds[items_[other].owner]) continue;
          Remove(p, other);
          Put(q, other);
          Put(p, item);
          return;
        }
      }
    }
    LM_CHECK_MSG(false, "PackBalanced: an owner has more items than there are packs");
  }

  struct Exchange {
    int pack = -1;
    size_t out = 0, in = 0;                      // from the heaviest pack, into it
    double heavier = 0;                          // larger of the two packs afterwards
  };

  Exchange BestExchange(int heavy) const {
    Exchange best;
    best.heavier = packs_[heavy].load * (1 - 1e-9);
    for (int p = 0; p < size(); ++p) {
      if (p == heavy) continue;
      for (size_t out : packs_[heavy].items) {
        if (packs_[p].holds[items_[out].owner]) continue;
        for (size_t in : packs_[p].items) {
          double shift = items_[out].load - items_[in].load;
          double heavier = std::max(packs_[heavy].load - shift, packs_[p].load + shift);
          if (heavier >= best.heavier || packs_[heavy].holds[items_[in].owner]) continue;
          best = {p, out, in, heavier};
        }
      }
    }
    return best;
  }

  bool ExchangeOnce() {
    int heavy = 0;
    for (int p = 1; p < size(); ++p)
      if (packs_[p].load > packs_[heavy].load) heavy = p;
    Exchange best = BestExchange(heavy);
    if (best.pack < 0) return false;
    Remove(heavy, best.out);
    Remove(best.pack, best.in);
    Put(heavy, best.in);
    Put(best.pack, best.out);
    return true;
  }

  std::vector<PackItem> items_;
  std::vector<int> capacities_;
  std::vector<Pack> packs_;
};

}  // namespace

std::vector<std::vector<int32_t>> PackBalanced(std::vector<PackItem> items, std::span<const int> capacities) {
  size_t room = 0;
  for (int capacity : capacities) room += capacity;
  LM_CHECK(room == items.size());
  Packer packer(std::move(items), capacities);
  packer.PlaceAll();
  packer.Refine();
  return packer.Owners();
}

}  // namespace latentmesh
