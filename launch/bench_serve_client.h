// The load of `bench serve`: one thread, many connections, each for one request. TTFT includes connecting.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/bench_serve_report.h"

namespace latentmesh {

struct ServeTarget {
  std::string address;           // numeric
  uint16_t port = 80;
  std::string host;              // of the Host header
  std::string path;              // before the endpoint's: "", "/prefix"
  std::string api_key;           // sent as bearer when not empty
};
// "http://127.0.0.1:8000", "http://localhost:8000/prefix", "http://[::1]"; other names and schemes are
// kInvalidArgument.
Result<ServeTarget> ParseBaseUrl(const std::string& url);

struct HttpAnswer {
  int status = 0;
  std::string body;
};
// kCommunication (refused, not HTTP) or kDeadlineExceeded name the address.
Result<HttpAnswer> HttpGet(const ServeTarget& target, const std::string& path, double timeout_seconds);

struct ServeLoad {
  std::string endpoint;                                   // "/v1/completions"
  std::vector<std::string> bodies;                        // a request each
  std::vector<double> arrivals;                           // seconds, rising; when to send each, if a place is free
  int64_t max_concurrency = 0;                            // 0: no limit
  double request_timeout = 600;                           // seconds, of one request
  std::function<void(int64_t done, int64_t running)> on_progress;      // every 0.2 s, and at the end
};
struct ServeLoadResult {
  std::vector<ServedRequest> requests;
  double duration = 0;                                    // to the end of the last answer
};
// kCancelled after a signal (launch/signals.h). Failed requests are results.
Result<ServeLoadResult> RunServeLoad(const ServeTarget& target, const ServeLoad& load);

// When requests arrive at `rate` a second: gaps of a gamma distribution of shape `burstiness` (1: a Poisson process,
// larger: more even). The first comes at once; rate infinity: all do.
std::vector<double> ArrivalTimes(int64_t count, double rate, double burstiness, uint64_t seed);

}  // namespace latentmesh
