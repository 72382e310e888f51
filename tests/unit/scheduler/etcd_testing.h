// An etcd of this machine for tests, and what stands between it and its clients.
#ifndef PARLEY_TESTS_UNIT_SCHEDULER_ETCD_TESTING_H_
#define PARLEY_TESTS_UNIT_SCHEDULER_ETCD_TESTING_H_

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "scheduler/etcd_client.h"
#include "scheduler/etcd_store.h"

namespace parley {

// Ports that nobody has; somebody may take them at once, so the server is tried again.
inline std::vector<int> FreePorts(int count) {
  std::vector<int> ports, sockets;
  for (int i = 0; i < count; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
      ports.push_back(ntohs(address.sin_port));
    }
    sockets.push_back(fd);
  }
  for (int fd : sockets) close(fd);
  return ports;
}

// etcd of this machine, for all tests of the program. None: they are skipped, and say so.
class Etcd : public testing::Environment {
 public:
  void SetUp() override {
    for (const char* program : {"/usr/bin/etcd", "/usr/local/bin/etcd"}) {
      if (access(program, X_OK) == 0) program_ = program;
    }
    if (program_.empty()) return;
    dir_ = absl::StrCat(testing::TempDir(), "/parley_etcd_", getpid());
    for (int i = 0; i < 3 && address_.empty(); ++i) Start();
    ASSERT_FALSE(address_.empty()) << "etcd does not answer; its log is " << dir_ << "/log";
  }
  void TearDown() override {
    Stop();
    if (!address_.empty()) std::filesystem::remove_all(dir_);
  }
  bool installed() const { return !program_.empty(); }
  const std::string& address() const { return address_; }
  // Returns when it stands still: a signal takes effect some time after it was sent.
  void Pause() {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);
  }
  void GoOn() { kill(pid_, SIGCONT); }

 private:
  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  void Start() {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    const std::vector<int> ports = FreePorts(2);
    const std::string client = absl::StrCat("http://127.0.0.1:", ports.at(0)),
                      peer = absl::StrCat("http://127.0.0.1:", ports.at(1)),
                      cluster = absl::StrCat("default=", peer), log = dir_ + "/log";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      dup2(fd, STDOUT_FILENO);
      dup2(fd, STDERR_FILENO);
      execl(program_.c_str(), "etcd", "--data-dir", dir_.c_str(), "--listen-client-urls",
            client.c_str(), "--advertise-client-urls", client.c_str(), "--listen-peer-urls",
            peer.c_str(), "--initial-advertise-peer-urls", peer.c_str(), "--initial-cluster",
            cluster.c_str(), "--unsafe-no-fsync", static_cast<char*>(nullptr));
      _exit(127);
    }
    const std::string address = absl::StrCat("127.0.0.1:", ports[0]);
    EtcdClient probe({address}, absl::Seconds(2));
    for (int i = 0; i < 200; ++i) {
      if (probe.Get("anything").ok()) {
        address_ = address;
        return;
      }
      if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
        pid_ = 0;
        return;
      }
      poll(nullptr, 0, 50);
    }
    Stop();
  }

  std::string program_, dir_, address_;
  pid_t pid_ = 0;
};

inline Etcd* const etcd = static_cast<Etcd*>(testing::AddGlobalTestEnvironment(new Etcd));

class EtcdStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!etcd->installed()) GTEST_SKIP() << "etcd is not installed (Debian: etcd-server)";
  }
  // Each test has a job of its own.
  EtcdStore::Options Options(const std::string& self) {
    return {.addresses = {etcd->address()},
            .job = testing::UnitTest::GetInstance()->current_test_info()->name(),
            .self = self,
            .ttl = absl::Seconds(2)};
  }
  EtcdClient client() { return EtcdClient({etcd->address()}, absl::Seconds(5)); }
  std::string Key(const std::string& name) {
    return absl::StrCat("/parley/", testing::UnitTest::GetInstance()->current_test_info()->name(),
                        "/", name);
  }
};

