#include "scheduler/etcd_client.h"

#include <curl/curl.h>
#include <google/protobuf/util/json_util.h>

#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace parley {
namespace {

using google::protobuf::Struct;
using google::protobuf::Value;

// Far more than the answer to any question here; etcd holds no larger values.
constexpr size_t kMaxAnswer = size_t{16} << 20;

std::string Base64(absl::string_view bytes) {
  return absl::StrCat("\"", absl::Base64Escape(bytes), "\"");
}

size_t TakeAnswer(char* data, size_t size, size_t count, void* answer) {
  auto* text = static_cast<std::string*>(answer);
  if (text->size() + size * count > kMaxAnswer) return 0;
  text->append(data, size * count);
  return size * count;
}

// Null if there is none.
const Value* Find(const Struct& object, const std::string& name) {
  const auto it = object.fields().find(name);
  return it == object.fields().end() ? nullptr : &it->second;
}

// Numbers of 64 bits are texts in etcd's JSON; what is 0 is absent.
int64_t NumberOf(const Struct& object, const std::string& name) {
  const Value* value = Find(object, name);
  int64_t number = 0;
  if (value == nullptr || !absl::SimpleAtoi(value->string_value(), &number)) return 0;
  return number;
}

absl::Status Refusal(const std::string& path, long http_code, const std::string& text) {
  Struct object;
  std::string message = text.substr(0, 300);
  auto code = http_code >= 500 ? absl::StatusCode::kUnavailable : absl::StatusCode::kInternal;
  if (google::protobuf::util::JsonStringToMessage(text, &object).ok()) {
    if (const Value* value = Find(object, "message")) message = value->string_value();
    // gRPC's codes are absl's: 1 to 16, of which no refusal may be none.
    const Value* value = Find(object, "code");
    if (value != nullptr && value->number_value() >= 1 && value->number_value() < 17) {
      code = static_cast<absl::StatusCode>(static_cast<int>(value->number_value()));
    }
  }
  return absl::Status(code, absl::StrFormat("etcd refuses %s: %s (HTTP %d)", path, message,
                                            static_cast<int>(http_code)));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> EtcdClient::ParseAddresses(const std::string& url) {
  const auto bad = [&url] {
    return absl::InvalidArgumentError(
        absl::StrCat("'", url,
                     "' names no etcd; allowed: etcd://HOST:PORT, or several HOST:PORT with commas "
                     "between them"));
  };
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "etcd://")) return bad();
  std::vector<std::string> addresses;
  for (absl::string_view address : absl::StrSplit(rest, ',')) {
    const size_t colon = address.rfind(':');
    uint32_t port = 0;
    if (colon == absl::string_view::npos || colon == 0 ||
        address.find_first_of("/?# \t@") != absl::string_view::npos ||
        !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0 || port > 65535) {
      return bad();
    }
    addresses.emplace_back(address);
  }
  return addresses;
}

EtcdClient::EtcdClient(std::vector<std::string> addresses, absl::Duration timeout)
    : addresses_(std::move(addresses)), timeout_(timeout) {
  curl_global_init(CURL_GLOBAL_DEFAULT);
}

absl::StatusOr<std::string> EtcdClient::PostTo(const std::string& address, const std::string& path,
                                               const std::string& body, long* http_code) {
  std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  std::unique_ptr<curl_slist, void (*)(curl_slist*)> headers(
      curl_slist_append(nullptr, "Content-Type: application/json"), curl_slist_free_all);
  if (!curl || !headers) return absl::ResourceExhaustedError("no memory for a request to etcd");
  const std::string url = absl::StrCat("http://", address, path);
  std::string answer;
  char reason[CURL_ERROR_SIZE] = "";
  const long timeout_ms = static_cast<long>(absl::ToInt64Milliseconds(timeout_));
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDS, body.data());
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, timeout_ms);
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);  // several threads
  curl_easy_setopt(curl.get(), CURLOPT_PROXY, "");     // whatever the environment says
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http");
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, TakeAnswer);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &answer);
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, reason);
  const CURLcode code = curl_easy_perform(curl.get());
  if (code != CURLE_OK) {
    return absl::UnavailableError(reason[0] != '\0' ? reason : curl_easy_strerror(code));
  }
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, http_code);
  return answer;
}

