// LoadClient: many streamed completions at once from one thread (epoll), each checked to its end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace latentmesh {

struct StreamLoadOptions {
  int port = 8000;
  int streams = 1000;                      // at once; a finished one is followed by the next
  double seconds = 10;                     // no new ones start after that
  int max_tokens = 64;
  double grace = 60;                       // for the last ones to end
};

struct StreamLoadResult {
  int64_t completed = 0;
  int64_t failed = 0;                      // refused, cut off, or with other than max_tokens tokens
  int64_t tokens = 0;                      // as the usage events say
  int64_t events = 0;
  double seconds = 0;
  std::vector<double> first_event;         // seconds from sending the request
  std::string first_failure;
};

StreamLoadResult RunLoad(const StreamLoadOptions& options);

}  // namespace latentmesh
