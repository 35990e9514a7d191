#include "runtime/checkpoint/weight_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "parallel/local_communicator.h"
#include "runtime/checkpoint/checkpoint_test_util.h"
#include "runtime/checkpoint/tensor_slice.h"

namespace latentmesh {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::chrono::milliseconds kTimeout{20'000};

struct Wish {
  std::string name;
  TensorSlice slice;  // all zero: the whole tensor
};

struct Outcome {
  Status status;
  LoadProgress progress;
  std::vector<std::string> data;   // of each wish; "-" when it was not consumed
  std::vector<std::string> order;  // names as consumed
};

// Every rank asks for its wishes; what arrives is kept.
class LoaderRun {
 public:
  explicit LoaderRun(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}
  LoadOptions options;
  std::function<Status(int rank, const std::string& name)> on_consume = [](int, const std::string&) {
    return Status();
  };

  std::vector<TensorRequest> Requests(int rank, const std::vector<Wish>& wishes, Outcome& outcome) {
    std::vector<TensorRequest> requests;
    outcome.data.assign(wishes.size(), "-");
    for (size_t i = 0; i < wishes.size(); ++i) {
      TensorRequest request;
      request.name = wishes[i].name;
      if (const TensorInfo* info = checkpoint_.Find(request.name)) request.shape = info->shape;
      request.row_begin = wishes[i].slice.row_begin;
      request.rows = wishes[i].slice.rows;
      request.col_begin = wishes[i].slice.col_begin;
      request.cols = wishes[i].slice.cols;
      request.consume = [this, rank, i, name = request.name, &outcome](const LoadedSlice& slice) {
        outcome.order.push_back(name);
        const size_t bytes = static_cast<size_t>(slice.rows * slice.cols) * DTypeSize(slice.dtype);
        outcome.data[i].assign(static_cast<const char*>(slice.data), bytes);
        return on_consume(rank, name);
      };
      requests.push_back(std::move(request));
    }
    return requests;
  }

  std::vector<Outcome> Run(const std::vector<std::vector<Wish>>& wishes) {
    const int ranks = static_cast<int>(wishes.size());
    auto world = CreateLocalGroup("world", ranks, kTimeout);
    auto control = CreateLocalControl(ranks, kTimeout);
    std::vector<Outcome> outcomes(wishes.size());
    RunLocalRanks(ranks, [&](int rank) {
      Outcome& mine = outcomes[rank];
      Result<LoadProgress> result =
          LoadWeights(checkpoint_, Requests(rank, wishes[rank], mine), *world[rank], *control[rank], options);
      mine.status = result.status();
      if (result.ok()) mine.progress = *result;
    });
    return outcomes;
  }