absl::StatusOr<EtcdClient::Json> EtcdClient::Post(const std::string& path,
                                                  const std::string& body) {
  std::string why;
  for (const std::string& address : addresses_) {
    long http_code = 0;
    absl::StatusOr<std::string> answer = PostTo(address, path, body, &http_code);
    absl::Status status = answer.status();
    if (answer.ok() && http_code != 200) status = Refusal(path, http_code, *answer);
    if (status.ok()) {
      Json json;
      if (google::protobuf::util::JsonStringToMessage(*answer, &json).ok()) return json;
      status = absl::UnavailableError("its answer is no JSON");
    }
    // Another member may be better off; a refusal is the cluster's.
    if (!absl::IsUnavailable(status)) return status;
    why = std::string(status.message());
  }
  return absl::UnavailableError(
      absl::StrCat("etcd at ", absl::StrJoin(addresses_, ", "), " does not answer: ", why));
}

absl::StatusOr<std::optional<std::string>> EtcdClient::Get(const std::string& key) {
  absl::StatusOr<Json> answer = Post("/v3/kv/range", absl::StrCat("{\"key\":", Base64(key), "}"));
  if (!answer.ok()) return answer.status();
  const Value* kvs = Find(*answer, "kvs");
  if (kvs == nullptr || kvs->list_value().values_size() == 0) return std::nullopt;
  const Value* value = Find(kvs->list_value().values(0).struct_value(), "value");
  std::string bytes;
  if (value != nullptr && !absl::Base64Unescape(value->string_value(), &bytes)) {
    return absl::InternalError(absl::StrCat("etcd's value of ", key, " is no base64"));
  }
  return bytes;
}

absl::StatusOr<int64_t> EtcdClient::Grant(absl::Duration ttl) {
  absl::StatusOr<Json> answer =
      Post("/v3/lease/grant", absl::StrCat("{\"TTL\":\"", absl::ToInt64Seconds(ttl), "\"}"));
  if (!answer.ok()) return answer.status();
  const int64_t lease = NumberOf(*answer, "ID");
  if (lease == 0) return absl::InternalError("etcd grants a lease without a number");
  return lease;
}

absl::Status EtcdClient::KeepAlive(int64_t lease) {
  absl::StatusOr<Json> answer =
      Post("/v3/lease/keepalive", absl::StrCat("{\"ID\":\"", lease, "\"}"));
  if (!answer.ok()) return answer.status();
  const Value* result = Find(*answer, "result");
  if (result != nullptr && NumberOf(result->struct_value(), "TTL") > 0) return absl::OkStatus();
  return absl::NotFoundError("the lease in etcd has run out");
}

absl::Status EtcdClient::Revoke(int64_t lease) {
  return Post("/v3/lease/revoke", absl::StrCat("{\"ID\":\"", lease, "\"}")).status();
}

absl::StatusOr<bool> EtcdClient::Transact(const std::string& compare, const std::string& success) {
  absl::StatusOr<Json> answer =
      Post("/v3/kv/txn", absl::StrCat("{\"compare\":[", compare, "],\"success\":[", success, "]}"));
  if (!answer.ok()) return answer.status();
  const Value* succeeded = Find(*answer, "succeeded");
  return succeeded != nullptr && succeeded->bool_value();
}

absl::StatusOr<bool> EtcdClient::Claim(const std::string& key, const std::string& value,
                                       int64_t lease) {
  return Transact(
      absl::StrCat("{\"key\":", Base64(key),
                   ",\"target\":\"CREATE\",\"result\":\"EQUAL\",\"create_revision\":\"0\"}"),
      absl::StrCat("{\"request_put\":{\"key\":", Base64(key), ",\"value\":", Base64(value),
                   ",\"lease\":\"", lease, "\"}}"));
}

absl::StatusOr<bool> EtcdClient::PutWhile(const std::string& claimed, int64_t lease,
                                          const std::string& key,
                                          const std::optional<std::string>& value) {
  const std::string change =
      value ? absl::StrCat("{\"request_put\":{\"key\":", Base64(key), ",\"value\":", Base64(*value),
                           "}}")
            : absl::StrCat("{\"request_delete_range\":{\"key\":", Base64(key), "}}");
  return Transact(
      absl::StrCat("{\"key\":", Base64(claimed),
                   ",\"target\":\"LEASE\",\"result\":\"EQUAL\",\"lease\":\"", lease, "\"}"),
      change);
}

}  // namespace parley
