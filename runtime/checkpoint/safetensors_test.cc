#include "runtime/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "runtime/checkpoint/checkpoint_test_util.h"

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr DType kAllDTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3,
                                DType::kI8,  DType::kU8,   DType::kI32, DType::kI64};

TEST(SafetensorsTest, WhatIsWrittenIsRead) {
  TempFolder folder;
  std::vector<uint8_t> bytes(3 * 5 * 8);
  std::iota(bytes.begin(), bytes.end(), 1);
  SafetensorsWriter writer;
  writer.AddMetadata("format", "pt");
  for (DType dtype : kAllDTypes) writer.Add(DTypeName(dtype), dtype, {3, 5}, bytes.data());
  writer.Add("scalar", DType::kF32, {}, bytes.data());
  writer.Add("empty", DType::kBF16, {0, 7}, bytes.data());
  writer.Add("cube", DType::kU8, {2, 3, 4}, bytes.data());
  ASSERT_TRUE(writer.Write(folder.File("a.safetensors")).ok());

  Result<SafetensorsFile> file = SafetensorsFile::Open(folder.File("a.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->tensors().size(), std::size(kAllDTypes) + 3);
  for (DType dtype : kAllDTypes) {
    Result<HostTensor> tensor = file->ReadTensor(DTypeName(dtype));
    ASSERT_TRUE(tensor.ok()) << tensor.status().message();
    EXPECT_EQ(tensor->dtype, dtype);
    EXPECT_THAT(tensor->shape, ElementsAre(3, 5));
    ASSERT_EQ(tensor->bytes.size(), 15 * DTypeSize(dtype));
    EXPECT_EQ(std::memcmp(tensor->bytes.data(), bytes.data(), tensor->bytes.size()), 0);
  }
  EXPECT_EQ(file->ReadTensor("scalar")->size(), 1u);
  EXPECT_EQ(file->ReadTensor("empty")->size(), 0u);
  EXPECT_EQ(file->Find("cube")->rows(), 6);
  EXPECT_EQ(file->Find("cube")->cols(), 4);
  EXPECT_EQ(file->Find("scalar")->rows(), 1);
  EXPECT_EQ(file->Find("absent"), nullptr);
  EXPECT_THAT(file->ReadTensor("absent").status().message(), HasSubstr("'absent'"));
}

TEST(SafetensorsTest, GoldenExpectations) {
  Result<SafetensorsFile> file = SafetensorsFile::Open("tests/golden/v3-tiny/expected.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().message();
  Result<HostTensor> ids = file->ReadTensor("input_ids");
  ASSERT_TRUE(ids.ok());
  Result<std::vector<int32_t>> values = ids->ToInt32();
  ASSERT_TRUE(values.ok());
  EXPECT_EQ(values->size(), 48u);
  for (int32_t id : *values) EXPECT_TRUE(id >= 0 && id < 512);
  EXPECT_FALSE(ids->ToFloat().ok());
  Result<HostTensor> logits = file->ReadTensor("logits");
  ASSERT_TRUE(logits.ok());
  EXPECT_THAT(logits->shape, ElementsAre(48, 512));
  Result<std::vector<float>> floats = logits->ToFloat();
  ASSERT_TRUE(floats.ok());
  for (float value : *floats) EXPECT_TRUE(std::isfinite(value));
  EXPECT_FALSE(logits->ToInt32().ok());
}

TEST(SafetensorsTest, Conversions) {
  const uint16_t halves[] = {FloatToBF16(1.5f), FloatToBF16(-2.0f)};
  HostTensor tensor{"t", DType::kBF16, {2}, {}};
  tensor.bytes.resize(4);
  std::memcpy(tensor.bytes.data(), halves, 4);
  EXPECT_THAT(*tensor.ToFloat(), ElementsAre(1.5f, -2.0f));

  const int64_t wide[] = {-7, int64_t{1} << 40};
  HostTensor big{"big", DType::kI64, {1}, {}};
  big.bytes.resize(8);
  std::memcpy(big.bytes.data(), wide, 8);
  EXPECT_THAT(*big.ToInt32(), ElementsAre(-7));
  std::memcpy(big.bytes.data(), wide + 1, 8);
  EXPECT_THAT(big.ToInt32().status().message(), HasSubstr("'big'"));
}

TEST(SafetensorsTest, KnownDTypesThatAreNotComputedWithOpenButDoNotRead) {
  TempFolder folder;
  WriteFile(folder.File("f.safetensors"),
            RawSafetensors(R"({"x":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}})", 16));
  Result<SafetensorsFile> file = SafetensorsFile::Open(folder.File("f.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_THAT(file->ReadTensor("x").status().message(), HasSubstr("F64"));
}

struct Damage {
  const char* header;
  size_t data_bytes;
  const char* said;
};

class DamagedHeaderTest : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedHeaderTest, IsRefusedWithFileAndReason) {
  TempFolder folder;
  const std::string path = folder.File("damaged.safetensors");
  WriteFile(path, RawSafetensors(GetParam().header, GetParam().data_bytes));
  Result<SafetensorsFile> file = SafetensorsFile::Open(path);
  ASSERT_FALSE(file.ok()) << GetParam().header;
  EXPECT_EQ(file.status().code(), StatusCode::kInvalidModel);
  EXPECT_THAT(file.status().message(), HasSubstr(path));
  EXPECT_THAT(file.status().message(), HasSubstr(GetParam().said));
}

INSTANTIATE_TEST_SUITE_P(
    All, DamagedHeaderTest,
    ::testing::Values(
        Damage{"", 0, "JSON"}, Damage{"{", 0, "JSON"}, Damage{"[]", 0, "object"}, Damage{" {}", 0, "object"},
        Damage{"{}", 4, "4 bytes"}, Damage{R"({"x":3})", 0, "'x'"}, Damage{R"({"__metadata__":3})", 0, "__metadata__"},
        Damage{R"({"__metadata__":{"a":1}})", 0, "__metadata__"},
        Damage{R"({"x":{"shape":[1],"data_offsets":[0,4]}})", 4, "dtype"},
        Damage{R"({"x":{"dtype":"F4","shape":[1],"data_offsets":[0,4]}})", 4, "F4"},
        Damage{R"({"x":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, "dtype"},
        Damage{R"({"x":{"dtype":"F32","data_offsets":[0,4]}})", 4, "shape"},
        Damage{R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "shape"},
        Damage{R"({"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4, "shape"},
        Damage{R"({"x":{"dtype":"F32","shape":[1]}})", 4, "data_offsets"},
        Damage{R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "data_offsets"},
        Damage{R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "backwards"},
        Damage{R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "truncated"},
        Damage{R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4, "truncated"},
        Damage{R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}})", 4, "does not fill"},
        Damage{R"({"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "does not fill"},
        Damage{R"({"x":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4, "does not fill"},
        Damage{
            R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
            R"("y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
            6, "overlaps"},
        Damage{
            R"({"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
            R"("y":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
            4, "overlaps"},
        Damage{R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "hole"},
        Damage{R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "1 bytes"},
        Damage{
            R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
            R"("x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
            1, "twice"},
        Damage{R"({"x":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1, "twice"}));

TEST(SafetensorsTest, EscapedNamesAreNotTakenForDuplicates) {
  TempFolder folder;
  WriteFile(folder.File("f"), RawSafetensors(
                                  R"({"a\":{\\":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                                      "b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}   )",
                                  2));
  Result<SafetensorsFile> file = SafetensorsFile::Open(folder.File("f"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_NE(file->Find("a\":{\\"), nullptr);
}

TEST(SafetensorsTest, EveryTruncationIsNoticed) {
  const float values[] = {1, 2, 3, 4};
  SafetensorsWriter writer;
  writer.Add("x", DType::kF32, {2}, values);
  writer.Add("y", DType::kF32, {2}, values + 2);
  const std::string whole = writer.Serialize();
  TempFolder folder;
  for (size_t length = 0; length < whole.size(); ++length) {
    WriteFile(folder.File("t"), whole.substr(0, length));
    EXPECT_FALSE(SafetensorsFile::Open(folder.File("t")).ok()) << length;
  }
  WriteFile(folder.File("t"), whole + "x");
  EXPECT_FALSE(SafetensorsFile::Open(folder.File("t")).ok());
  WriteFile(folder.File("t"), std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8) + whole);
  EXPECT_THAT(SafetensorsFile::Open(folder.File("t")).status().message(), HasSubstr("100 MB"));
}

TEST(SafetensorsTest, FilesThatDoNotOpen) {
  TempFolder folder;
  EXPECT_THAT(SafetensorsFile::Open(folder.File("no")).status().message(), HasSubstr(folder.File("no")));
  EXPECT_FALSE(SafetensorsFile::Open(folder.path()).ok());
  EXPECT_EQ(SafetensorsWriter().Write(folder.File("no/such")).code(), StatusCode::kIo);
}

}  // namespace
}  // namespace latentmesh
