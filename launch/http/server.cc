#include "launch/http/server.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <cstdint>
#include <list>
#include <thread>
#include <vector>

namespace latentmesh {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr int kIoNice = -10;
constexpr uint64_t kIoSliceNanoseconds = 100000;      // the shortest that Linux grants
constexpr int kBacklog = 1024;
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);      // after running out of descriptors
constexpr int kSweepEvery = 1024;  // connections accepted between two sweeps of the list

// Connections need descriptors; the soft limit is often 1024.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// Finished tokens must not wait behind the threads that compute the next ones, and the I/O thread needs little time: it
// asks for a higher priority, which may be refused, and for short turns, which every user may have: since Linux 6.12 a
// thread with shorter turns is let in before the running one has used up its own. Elsewhere nothing changes.
void PreferThisThread() {
  setpriority(PRIO_PROCESS, 0, kIoNice);     // on Linux of this thread alone
  struct {                                   // sched_attr of sched_setattr(2), which glibc does not declare
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes{};
  static_assert(sizeof(attributes) == 48, "the kernel's first version of sched_attr");
  attributes.size = sizeof(attributes);
  attributes.policy = SCHED_OTHER;
  attributes.nice = getpriority(PRIO_PROCESS, 0);
  attributes.runtime = kIoSliceNanoseconds;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

struct RepeatingTask {
  RepeatingTask(asio::io_context& io, double seconds, std::function<void()> work)
      : timer(io), period(static_cast<int64_t>(seconds * 1e3)), work(std::move(work)) {}
  void Arm() {
    timer.expires_after(period);
    timer.async_wait([this](error_code error) {
      if (error) return;
      work();
      Arm();
    });
  }
  asio::steady_timer timer;
  std::chrono::milliseconds period;
  std::function<void()> work;
};

}  // namespace

struct HttpServer::Impl {
  explicit Impl(const HttpServerOptions& options)
      : acceptor(io), retry(io), workers(static_cast<size_t>(options.workers)), work(asio::make_work_guard(io)) {
    shared->limits = options.limits;
  }
  Status Open(const HttpServerOptions& options);
  void Accept();
  void OnAccept(error_code error, tcp::socket socket);
  void Shutdown();

  asio::io_context io{1};
  tcp::acceptor acceptor;
  asio::steady_timer retry;
  asio::thread_pool workers;
  asio::executor_work_guard<asio::io_context::executor_type> work;
  std::shared_ptr<ConnectionShared> shared = std::make_shared<ConnectionShared>();
  std::vector<std::weak_ptr<ConnectionHandle>> handles;
  std::list<RepeatingTask> tasks;
  std::thread thread;
  int port = 0;
  int accepted_since_sweep = 0;
  bool stopped = false;
};

Status HttpServer::Impl::Open(const HttpServerOptions& options) {
  std::string where = fmt::format("{}:{}", options.host, options.port);
  error_code error;
  tcp::resolver resolver(io);
  auto found = resolver.resolve(options.host, std::to_string(options.port),
                                tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) return InvalidArgument(fmt::format("--host {}: {}", options.host, error.message()));
  tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (error)
    return IoError(fmt::format("cannot listen on {}: {} (choose another --host or --port)", where, error.message()));
  port = acceptor.local_endpoint(error).port();
  return Status::Ok();
}

void HttpServer::Impl::Accept() {
  acceptor.async_accept([this](error_code error, tcp::socket socket) { OnAccept(error, std::move(socket)); });
}

void HttpServer::Impl::OnAccept(error_code error, tcp::socket socket) {
  if (error == asio::error::operation_aborted) return;
  if (error) {                             // out of descriptors, or the client has left already
    retry.expires_after(kAcceptRetry);
    return retry.async_wait([this](error_code cancelled) {
      if (!cancelled) Accept();
    });
  }
  ++shared->accepted;
  if (shared->open >= shared->limits.max_connections) {
    ++shared->refused;
    HttpResponse response = shared->error_response(503, "too many connections");
    response.headers.push_back({"Retry-After", "1"});
    std::string text = ResponseHead(response, static_cast<int64_t>(response.body.size()), false) + response.body;
    error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(text), ignored);
    return Accept();
  }
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);      // a token must not wait for an acknowledgement
  handles.push_back(StartConnection(io, socket.release(ignored), shared));
  if (++accepted_since_sweep >= kSweepEvery) {
    accepted_since_sweep = 0;
    std::erase_if(handles, [](const std::weak_ptr<ConnectionHandle>& handle) { return handle.expired(); });
  }
  Accept();
}

void HttpServer::Impl::Shutdown() {
  error_code ignored;
  acceptor.close(ignored);
  retry.cancel();
  for (RepeatingTask& task : tasks) task.timer.cancel();
  for (auto& weak : handles)
    if (auto handle = weak.lock()) handle->Close();
  work.reset();
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() { Stop(); }

Result<std::unique_ptr<HttpServer>> HttpServer::Bind(const HttpServerOptions& options) {
  RaiseDescriptorLimit();
  auto impl = std::make_unique<Impl>(options);
  LM_RETURN_IF_ERROR(impl->Open(options));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port; }
const ConnectionShared& HttpServer::connections() const { return *impl_->shared; }

Status HttpServer::Start(HttpHandler handler,
                         std::function<HttpResponse(int status, const std::string& message)> error_response) {
  impl_->shared->handler = std::move(handler);
  impl_->shared->error_response = std::move(error_response);
  error_code error;
  impl_->acceptor.listen(kBacklog, error);
  if (error) return IoError(fmt::format("cannot listen on port {}: {}", impl_->port, error.message()));
  impl_->Accept();
  impl_->thread = std::thread([this] {
    PreferThisThread();
    impl_->io.run();
  });
  return Status::Ok();
}

void HttpServer::Post(std::function<void()> work) { asio::post(impl_->io, std::move(work)); }
void HttpServer::PostToWorker(std::function<void()> work) { asio::post(impl_->workers, std::move(work)); }

void HttpServer::Every(double seconds, std::function<void()> work) {
  Post([this, seconds, work = std::move(work)]() mutable {
    impl_->tasks.emplace_back(impl_->io, seconds, std::move(work)).Arm();
  });
}

void HttpServer::CloseAfterAnswers() { impl_->shared->closing = true; }

void HttpServer::Stop() {
  if (std::exchange(impl_->stopped, true)) return;
  impl_->workers.join();                   // their last posts still reach the I/O thread
  Post([this] { impl_->Shutdown(); });
  if (impl_->thread.joinable()) impl_->thread.join();
  else impl_->Shutdown();
}

}  // namespace latentmesh
