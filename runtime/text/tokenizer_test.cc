#include "runtime/text/tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "runtime/text/text_test_util.h"

namespace latentmesh {
namespace {

using boost::json::value;
using Ids = std::vector<int32_t>;

Ids IdsOf(const value& list) {
  Ids ids;
  for (const value& id : list.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

std::unique_ptr<Tokenizer> Demo() {
  auto tokenizer = Tokenizer::Load(kDemo);
  if (!tokenizer.ok()) throw std::runtime_error(tokenizer.status().message());
  return std::move(*tokenizer);
}

std::unique_ptr<Tokenizer> Make(const std::string& tokenizer_json, const std::string& config_json = "") {
  auto tokenizer = Tokenizer::Create(tokenizer_json, config_json);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

std::string Refusal(const std::string& tokenizer_json, const std::string& config_json = "") {
  const auto tokenizer = Tokenizer::Create(tokenizer_json, config_json);
  EXPECT_FALSE(tokenizer.ok());
  return tokenizer.status().message();
}

// A byte-level model over a few ASCII letters; `more` is inserted at the top level.
std::string SmallModel(const std::string& more, const std::string& model_more = "") {
  return R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
             "decoder": {"type": "ByteLevel"}, )" +
         more + R"(
             "model": {"type": "BPE", )" +
         model_more + R"( "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "<s>": 4, "</s>": 5},
                       "merges": ["a b"]}})";
}

constexpr char kSpecials[] = R"("added_tokens": [{"id": 4, "content": "<s>", "special": true},
                                                 {"id": 5, "content": "</s>", "special": true}],)";

TEST(TokenizerTest, DemoModelMatchesTheReference) {
  const auto tokenizer = Demo();
  for (const value& test_case : ReadTestArray("tests/golden/tokenizer.json")) {
    const std::string text = Text(test_case.at("text"));
    const Ids ids = IdsOf(test_case.at("ids"));
    EXPECT_EQ(tokenizer->Encode(text, false), ids) << text;
    EXPECT_EQ(tokenizer->Decode(ids, false), Text(test_case.at("decoded"))) << text;
  }
}

// The greedy reference holds BOS, the prompt and what the model wrote.
TEST(TokenizerTest, DemoModelAddsBos) {
  const auto tokenizer = Demo();
  EXPECT_EQ(tokenizer->bos_token(), "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_EQ(tokenizer->Encode("a", true)[0], 0);
  EXPECT_NE(tokenizer->Encode("a", false)[0], 0);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_FALSE(tokenizer->IsSpecial(100));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_FALSE(tokenizer->IsSpecial(1 << 30));
}

// Every pre-tokenizer that published models use, and the constructs they are made of, against Hugging Face tokenizers.
TEST(TokenizerTest, PreTokenizersMatchTheReference) {
  const value base = ReadTestJson("launch/demo/tokenizer.json");
  for (const value& set : ReadTestArray("tests/golden/text/pretokenizers.json")) {
    value json = base;
    for (const auto& [key, replacement] : set.at("overrides").as_object()) json.as_object()[key] = replacement;
    const auto tokenizer = Make(boost::json::serialize(json));
    ASSERT_NE(tokenizer, nullptr) << Text(set.at("name"));
    for (const value& test_case : set.at("cases").as_array()) {
      EXPECT_EQ(tokenizer->Encode(Text(test_case.at("text")), false), IdsOf(test_case.at("ids")))
          << Text(set.at("name")) << ": " << Text(test_case.at("text"));
    }
  }
}

TEST(TokenizerTest, RandomTextComesBack) {
  const auto tokenizer = Demo();
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const std::string text = RandomText(random, random() % 40, false);
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, true), true), text);
  }
}

TEST(TokenizerTest, InvalidBytesComeBackAsBytesAndDecodeLossy) {
  const auto tokenizer = Demo();
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    const std::string text = RandomText(random, random() % 30, true);
    const Ids ids = tokenizer->Encode(text, false);
    std::string bytes, lossy;
    for (const int32_t id : ids) bytes += tokenizer->TokenBytes(id);
    EXPECT_EQ(bytes, text);
    if (AppendLossyUtf8(lossy, text) < text.size()) lossy += "\uFFFD";
    EXPECT_EQ(tokenizer->Decode(ids), lossy);
  }
}

TEST(TokenizerTest, IncrementalTextEqualsDecode) {
  const auto tokenizer = Demo();
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    Ids ids;
    for (unsigned n = random() % 30; n > 0; --n) ids.push_back(static_cast<int32_t>(random() % 300));
    const bool skip = round % 2 == 0;
    IncrementalDetokenizer detokenizer(*tokenizer, skip);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = detokenizer.Push(id);
      EXPECT_TRUE(IsValidUtf8(piece));
      text += piece;
    }
    text += detokenizer.Finish();
    EXPECT_EQ(text, tokenizer->Decode(ids, skip));
    EXPECT_FALSE(detokenizer.pending());
  }
}

TEST(TokenizerTest, AnIncompleteCharacterIsHeldBack) {
  const auto tokenizer = Demo();
  const Ids ids = tokenizer->Encode("😀", false);
  ASSERT_GE(ids.size(), 2u);
  IncrementalDetokenizer detokenizer(*tokenizer);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(detokenizer.Push(ids[i]), "");
  EXPECT_TRUE(detokenizer.pending());
  EXPECT_EQ(detokenizer.Push(ids.back()), "😀");
  EXPECT_EQ(detokenizer.Push(ids[0]), "");
  EXPECT_EQ(detokenizer.Finish(), "\uFFFD");
}

