#include "parallel/trace.h"

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

TEST(Trace, SpansAreRecordedOnlyWhileABufferIsAttached) {
  TraceBuffer buffer(3);
  { TraceSpan span("before"); }
  {
    TraceScope scope(&buffer);
    TraceSpan outer("outer", 7);
    { TraceSpan inner("inner"); }
    { TraceSpan inner("inner", 1); }
  }
  { TraceSpan span("after"); }
  ASSERT_EQ(buffer.events().size(), 3u);
  EXPECT_STREQ(buffer.events()[0].name, "inner");
  const TraceEvent& outer = buffer.events()[2];
  EXPECT_EQ(outer.detail, 7);
  EXPECT_LE(outer.begin_ns, buffer.events()[0].begin_ns);
  EXPECT_GE(outer.begin_ns + outer.duration_ns, buffer.events()[1].begin_ns + buffer.events()[1].duration_ns);
  TraceScope scope(&buffer);
  { TraceSpan span("too much"); }
  EXPECT_EQ(buffer.events().size(), 3u);
  EXPECT_EQ(buffer.dropped(), 1);
}

TEST(Trace, EncodingKeepsEverythingAndDamageIsFound) {
  TraceBuffer buffer(2);
  for (int i = 0; i < 3; ++i) buffer.Add({i == 0 ? "a" : "bc", i, 100 * i, 5, i == 1});
  std::string bytes = EncodeTrace(buffer);
  auto back = DecodeTrace(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->names, (std::vector<std::string>{"a", "bc"}));
  ASSERT_EQ(back->spans.size(), 2u);
  EXPECT_EQ(back->spans[1].name, 1);
  EXPECT_EQ(back->spans[1].begin_ns, 100);
  EXPECT_FALSE(back->spans[0].flight);
  EXPECT_TRUE(back->spans[1].flight);
  EXPECT_EQ(back->dropped, 1);
  for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(DecodeTrace(bytes.substr(0, size)).ok()) << size;
  EXPECT_FALSE(DecodeTrace(bytes + "x").ok());
}

TEST(Trace, FlightsOverlapTheThreadsSpans) {
  TraceBuffer buffer;
  TraceFlight first, second;
  second.Begin();                          // before recording: not shown
  {
    TraceScope scope(&buffer);
    first.Begin();
    { TraceSpan span("compute"); }
    first.End("rows");
    first.End("rows");
    second.End("rows");
  }
  ASSERT_EQ(buffer.events().size(), 2u);
  EXPECT_TRUE(buffer.events()[1].flight);
  EXPECT_LE(buffer.events()[1].begin_ns, buffer.events()[0].begin_ns);
  std::string text = FormatChromeTrace({RankTrace{"rank 0", {"rows"}, {{0, -1, 5000, 2000, true}, {0, -1, 6000, 3000, true}}, 0, 0}});
  EXPECT_NE(text.find("\"ph\":\"b\",\"cat\":\"messages\",\"id\":\"0.0\",\"pid\":0,\"tid\":0,\"ts\":0.000,\"name\":\"rows\"}"),
            std::string::npos) << text;
  EXPECT_NE(text.find("\"ph\":\"e\",\"cat\":\"messages\",\"id\":\"0.1\",\"pid\":0,\"tid\":0,\"ts\":4.000,\"name\":\"rows\"}"),
            std::string::npos) << text;
}

TEST(Trace, ChromeFormatAlignsClocksAndEscapes) {
  RankTrace zero{"rank \"0\"\n", {"step"}, {{0, -1, 5000, 2000}}, 0, 0};
  RankTrace one{"rank 1", {"step"}, {{0, 4, 1006000, 1000}}, 9, 1000000};
  std::string text = FormatChromeTrace({zero, one});
  EXPECT_NE(text.find("\"rank \\\"0\\\"\\u000a\""), std::string::npos) << text;
  EXPECT_NE(text.find("\"pid\":0,\"tid\":0,\"ts\":0.000,\"dur\":2.000,\"name\":\"step\"}"), std::string::npos) << text;
  EXPECT_NE(text.find("\"pid\":1,\"tid\":0,\"ts\":1.000,\"dur\":1.000,\"name\":\"step\",\"args\":{\"n\":4}}"), std::string::npos);
  EXPECT_NE(text.find("9 later spans were dropped"), std::string::npos);
}

}  // namespace
}  // namespace latentmesh