 private:
  const Checkpoint& checkpoint_;
};

// What a wish should bring, read directly.
std::string Expected(const Checkpoint& checkpoint, const Wish& wish) {
  const HostTensor tensor = *checkpoint.ReadTensor(wish.name);
  const TensorInfo& info = *checkpoint.Find(wish.name);
  TensorSlice s = wish.slice;
  if (s == TensorSlice{}) s = {0, info.rows(), 0, info.cols()};
  std::string result;
  const size_t element = DTypeSize(tensor.dtype);
  for (int64_t row = s.row_begin; row < s.row_begin + s.rows; ++row) {
    const size_t offset = static_cast<size_t>(row * info.cols() + s.col_begin) * element;
    result.append(reinterpret_cast<const char*>(tensor.bytes.data()) + offset, static_cast<size_t>(s.cols) * element);
  }
  return result;
}

// Two shards of tensors of all dtypes and odd shapes.
class WeightLoaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::mt19937 random(3);
    const DType dtypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3, DType::kI8, DType::kI64};
    const std::vector<int64_t> shapes[] = {{13, 7}, {24}, {2, 3, 5}, {1, 1}, {64, 96}, {}, {0, 4}};
    std::string map;
    for (int shard = 0; shard < 2; ++shard) {
      SafetensorsWriter writer;
      const std::string file = "part" + std::to_string(shard) + ".safetensors";
      for (DType dtype : dtypes) {
        for (const auto& shape : shapes) {
          std::string name = std::to_string(shard) + "." + DTypeName(dtype) + "." + ShapeString(shape);
          std::vector<uint8_t> bytes(64 * 96 * 8);
          for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
          writer.Add(name, dtype, shape, bytes.data());
          map += (map.empty() ? "\"" : ", \"") + name + "\": \"" + file + "\"";
        }
      }
      ASSERT_TRUE(writer.Write(folder_.File(file)).ok());
    }
    WriteFile(folder_.File("model.safetensors.index.json"), "{\"weight_map\": {" + map + "}}");
    Result<Checkpoint> opened = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    checkpoint_ = std::move(*opened);
  }

  // Some ranks' worth of wishes: whole tensors, rows, columns, rectangles, nothing.
  std::vector<std::vector<Wish>> RandomWishes(int ranks, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<Wish>> wishes(ranks);
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      const bool same_for_all = random() % 3 == 0;
      for (auto& mine : wishes) {
        if (same_for_all) mine.push_back({tensor.name, {}});
        for (int n = same_for_all ? 0 : static_cast<int>(random() % 3); n > 0; --n) {
          mine.push_back({tensor.name, RandomSlice(tensor, random)});
        }
      }
    }
    return wishes;
  }

  static TensorSlice RandomSlice(const TensorInfo& tensor, std::mt19937& random) {
    auto part = [&](int64_t total, int64_t& begin, int64_t& count) {
      begin = static_cast<int64_t>(random() % static_cast<uint64_t>(total + 1));
      count = static_cast<int64_t>(random() % static_cast<uint64_t>(total - begin + 1));
    };
    TensorSlice slice{0, tensor.rows(), 0, tensor.cols()};
    const unsigned kind = random() % 4;
    if (kind & 1) part(tensor.rows(), slice.row_begin, slice.rows);
    if (kind & 2) part(tensor.cols(), slice.col_begin, slice.cols);
    if (slice == TensorSlice{}) slice = {0, tensor.rows(), 0, tensor.cols()};
    return slice;
  }

  void CheckAll(const std::vector<std::vector<Wish>>& wishes, const std::vector<Outcome>& outcomes) {
    for (size_t rank = 0; rank < wishes.size(); ++rank) {
      ASSERT_TRUE(outcomes[rank].status.ok()) << outcomes[rank].status.message();
      for (size_t i = 0; i < wishes[rank].size(); ++i) {
        EXPECT_EQ(outcomes[rank].data[i], Expected(checkpoint_, wishes[rank][i]))
            << rank << " " << wishes[rank][i].name;
      }
    }
  }

  TempFolder folder_;
  Checkpoint checkpoint_;
};

TEST_F(WeightLoaderTest, SlicesEqualDirectReadsOnAnyNumberOfRanks) {
  for (int ranks : {1, 2, 4}) {
    for (unsigned seed = 0; seed < 8; ++seed) {
      const auto wishes = RandomWishes(ranks, seed);
      LoaderRun run(checkpoint_);
      run.options.window_bytes = seed % 2 ? 1000 : 1 << 20;  // smaller than a tensor, and larger than all
      CheckAll(wishes, run.Run(wishes));
    }
  }
}

TEST_F(WeightLoaderTest, EachByteIsReadOnceByOneRank) {
  const auto wishes = RandomWishes(4, 17);
  uint64_t wanted = 0;
  for (const TensorInfo& tensor : checkpoint_.tensors()) {
    const bool any = std::any_of(wishes.begin(), wishes.end(), [&](const auto& mine) {
      return std::any_of(mine.begin(), mine.end(), [&](const Wish& wish) { return wish.name == tensor.name; });
    });
    if (any) wanted += tensor.bytes;
  }
  uint64_t read = 0, largest = 0;
  for (const Outcome& outcome : LoaderRun(checkpoint_).Run(wishes)) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.message();
    EXPECT_EQ(outcome.progress.bytes_total, wanted);
    EXPECT_EQ(outcome.progress.bytes_done, wanted);
    read += outcome.progress.bytes_read_here;
    largest = std::max(largest, outcome.progress.bytes_read_here);
  }
  EXPECT_EQ(read, wanted);
  EXPECT_LT(largest, wanted / 2);  // four readers share the work
}

TEST_F(WeightLoaderTest, NothingIsSentOfWhatOneRankWants) {
  std::vector<std::vector<Wish>> wishes(2);
  for (size_t i = 0; i < checkpoint_.tensors().size(); ++i)
    wishes[i % 2].push_back({checkpoint_.tensors()[i].name, {}});
  const auto outcomes = LoaderRun(checkpoint_).Run(wishes);
  CheckAll(wishes, outcomes);
  EXPECT_EQ(outcomes[0].progress.bytes_received_here + outcomes[1].progress.bytes_received_here, 0u);
}