TEST(TokenizerTest, LargeTextsAreQuick) {
  const auto tokenizer = Demo();
  for (const char* unit : {"a", " ", "\n", "😀", "1", "ab 12\n", "!", "中"}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, false)), text) << unit;
  }
}

TEST(TokenizerTest, SpecialTokensCanBePlainText) {
  const auto tokenizer = Make(SmallModel(kSpecials));
  EXPECT_EQ(tokenizer->Encode("a<s>b", false, true), (Ids{0, 4, 1}));
  EXPECT_EQ(tokenizer->Encode("a<s>b", false, false), (Ids{0, 1}));  // '<', 's', '>' are no tokens here
  EXPECT_EQ(tokenizer->Decode(Ids{0, 4, 1}, true), "ab");
  EXPECT_EQ(tokenizer->Decode(Ids{0, 4, 1}, false), "a<s>b");
  EXPECT_EQ(tokenizer->Decode(Ids{0, 99, -1, 1}, false), "ab");
}

TEST(TokenizerTest, ConfigForms) {
  const std::string bos_object = R"({"bos_token": {"content": "<s>", "__type": "AddedToken"}, "eos_token": "</s>", )";
  const auto both = Make(SmallModel(kSpecials), bos_object + R"("add_bos_token": true, "add_eos_token": true})");
  EXPECT_EQ(both->Encode("ab"), (Ids{4, 3, 5}));
  EXPECT_EQ(both->Encode("ab", false), (Ids{3}));
  EXPECT_EQ(Make(SmallModel(kSpecials), bos_object + R"("add_bos_token": false})")->Encode("ab"), (Ids{3}));
  EXPECT_EQ(Make(SmallModel(kSpecials), R"({"bos_token": null})")->bos_id(), -1);
  const auto only_config =
      Make(SmallModel(""), R"({"added_tokens_decoder": {"4": {"content": "<s>", "special": true}}})");
  EXPECT_EQ(only_config->Encode("<s>a", false), (Ids{4, 0}));
  EXPECT_TRUE(only_config->IsSpecial(4));
}

TEST(TokenizerTest, PostProcessorAddsBosOnce) {
  const std::string post = std::string(kSpecials) + R"("post_processor": {"type": "Sequence", "processors": [
      {"type": "ByteLevel"}, {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
       "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}}]},)";
  EXPECT_EQ(Make(SmallModel(post))->Encode("ab"), (Ids{4, 3}));
  EXPECT_EQ(Make(SmallModel(post), R"({"bos_token": "<s>", "add_bos_token": true})")->Encode("ab"), (Ids{4, 3}));
  EXPECT_EQ(Make(SmallModel(post), R"({"bos_token": "<s>", "add_bos_token": false})")->Encode("ab"), (Ids{3}));
}

TEST(TokenizerTest, ChatTemplateForms) {
  EXPECT_EQ(Make(SmallModel(""), R"({"chat_template": "x"})")->chat_template(), "x");
  const auto list = Make(SmallModel(""), R"({"chat_template": [{"name": "tool_use", "template": "t"},
                                                               {"name": "default", "template": "d"}]})");
  EXPECT_EQ(list->chat_template(), "d");
  EXPECT_EQ(list->chat_template(true), "t");
  EXPECT_EQ(Make(SmallModel(""))->chat_template(), "");
}

TEST(TokenizerTest, TemplateFileWins) {
  const std::string folder = testing::TempDir() + "/tokenizer_template_file" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer.json") << SmallModel("");
  std::ofstream(folder + "/tokenizer_config.json") << R"({"chat_template": "x"})";
  std::ofstream(folder + "/chat_template.jinja") << "from the file";
  const auto tokenizer = Tokenizer::Load(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  EXPECT_EQ((*tokenizer)->chat_template(), "from the file");
}

TEST(TokenizerTest, SentencePieceStyleModel) {
  const auto tokenizer = Make(R"({
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
              "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁": 3, "a": 4, "▁a": 5}, "merges": ["▁ a"]}})");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->Encode("a aé", false), (Ids{5, 5, 1, 2}));
  EXPECT_EQ(tokenizer->Decode(Ids{5, 5, 1, 2}), "a aé");
}

TEST(TokenizerTest, RefusesByName) {
  const auto has = [](const std::string& message, const std::string& word) {
    return message.find(word) != std::string::npos;
  };
  EXPECT_TRUE(has(Refusal("{"), "JSON"));
  EXPECT_TRUE(has(Refusal("{}"), "model"));
  EXPECT_TRUE(has(Refusal(R"({"model": {"type": "Unigram"}})"), "Unigram"));
  EXPECT_TRUE(has(Refusal(SmallModel(R"("normalizer": {"type": "Precompiled"},)")), "Precompiled"));
  EXPECT_TRUE(has(Refusal(SmallModel(R"("post_processor": {"type": "BertProcessing"},)")), "BertProcessing"));
  EXPECT_TRUE(has(Refusal(SmallModel("", R"("dropout": 0.1,)")), "dropout"));
  EXPECT_TRUE(has(Refusal(SmallModel("", R"("unk_token": "<nope>",)")), "<nope>"));
  EXPECT_TRUE(has(Refusal(SmallModel(""), R"({"bos_token": "<nope>"})"), "<nope>"));
  EXPECT_TRUE(has(Refusal(R"({"pre_tokenizer": {"type": "UnicodeScripts"}, "model": {"vocab": {}, "merges": []}})"),
                  "UnicodeScripts"));
  const auto missing = Tokenizer::Load(testing::TempDir() + "/no_such_model");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), StatusCode::kIo);
}

}  // namespace
}  // namespace latentmesh
