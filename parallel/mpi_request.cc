#include "parallel/mpi_request.h"

#include <algorithm>

#include "parallel/backoff.h"

namespace latentmesh {
namespace {

// Of started calls, which overlap in both directions. Over TCP a larger message waits for the receiver's word (Open MPI's
// limit is 64 KiB), and that word waits behind all that is on its way already in that direction.
constexpr size_t kStartedPiece = 60 * 1024;

std::string MpiErrorText(int rc) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(rc, text, &length) != MPI_SUCCESS) return "MPI error " + std::to_string(rc);
  return std::string(text, length);
}

}  // namespace

void CheckMpi(int rc, const CallSite& site, const char* call) {
  if (rc != MPI_SUCCESS) throw site.Fail(StatusCode::kCommunication, call, MpiErrorText(rc));
}

MpiGroup::MpiGroup(MPI_Comm comm, std::vector<std::string> peers, bool owned)
    : comm_(comm), peers_(std::move(peers)), owned_(owned) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
}

MpiGroup::~MpiGroup() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // Not after a failure: MPI_Comm_free is collective and would wait for ranks that are gone.
  if (owned_ && !finalized && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

void MpiExchange::Track(MPI_Request request, int peer, int expected_bytes) {
  requests_.push_back(request);
  peers_.push_back(peer);
  expected_.push_back(expected_bytes);
  ++open_;
}

void MpiExchange::Send(const void* data, size_t bytes, int peer, int tag, const CallSite& site, const char* call) {
  for (size_t sent = 0; sent < bytes; sent += piece_) {
    int count = static_cast<int>(std::min(piece_, bytes - sent));
    MPI_Request request;
    CheckMpi(MPI_Isend(static_cast<const char*>(data) + sent, count, MPI_BYTE, peer, tag, group_->comm(), &request),
             site, call);
    Track(request, peer, -1);
  }
}

void MpiExchange::Recv(void* data, size_t bytes, int peer, int tag, const CallSite& site, const char* call) {
  for (size_t received = 0; received < bytes; received += piece_) {
    int count = static_cast<int>(std::min(piece_, bytes - received));
    MPI_Request request;
    CheckMpi(MPI_Irecv(static_cast<char*>(data) + received, count, MPI_BYTE, peer, tag, group_->comm(), &request),
             site, call);
    Track(request, peer, count);
  }
}

void MpiExchange::SendSignal(int peer, int tag, const CallSite& site, const char* call) {
  MPI_Request request;
  CheckMpi(MPI_Isend(nullptr, 0, MPI_BYTE, peer, tag, group_->comm(), &request), site, call);
  Track(request, peer, -1);
}

void MpiExchange::RecvSignal(int peer, int tag, const CallSite& site, const char* call) {
  MPI_Request request;
  CheckMpi(MPI_Irecv(nullptr, 0, MPI_BYTE, peer, tag, group_->comm(), &request), site, call);
  Track(request, peer, 0);
}

void MpiExchange::CheckReceived(int index, const MPI_Status& status, const CallSite& site, const char* call) {
  if (expected_[index] < 0) return;
  int count = 0;
  MPI_Get_count(&status, MPI_BYTE, &count);
  if (count == expected_[index]) return;
  throw site.Fail(StatusCode::kCommunication, call,
                  "expected " + std::to_string(expected_[index]) + " bytes from " + group_->peer(peers_[index]) +
                      ", which sent " + std::to_string(count));
}

bool MpiExchange::Poll(const CallSite& site, const char* call) {
  if (open_ == 0) return true;
  int n = static_cast<int>(requests_.size()), finished = 0;
  completed_.resize(n);
  statuses_.resize(n);
  int rc = MPI_Testsome(n, requests_.data(), &finished, completed_.data(), statuses_.data());
  for (int i = 0; rc == MPI_ERR_IN_STATUS && i < finished; ++i)
    if (statuses_[i].MPI_ERROR != MPI_SUCCESS && statuses_[i].MPI_ERROR != MPI_ERR_PENDING)
      throw site.Fail(StatusCode::kCommunication, call,
                      MpiErrorText(statuses_[i].MPI_ERROR) + " (with " + group_->peer(peers_[completed_[i]]) + ")");
  CheckMpi(rc, site, call);
  if (finished == MPI_UNDEFINED) finished = static_cast<int>(open_);
  else for (int i = 0; i < finished; ++i) CheckReceived(completed_[i], statuses_[i], site, call);
  open_ -= finished;
  if (open_ > 0) return false;
  requests_.clear(), peers_.clear(), expected_.clear();
  return true;
}

void MpiExchange::Finish(const CallSite& site, const char* call) {
  Backoff backoff(site.timeout);
  try {
    for (size_t open = open_; !Poll(site, call);) {
      if (open_ < open) backoff.Restart(), open = open_;
      if (!backoff.Pause()) throw site.TimedOut(call, site.timeout, Unfinished());
    }
  } catch (...) {
    Abandon();
    throw;
  }
}

std::string MpiExchange::Unfinished() const {
  std::vector<int> peers;
  for (size_t i = 0; i < requests_.size(); ++i)
    if (requests_[i] != MPI_REQUEST_NULL) peers.push_back(peers_[i]);
  std::sort(peers.begin(), peers.end());
  peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
  std::string text;
  for (int peer : peers) text += (text.empty() ? "" : ", ") + group_->peer(peer);
  return text;
}

void MpiExchange::Abandon() {
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (expected_[i] >= 0) MPI_Cancel(&requests_[i]);
    MPI_Request_free(&requests_[i]);
  }
  requests_.clear(), peers_.clear(), expected_.clear();
  open_ = 0;
}

MpiExchange& MpiStarted::Open(uint64_t id) {
  auto entry = std::find_if(entries_.begin(), entries_.end(), [](const Entry& e) { return e.id == 0; });
  if (entry == entries_.end()) entry = entries_.insert(entry, {0, std::make_unique<MpiExchange>(group_, kStartedPiece)});
  entry->id = id;
  return *entry->exchange;
}

void MpiStarted::Poll(const CallSite& site) {
  for (Entry& entry : entries_)
    if (entry.id != 0) entry.exchange->Poll(site, "Poll of started calls");
}

// MPI makes progress with all requests while one is waited for.
void MpiStarted::Finish(uint64_t id, const CallSite& site, const char* call) {
  auto entry = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.id == id; });
  const std::string name = std::string("Finish of a started ") + call;
  try {
    entry->exchange->Finish(site, name.c_str());
  } catch (...) {
    AbandonAll();
    throw;
  }
  entry->id = 0;
}

void MpiStarted::AbandonAll() {
  for (Entry& entry : entries_) {
    entry.exchange->Abandon();
    entry.id = 0;
  }
}

}  // namespace latentmesh
