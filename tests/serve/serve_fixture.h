// A front end over the stub engine, on a free port.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "launch/http/front_end.h"
#include "launch/http/server.h"
#include "launch/text_codec.h"
#include "runtime/text/tokenizer.h"
#include "tests/serve/http_client.h"
#include "tests/serve/stub_engine.h"

namespace latentmesh {

class ServeTest : public testing::Test {
 protected:
  void SetUp() override {
    static std::shared_ptr<Tokenizer> tokenizer = [] {
      auto loaded = Tokenizer::Load("launch/demo");
      return loaded.ok() ? std::shared_ptr<Tokenizer>(std::move(loaded).value()) : nullptr;
    }();
    ASSERT_NE(tokenizer, nullptr) << "run it in the repository's folder";
    tokenizer_ = tokenizer.get();
    http_.port = 0;
    front_end_options_.served_model = "stub";
    codec_ = std::make_unique<TextCodec>(TextCodec::Open(tokenizer_));
    engine_ = std::make_unique<StubEngine>(tokenizer_, tokenizer_->vocab_size(), 4096);
  }
  // Options may be changed before.
  void Start() {
    auto server = HttpServer::Bind(http_);
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = std::move(server).value();
    ApiContext context{codec_.get(), tokenizer_->vocab_size(), 4096, {}};
    grammars_ = std::make_unique<TokenGrammars>(*tokenizer_);
    context.grammars = grammars_.get();
    front_end_ = std::make_unique<FrontEnd>(*engine_, *server_, context, front_end_options_);
    ASSERT_TRUE(front_end_->Start().ok());
    engine_->Start();
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop();
    engine_->Stop();
  }
  int port() const { return server_->port(); }
  // Waits until `condition` holds, at most 10 s.
  template <typename Condition>
  bool Eventually(Condition condition) {
    for (int i = 0; i < 2000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  const Tokenizer* tokenizer_ = nullptr;
  std::unique_ptr<TextCodec> codec_;
  std::unique_ptr<TokenGrammars> grammars_;
  std::unique_ptr<StubEngine> engine_;
  HttpServerOptions http_;
  FrontEndOptions front_end_options_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<FrontEnd> front_end_;
};

}  // namespace latentmesh