TEST_F(WeightLoaderTest, ConsumersAreCalledInFileOrder) {
  auto wishes = RandomWishes(3, 5);
  std::mt19937 random(1);
  for (auto& mine : wishes) std::shuffle(mine.begin(), mine.end(), random);
  for (const Outcome& outcome : LoaderRun(checkpoint_).Run(wishes)) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status.message();
    const TensorInfo* last = nullptr;
    for (const std::string& name : outcome.order) {
      const TensorInfo* tensor = checkpoint_.Find(name);
      EXPECT_LE(last == nullptr ? tensor : last, tensor);
      last = tensor;
    }
  }
}

TEST_F(WeightLoaderTest, RanksWithoutWishesTakePart) {
  const auto outcomes = LoaderRun(checkpoint_).Run({{}, {{checkpoint_.tensors()[0].name, {}}}, {}});
  for (const Outcome& outcome : outcomes) EXPECT_TRUE(outcome.status.ok()) << outcome.status.message();
  for (const Outcome& outcome : LoaderRun(checkpoint_).Run({{}, {}})) EXPECT_TRUE(outcome.status.ok());
}

TEST_F(WeightLoaderTest, ProgressEndsAtTheTotal) {
  LoaderRun run(checkpoint_);
  std::vector<LoadProgress> seen;
  run.options.progress = [&](const LoadProgress& progress) { seen.push_back(progress); };
  ASSERT_TRUE(run.Run(RandomWishes(2, 3))[0].status.ok());
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
}

// All ranks end, with one message.
std::string CommonFailure(const std::vector<Outcome>& outcomes, StatusCode code = StatusCode::kInvalidModel) {
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.status.code(), code) << outcome.status.message();
    EXPECT_EQ(outcome.status.message(), outcomes[0].status.message());
  }
  return outcomes[0].status.message();
}

TEST_F(WeightLoaderTest, AMissingTensorIsNamedBeforeAnythingIsRead) {
  auto wishes = RandomWishes(3, 2);
  wishes[1].push_back({"model.absent.weight", {}});
  const auto outcomes = LoaderRun(checkpoint_).Run(wishes);
  EXPECT_THAT(CommonFailure(outcomes), HasSubstr("model.absent.weight"));
  for (const Outcome& outcome : outcomes) EXPECT_TRUE(outcome.order.empty());
}

TEST_F(WeightLoaderTest, OptionalTensorsMayBeAbsent) {
  auto world = CreateLocalGroup("world", 1, kTimeout);
  auto control = CreateLocalControl(1, kTimeout);
  int calls = 0;
  auto request = [&](const std::string& name, std::vector<int64_t> shape) {
    TensorRequest r;
    r.name = name;
    r.shape = std::move(shape);
    r.optional = true;
    r.consume = [&](const LoadedSlice&) { return ++calls, Status(); };
    return r;
  };
  EXPECT_TRUE(LoadWeights(folder_.path(), {request("absent", {1}), request("0.f32.[13, 7]", {13, 7})}, *world[0],
                          *control[0], {})
                  .ok());
  EXPECT_EQ(calls, 1);
  // a present one is checked like any other
  EXPECT_FALSE(LoadWeights(folder_.path(), {request("0.f32.[13, 7]", {7, 13})}, *world[0], *control[0], {}).ok());
}

TEST_F(WeightLoaderTest, AWrongShapeIsNamedWithBothShapes) {
  auto world = CreateLocalGroup("world", 1, kTimeout);
  auto control = CreateLocalControl(1, kTimeout);
  TensorRequest request;
  request.name = "1.bf16.[64, 96]";
  request.shape = {96, 64};
  const Status status = LoadWeights(folder_.path(), {request}, *world[0], *control[0], {}).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidModel);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("part1.safetensors"), HasSubstr("1.bf16.[64, 96]"), HasSubstr("[96, 64]")));
}

TEST_F(WeightLoaderTest, SlicesOutsideTheTensorAreRefused) {
  const auto outcomes = LoaderRun(checkpoint_).Run({{{"0.f32.[13, 7]", {10, 4, 0, 7}}}, {}});
  EXPECT_THAT(CommonFailure(outcomes, StatusCode::kInternal), HasSubstr("0.f32.[13, 7]"));
}

// The file shrinks after its header was read: some reader fails in the middle.
TEST_F(WeightLoaderTest, AReadErrorInTheMiddleEndsAllRanks) {
  const std::string file = folder_.File("part1.safetensors");
  const auto size = std::filesystem::file_size(file);
  for (const double left : {0.95, 0.5, 0.1}) {
    std::filesystem::resize_file(file, static_cast<uintmax_t>(static_cast<double>(size) * left));
    for (int ranks : {1, 2, 4}) {
      std::vector<std::vector<Wish>> wishes(ranks);
      for (auto& mine : wishes) {
        for (const TensorInfo& tensor : checkpoint_.tensors()) {
          mine.push_back({tensor.name, {}});
          if (tensor.rows() > 1 && &mine != &wishes[0]) mine.back().slice = {1, tensor.rows() - 1, 0, tensor.cols()};
        }
      }
      EXPECT_THAT(CommonFailure(LoaderRun(checkpoint_).Run(wishes)), AllOf(HasSubstr(file), HasSubstr("tensor '1.")));
      for (auto& mine : wishes) {
        for (Wish& wish : mine) wish.slice = {};  // broadcasts
      }
      EXPECT_THAT(CommonFailure(LoaderRun(checkpoint_).Run(wishes)), AllOf(HasSubstr(file), HasSubstr("tensor '1.")));
    }
  }
}