// A socket of loopback.
class Socket {
 public:
  explicit Socket(int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) : fd_(fd) {}
  ~Socket() { close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

  // At any free port, which it returns.
  int Listen(int backlog) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    if (bind(fd_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd_, backlog) != 0 ||
        getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      ADD_FAILURE() << "no port to listen on";
    }
    return ntohs(address.sin_port);
  }
  bool Connect(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  void Write(const std::string& text) const {
    for (size_t done = 0; done < text.size();) {
      const ssize_t n = send(fd_, text.data() + done, text.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return;
      done += static_cast<size_t>(n);
    }
  }
  // False at the end.
  bool ReadMore(std::string* text) const {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) return false;
    text->append(buffer, static_cast<size_t>(n));
    return true;
  }

 private:
  const int fd_;
};

// Takes connections and says nothing, or, as a host that is gone, does not take them either.
class SilentHost {
 public:
  explicit SilentHost(bool gone) : port_(listener_.Listen(gone ? 0 : 100)) {
    if (!gone) return;
    // More than its queue holds: the kernel drops what comes then.
    for (Socket& socket : fillers_) {
      fcntl(socket.fd(), F_SETFL, O_NONBLOCK);
      socket.Connect(port_);
    }
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  Socket listener_;
  const int port_;
  Socket fillers_[4];
};

// Stands before an etcd: each request is shown to `hook`, on a thread of its own, which may hold
// it, and answers it or lets it through.
class EtcdProxy {
 public:
  struct Reply {
    int http_code;
    std::string body;
  };
  using Hook =
      std::function<std::optional<Reply>(const std::string& path, const std::string& body)>;

  // `etcd`: host:port on this machine; none: `hook` answers everything.
  EtcdProxy(const std::string& etcd, Hook hook)
      : hook_(std::move(hook)), port_(listener_.Listen(100)) {
    const std::vector<std::string> parts = absl::StrSplit(etcd, ':');
    if (!etcd.empty() && !absl::SimpleAtoi(parts.back(), &etcd_port_)) ADD_FAILURE() << etcd;
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~EtcdProxy() {
    shutdown(listener_.fd(), SHUT_RDWR);
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  void Accept() {
    while (true) {
      const int fd = accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      threads_.emplace_back([this, fd] { Serve(fd); });
    }
  }

  void Serve(int fd) {
    Socket client(fd);
    std::string request;
    size_t head = std::string::npos, size = 0;
    while (head == std::string::npos || request.size() < head + size) {
      if (!client.ReadMore(&request)) return;
      if (head != std::string::npos) continue;
      head = request.find("\r\n\r\n");
      if (head == std::string::npos) continue;
      head += 4;
      for (absl::string_view line : absl::StrSplit(request.substr(0, head), "\r\n")) {
        if (!absl::StartsWithIgnoreCase(line, "content-length:")) continue;
        line.remove_prefix(15);
        if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &size)) return;
      }
    }
    const std::vector<std::string> words =
        absl::StrSplit(request.substr(0, request.find('\r')), ' ');
    if (std::optional<Reply> reply = hook_(words.at(1), request.substr(head))) {
      client.Write(absl::StrCat("HTTP/1.1 ", reply->http_code, " X\r\nConnection: close\r\n",
                                "Content-Length: ", reply->body.size(), "\r\n\r\n", reply->body));
      return;
    }
    Socket etcd;
    if (!etcd.Connect(etcd_port_)) return;
    request.insert(request.find("\r\n") + 2, "Connection: close\r\n");
    etcd.Write(request);
    std::string answer;
    while (etcd.ReadMore(&answer)) {
    }
    client.Write(answer);
  }

  const Hook hook_;
  Socket listener_;
  const int port_;
  int etcd_port_ = 0;
  std::vector<std::thread> threads_;  // the acceptor's, until it has ended
  std::thread acceptor_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SCHEDULER_ETCD_TESTING_H_
