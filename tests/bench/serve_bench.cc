// serve_bench: what the HTTP front end costs, without a model: tokens streamed per second and per CPU second. The
// client is a process of its own, so that the CPU time is the server's (front end and stub engine).
//   serve_bench [STREAMS [SECONDS [MAX_TOKENS [STEP_MICROSECONDS]]]]
//   serve_bench --port PORT [STREAMS [SECONDS [MAX_TOKENS]]]        loads a server that runs already
// Run it in the repository's folder.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "launch/http/front_end.h"
#include "launch/http/server.h"
#include "tests/serve/load_client.h"
#include "tests/serve/stub_engine.h"

namespace latentmesh {
namespace {

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(fraction * static_cast<double>(values.size())))];
}

int Report(const StreamLoadResult& result) {
  double seconds = result.seconds;
  fmt::print("{} streams completed, {} failed{}{}\n", result.completed, result.failed, result.failed ? ": " : "",
             result.first_failure);
  fmt::print("{:.0f} tokens/s, {:.0f} events/s over {:.1f} s; first event p50 {:.1f} ms, p99 {:.1f} ms\n",
             static_cast<double>(result.tokens) / seconds, static_cast<double>(result.events) / seconds, seconds,
             1e3 * Percentile(result.first_event, 0.5), 1e3 * Percentile(result.first_event, 0.99));
  std::fflush(stdout);
  return result.failed == 0 ? 0 : 1;
}

int Serve(const StreamLoadOptions& load, int step_micros) {
  int to_client[2];
  if (pipe(to_client) != 0) return 2;
  pid_t client = fork();
  if (client == 0) {
    StreamLoadOptions options = load;
    if (read(to_client[0], &options.port, sizeof(options.port)) != sizeof(options.port)) _exit(2);
    _exit(Report(RunLoad(options)));
  }
  HttpServerOptions http{.port = 0};
  auto server = HttpServer::Bind(http);
  if (!server.ok()) return 2;
  StubEngine engine(nullptr, 1000, 100000);
  engine.step_micros = step_micros;
  TextCodec codec = TextCodec::Open(nullptr);
  FrontEndOptions options;
  options.max_queue = 100000;
  FrontEnd front_end(engine, **server, {&codec, 1000, 100000, {}}, options);
  if (!front_end.Start().ok()) return 2;
  engine.Start();
  double before = CpuSeconds();
  int port = (*server)->port();
  if (write(to_client[1], &port, sizeof(port)) != sizeof(port)) return 2;
  int status = 0;
  waitpid(client, &status, 0);
  double cpu = CpuSeconds() - before;
  fmt::print("server: {:.2f} CPU seconds for {} tokens: {:.0f} tokens per CPU second\n", cpu, engine.tokens.load(),
             static_cast<double>(engine.tokens.load()) / cpu);
  (*server)->Stop();
  engine.Stop();
  return WEXITSTATUS(status);
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) {
  latentmesh::StreamLoadOptions load{.streams = 50};
  bool external = argc > 2 && std::strcmp(argv[1], "--port") == 0;
  if (external) load.port = std::atoi(argv[2]);
  int at = external ? 3 : 1;
  if (argc > at) load.streams = std::atoi(argv[at]);
  if (argc > at + 1) load.seconds = std::atof(argv[at + 1]);
  if (argc > at + 2) load.max_tokens = std::atoi(argv[at + 2]);
  if (external) return latentmesh::Report(latentmesh::RunLoad(load));
  return latentmesh::Serve(load, argc > at + 3 ? std::atoi(argv[at + 3]) : 1000);
}
