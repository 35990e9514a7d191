#include "runtime/text/bpe.h"

#include <gtest/gtest.h>

#include <random>

namespace latentmesh {
namespace {

// The textbook algorithm: merge the leftmost pair of the lowest rank until none is left. O(n^2).
std::vector<std::string> NaiveBpe(const std::string& piece, const std::vector<Bpe::Merge>& merges) {
  std::vector<std::string> parts;
  for (const char c : piece) parts.emplace_back(1, c);
  for (;;) {
    size_t best = merges.size(), at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (merges[rank].first == parts[i] && merges[rank].second == parts[i + 1]) best = rank, at = i;
      }
    }
    if (best == merges.size()) return parts;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + at + 1);
  }
}

struct Model {
  VocabularyMap vocabulary;
  std::vector<std::string> tokens;
  std::vector<Bpe::Merge> merges;
};

// Random merges over the letters a to d.
Model RandomModel(std::mt19937& random) {
  Model model;
  const auto add = [&](const std::string& token) {
    if (model.vocabulary.emplace(token, model.tokens.size()).second) model.tokens.push_back(token);
  };
  for (const char* letter : {"a", "b", "c", "d"}) add(letter);
  for (int i = 0; i < 40; ++i) {
    const std::string left = model.tokens[random() % model.tokens.size()],
                      right = model.tokens[random() % model.tokens.size()];
    if (left.size() + right.size() > 8 || model.vocabulary.count(left + right)) continue;
    add(left + right);
    model.merges.emplace_back(left, right);
  }
  return model;
}

TEST(BpeTest, EqualsTheTextbookAlgorithm) {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    const Model model = RandomModel(random);
    auto bpe = Bpe::Create(model.vocabulary, model.merges, {});
    ASSERT_TRUE(bpe.ok()) << bpe.status().message();
    for (int i = 0; i < 40; ++i) {
      std::string piece;
      for (unsigned n = random() % 100; n > 0; --n) piece += static_cast<char>('a' + random() % 4);
      std::vector<int32_t> ids;
      (*bpe)->Encode(piece, ids);
      std::vector<std::string> spelled;
      for (const int32_t id : ids) spelled.push_back(model.tokens[id]);
      EXPECT_EQ(spelled, NaiveBpe(piece, model.merges)) << piece;
    }
  }
}

TEST(BpeTest, LongPiecesAreQuick) {
  auto bpe = Bpe::Create({{"a", 0}, {"aa", 1}, {"aaaa", 2}}, {{"a", "a"}, {"aa", "aa"}}, {});
  ASSERT_TRUE(bpe.ok());
  std::vector<int32_t> ids;
  (*bpe)->Encode(std::string(1000001, 'a'), ids);
  ASSERT_EQ(ids.size(), 250001u);
  EXPECT_EQ(ids.back(), 0);
}

TEST(BpeTest, IgnoreMergesTakesAWholePiece) {
  const VocabularyMap vocabulary = {{"a", 0}, {"b", 1}, {"ab", 2}};
  for (const bool ignore : {false, true}) {
    BpeOptions options;
    options.ignore_merges = ignore;
    auto bpe = Bpe::Create(vocabulary, {}, options);
    std::vector<int32_t> ids;
    (*bpe)->Encode("ab", ids);
    EXPECT_EQ(ids, ignore ? std::vector<int32_t>{2} : (std::vector<int32_t>{0, 1}));
  }
}

TEST(BpeTest, UnknownSymbols) {
  BpeOptions options;
  options.byte_level = false;
  const VocabularyMap vocabulary = {{"a", 0}, {"<unk>", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  const auto encode = [&](const std::string& text) {
    auto bpe = Bpe::Create(vocabulary, {}, options);
    std::vector<int32_t> ids;
    (*bpe)->Encode(text, ids);
    return ids;
  };
  EXPECT_EQ(encode("aéb"), (std::vector<int32_t>{0}));
  options.unknown_id = 1;
  EXPECT_EQ(encode("aéba"), (std::vector<int32_t>{0, 1, 1, 0}));
  options.fuse_unknown = true;
  EXPECT_EQ(encode("aéba"), (std::vector<int32_t>{0, 1, 0}));
  options.byte_fallback = true;
  EXPECT_EQ(encode("aéb"), (std::vector<int32_t>{0, 2, 3, 1}));
}

TEST(BpeTest, RefusesAMergeOutsideTheVocabulary) {
  const auto bpe = Bpe::Create({{"a", 0}, {"b", 1}}, {{"a", "b"}}, {});
  ASSERT_FALSE(bpe.ok());
  EXPECT_NE(bpe.status().message().find("'ab'"), std::string::npos);
}

}  // namespace
}  // namespace latentmesh
