// A plain blocking HTTP client for tests: it also sends what no decent client would.
#pragma once

#include <string>
#include <string_view>

namespace latentmesh {

struct ClientResponse {
  int status = 0;                          // 0: the connection ended before an answer
  std::string head;
  std::string body;                        // chunks joined
  bool complete = false;
  std::string Header(const std::string& name) const;      // any case; "" when absent
};

class HttpClient {
 public:
  explicit HttpClient(int port, double timeout_seconds = 20, int receive_buffer = 0);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  bool Send(std::string_view bytes);
  std::string ReadUntil(std::string_view text);      // all read so far once it holds `text`, or at the end
  ClientResponse Read(bool head_only = false);
  bool AtEnd();                            // the server closes within the timeout, without sending more
  void Close();
  void CloseWithReset();                   // leaves no TIME_WAIT behind, so that ports do not run out

  ClientResponse Get(const std::string& path, const std::string& headers = "");
  ClientResponse Post(const std::string& path, const std::string& body, const std::string& headers = "");
  static std::string PostText(const std::string& path, const std::string& body, const std::string& headers = "");

 private:
  bool Fill();
  int fd_ = -1;
  std::string buffer_;
};

}  // namespace latentmesh