TEST_F(WeightLoaderTest, AFailingConsumerEndsAllRanks) {
  const auto wishes = RandomWishes(4, 9);
  const std::string victim = wishes[2].back().name;
  LoaderRun run(checkpoint_);
  run.on_consume = [&](int rank, const std::string& name) {
    return rank == 2 && name == victim ? ResourceExhausted("device full") : Status();
  };
  EXPECT_THAT(CommonFailure(run.Run(wishes), StatusCode::kResourceExhausted),
              AllOf(HasSubstr("device full"), HasSubstr(victim), HasSubstr("safetensors")));
  run.on_consume = [&](int rank, const std::string& name) -> Status {
    if (rank == 2 && name == victim) throw Error(StatusCode::kResourceExhausted, "no device memory");
    return {};
  };
  EXPECT_THAT(CommonFailure(run.Run(wishes), StatusCode::kResourceExhausted), HasSubstr("no device memory"));
}

class ScaleTest : public ::testing::TestWithParam<float> {};

TEST_P(ScaleTest, BadScalesAreNamedOnAllRanks) {
  TempFolder folder;
  std::vector<float> scales(6, 0.5f);
  SafetensorsWriter writer;
  writer.Add("a.weight_scale_inv", DType::kF32, {2, 3}, scales.data());
  scales[4] = GetParam();
  writer.Add("b.weight_scale_inv", DType::kF32, {2, 3}, scales.data());
  writer.Add("b.weight", DType::kF32, {2, 3}, scales.data());  // only scales are looked at
  ASSERT_TRUE(writer.Write(folder.File("model.safetensors")).ok());
  const Checkpoint checkpoint = *Checkpoint::Open(folder.path());
  const std::vector<Wish> good{{"a.weight_scale_inv", {}}, {"b.weight", {}}};
  for (const Outcome& outcome : LoaderRun(checkpoint).Run({good, good})) EXPECT_TRUE(outcome.status.ok());
  const auto outcomes = LoaderRun(checkpoint).Run({good, {{"b.weight_scale_inv", {0, 1, 0, 3}}}, good});
  EXPECT_THAT(CommonFailure(outcomes),
              AllOf(HasSubstr("b.weight_scale_inv"), HasSubstr("row 1, column 1"), HasSubstr("model.safetensors")));
}

INSTANTIATE_TEST_SUITE_P(Values, ScaleTest,
                         ::testing::Values(std::nanf(""), std::numeric_limits<float>::infinity(), 0.0f, -1.0f));

TEST(WeightLoaderGoldenTest, FoldersLoadWithoutTheMtpLayer) {
  const Checkpoint checkpoint = *Checkpoint::Open("launch/demo");
  std::vector<std::vector<Wish>> wishes(2);
  uint64_t wanted = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (tensor.name.starts_with("model.layers.5.")) continue;
    wanted += tensor.bytes;
    const int64_t half = tensor.rows() / 2;
    wishes[0].push_back({tensor.name, {0, half, 0, tensor.cols()}});
    wishes[1].push_back({tensor.name, {half, tensor.rows() - half, 0, tensor.cols()}});
  }
  const auto outcomes = LoaderRun(checkpoint).Run(wishes);
  EXPECT_EQ(outcomes[0].progress.bytes_read_here + outcomes[1].progress.bytes_read_here, wanted);
  EXPECT_LT(wanted, checkpoint.total_bytes());
  for (size_t rank = 0; rank < 2; ++rank) {
    ASSERT_TRUE(outcomes[rank].status.ok()) << outcomes[rank].status.message();
    for (size_t i = 0; i < wishes[rank].size(); ++i) {
      const Wish& wish = wishes[rank][i];
      if (wish.slice == TensorSlice{}) continue;  // rank 0's half of a one-row tensor
      EXPECT_EQ(outcomes[rank].data[i], Expected(checkpoint, wish)) << wish.name;
    }
  }
}

}  // namespace
}  // namespace latentmesh
