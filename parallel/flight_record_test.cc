#include "parallel/flight_record.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace latentmesh {
namespace {

std::string ReadTrimmed(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.substr(0, line.find_last_not_of(' ') + 1);
}

TEST(FlightRecord, HoldsTheLatestPlaceInAFileOfOneLine) {
  RecordFlight(1, "goes nowhere before a record is open");
  EXPECT_EQ(OpenFlightRecord("/nonexistent/record").code(), StatusCode::kIo);
  std::string path = testing::TempDir() + "/flight_record_test" + std::to_string(getpid());
  ASSERT_TRUE(OpenFlightRecord(path).ok());
  EXPECT_EQ(ReadTrimmed(path), "starting");
  RecordFlight(17, "expert dispatch and combine");
  EXPECT_EQ(ReadTrimmed(path), "step 17, expert dispatch and combine");
  RecordFlight(-1, "short");
  EXPECT_EQ(ReadTrimmed(path), "short");
  std::string longer(500, 'x');
  RecordFlight(INT64_MAX, longer.c_str());
  EXPECT_EQ(ReadTrimmed(path).size(), kFlightRecordBytes - 1);
  EXPECT_EQ(std::filesystem::file_size(path), kFlightRecordBytes);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace latentmesh
