// Status, Result<T>, Error and checks: the three ways a latentmesh call can fail.
//
//   expected failure (config, checkpoint, request, layout, memory)  -> Status / Result<T>
//   programmer error                                                -> LM_CHECK, aborts
//   MPI, CUDA, NCCL failure or a passed deadline                    -> throws Error, caught once per rank
//
// Thread-safe: all types here are plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>

namespace latentmesh {

// The process exit code is ExitCode(code); the README documents both columns.
enum class StatusCode : int {
  kOk = 0,
  kInternal = 1,           // a bug in latentmesh
  kInvalidArgument = 2,    // bad flag, request field or layout
  kInvalidModel = 3,       // config, checkpoint or tokenizer is missing, damaged or unsupported
  kResourceExhausted = 4,  // the memory plan does not fit
  kMismatch = 5,           // `verify` or `preflight` found a result outside its bound
  kUnavailable = 6,        // needs hardware or a library that this build or machine lacks
  kIo = 7,                 // a file could not be read or written (results, disk full)
  kCommunication = 8,      // a peer died, a message was damaged, MPI/NCCL reported an error
  kDeadlineExceeded = 9,   // a wait passed its deadline: some rank is stuck
  kCancelled = 10,         // stopped by a signal after draining
};

const char* StatusCodeName(StatusCode code);
int ExitCode(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}
  static Status Ok() { return {}; }

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  // Says what is wrong, where (file, tensor, field, flag), and what to do.
  const std::string& message() const { return message_; }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string m) { return {StatusCode::kInvalidArgument, std::move(m)}; }
inline Status InvalidModel(std::string m) { return {StatusCode::kInvalidModel, std::move(m)}; }
inline Status ResourceExhausted(std::string m) { return {StatusCode::kResourceExhausted, std::move(m)}; }
inline Status Unavailable(std::string m) { return {StatusCode::kUnavailable, std::move(m)}; }
inline Status IoError(std::string m) { return {StatusCode::kIo, std::move(m)}; }

// Either a value or a non-ok Status.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}            // NOLINT: implicit by design
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {}     // NOLINT: implicit by design

  bool ok() const { return state_.index() == 0; }
  Status status() const { return ok() ? Status::Ok() : std::get<1>(state_); }
  T& value() & { return Require(), std::get<0>(state_); }
  const T& value() const& { return Require(), std::get<0>(state_); }
  T&& value() && { return Require(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  void Require() const;
  std::variant<T, Status> state_;
};

// Thrown for failures of MPI, CUDA and NCCL and for passed deadlines. `what()` names operation, place and rank.
class Error : public std::runtime_error {
 public:
  Error(StatusCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  StatusCode code() const { return code_; }

 private:
  StatusCode code_;
};

// Prints the message with its place and aborts the process. Never returns.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& message);

template <typename T>
void Result<T>::Require() const {
  if (!ok()) CheckFailed(__FILE__, __LINE__, "Result::ok()", std::get<1>(state_).message());
}

#define LM_CHECK(condition)                                                          \
  do {                                                                               \
    if (!(condition)) ::latentmesh::CheckFailed(__FILE__, __LINE__, #condition, ""); \
  } while (false)
#define LM_CHECK_MSG(condition, message)                                                    \
  do {                                                                                      \
    if (!(condition)) ::latentmesh::CheckFailed(__FILE__, __LINE__, #condition, (message)); \
  } while (false)

#define LM_CONCAT_INNER(a, b) a##b
#define LM_CONCAT(a, b) LM_CONCAT_INNER(a, b)
#define LM_RETURN_IF_ERROR(expression)                                        \
  do {                                                                        \
    if (::latentmesh::Status lm_status = (expression); !lm_status.ok()) return lm_status; \
  } while (false)
// LM_ASSIGN_OR_RETURN(auto x, F());
#define LM_ASSIGN_OR_RETURN(declaration, expression) \
  LM_ASSIGN_OR_RETURN_INNER(LM_CONCAT(lm_result_, __LINE__), declaration, expression)
#define LM_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                      \
  if (!result.ok()) return result.status();                        \
  declaration = std::move(result).value()

}  // namespace latentmesh
