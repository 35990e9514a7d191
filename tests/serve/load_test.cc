// 1,000 streams at once for some seconds: none is lost or cut.
#include "tests/serve/load_client.h"

#include "tests/serve/serve_fixture.h"

namespace latentmesh {
namespace {

TEST_F(ServeTest, ThousandStreams) {
  engine_->step_micros = 50000;
  Start();
  StreamLoadOptions options{.port = port(), .streams = 1000, .seconds = 5, .max_tokens = 20};
  StreamLoadResult result = RunLoad(options);
  EXPECT_EQ(result.failed, 0) << result.first_failure;
  EXPECT_GE(result.completed, 1000);
  EXPECT_EQ(result.tokens, result.completed * options.max_tokens);
  EXPECT_TRUE(Eventually([&] { return engine_->live() == 0 && server_->connections().open == 0; }));
}

}  // namespace
}  // namespace latentmesh
