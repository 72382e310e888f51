#include "scheduler/etcd_client.h"

#include <curl/curl.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
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

// The first thing that a range has found; null if there is none.
const Struct* FirstOf(const Struct& range) {
  const Value* kvs = Find(range, "kvs");
  if (kvs == nullptr || kvs->list_value().values_size() == 0) return nullptr;
  return &kvs->list_value().values(0).struct_value();
}

absl::StatusOr<std::string> ValueOf(const Struct& kv) {
  const Value* value = Find(kv, "value");
  std::string bytes;
  if (value != nullptr && !absl::Base64Unescape(value->string_value(), &bytes)) {
    return absl::InternalError("a value in etcd is no base64");
  }
  return bytes;
}

bool Succeeded(const Struct& transaction) {
  const Value* succeeded = Find(transaction, "succeeded");
  return succeeded != nullptr && succeeded->bool_value();
}

// What the transaction's `index`th question has found; null if that is nothing.
const Struct* FirstOfResponse(const Struct& answer, int index) {
  const Value* responses = Find(answer, "responses");
  if (responses == nullptr || responses->list_value().values_size() <= index) return nullptr;
  const Value* range = Find(responses->list_value().values(index).struct_value(), "response_range");
  return range == nullptr ? nullptr : FirstOf(range->struct_value());
}

std::string RangeOf(const std::string& key) {
  return absl::StrCat("{\"request_range\":{\"key\":", Base64(key), "}}");
}

std::string DeleteOf(const std::string& key) {
  return absl::StrCat("{\"request_delete_range\":{\"key\":", Base64(key), "}}");
}

std::string IsBoundTo(const std::string& key, int64_t lease) {
  return absl::StrCat("{\"key\":", Base64(key),
                      ",\"target\":\"LEASE\",\"result\":\"EQUAL\",\"lease\":\"", lease, "\"}");
}

absl::Status Refusal(const std::string& path, long http_code, const std::string& text) {
  Struct object;
  std::string message = text.substr(0, 300);
  auto code = http_code >= 500 ? absl::StatusCode::kUnavailable : absl::StatusCode::kInternal;
  if (google::protobuf::util::JsonStringToMessage(text, &object).ok()) {
    // Of a stream, as keeping alive is one, it is one deeper, and its code has another name.
    const Value* error = Find(object, "error");
    const bool deeper = error != nullptr && error->has_struct_value();
    const Struct& refusal = deeper ? error->struct_value() : object;
    const Value* said = Find(refusal, "message");
    if (said != nullptr && !said->string_value().empty()) message = said->string_value();
    const Value* value = Find(refusal, "grpc_code");
    if (value == nullptr) value = Find(refusal, "code");
    // gRPC's codes are absl's: 1 to 16, of which no refusal may be none.
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
  // A host that is gone answers nothing at all; the others are to have their turn in time.
  curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT_MS,
                   std::max(1L, timeout_ms / static_cast<long>(addresses_.size())));
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
  const size_t first = answered_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < addresses_.size(); ++i) {
    const size_t at = (first + i) % addresses_.size();
    long http_code = 0;
    absl::StatusOr<std::string> answer = PostTo(addresses_[at], path, body, &http_code);
    absl::Status status = answer.status();
    Json json;
    if (answer.ok()) {
      const bool is_json = google::protobuf::util::JsonStringToMessage(*answer, &json).ok();
      if (http_code != 200 || (is_json && Find(json, "error") != nullptr)) {
        status = Refusal(path, http_code, *answer);
      } else if (!is_json) {
        status = absl::UnavailableError("its answer is no JSON");
      }
    }
    // Another member may be better off; any other refusal is the cluster's.
    if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
      answered_.store(at, std::memory_order_relaxed);
      if (!status.ok()) return status;
      return json;
    }
    why = std::string(status.message());
  }
  return absl::UnavailableError(
      absl::StrCat("etcd at ", absl::StrJoin(addresses_, ", "), " does not answer: ", why));
}

absl::StatusOr<std::optional<std::string>> EtcdClient::Get(const std::string& key,
                                                           int64_t* revision) {
  absl::StatusOr<Json> answer = Post("/v3/kv/range", absl::StrCat("{\"key\":", Base64(key), "}"));
  if (!answer.ok()) return answer.status();
  const Struct* kv = FirstOf(*answer);
  if (revision != nullptr) *revision = kv == nullptr ? 0 : NumberOf(*kv, "mod_revision");
  if (kv == nullptr) return std::nullopt;
  return ValueOf(*kv);
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

absl::StatusOr<EtcdClient::Json> EtcdClient::Transact(const std::string& compare,
                                                      const std::string& success,
                                                      const std::string& failure) {
  return Post("/v3/kv/txn", absl::StrCat("{\"compare\":[", compare, "],\"success\":[", success,
                                         "],\"failure\":[", failure, "]}"));
}

absl::StatusOr<bool> EtcdClient::Claim(const std::string& key, const std::string& value,
                                       int64_t lease) {
  absl::StatusOr<Json> answer = Transact(
      absl::StrCat("{\"key\":", Base64(key),
                   ",\"target\":\"CREATE\",\"result\":\"EQUAL\",\"create_revision\":\"0\"}"),
      absl::StrCat("{\"request_put\":{\"key\":", Base64(key), ",\"value\":", Base64(value),
                   ",\"lease\":\"", lease, "\"}}"),
      RangeOf(key));
  if (!answer.ok()) return answer.status();
  if (Succeeded(*answer)) return true;
  // Maybe by this very call, at an address that did not answer in time.
  const Struct* kv = FirstOfResponse(*answer, 0);
  return kv != nullptr && NumberOf(*kv, "lease") == lease;
}

absl::StatusOr<EtcdClient::Put> EtcdClient::PutWhile(const std::string& claimed, int64_t lease,
                                                     const std::string& key, int64_t revision,
                                                     const std::string& value) {
  absl::StatusOr<Json> answer = Transact(
      absl::StrCat(IsBoundTo(claimed, lease), ",{\"key\":", Base64(key),
                   ",\"target\":\"MOD\",\"result\":\"EQUAL\",\"mod_revision\":\"", revision, "\"}"),
      absl::StrCat("{\"request_put\":{\"key\":", Base64(key), ",\"value\":", Base64(value), "}}"),
      absl::StrCat(RangeOf(claimed), ",", RangeOf(key)));
  if (!answer.ok()) return answer.status();
  if (Succeeded(*answer)) {
    const Value* header = Find(*answer, "header");
    return Put{.claimed = true,
               .holds = true,
               .revision = header == nullptr ? 0 : NumberOf(header->struct_value(), "revision")};
  }
  const Struct *claim = FirstOfResponse(*answer, 0), *kv = FirstOfResponse(*answer, 1);
  Put put;
  put.claimed = claim != nullptr && NumberOf(*claim, "lease") == lease;
  if (kv == nullptr) return put;
  put.revision = NumberOf(*kv, "mod_revision");
  absl::StatusOr<std::string> held = ValueOf(*kv);
  if (!held.ok()) return held.status();
  put.holds = put.claimed && *held == value;
  return put;
}

absl::Status EtcdClient::Release(const std::string& claimed, int64_t lease,
                                 const std::string& key) {
  return Transact(IsBoundTo(claimed, lease), absl::StrCat(DeleteOf(key), ",", DeleteOf(claimed)),
                  "")
      .status();
}

}  // namespace parley
