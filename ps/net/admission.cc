#include "ps/net/admission.h"

#include <string_view>

#include "absl/strings/str_format.h"
#include "proto/cluster.pb.h"
#include "ps/base/ids.h"
#include "ps/net/security.h"

namespace parley {

uint64_t JobId(const std::string& job) {
  // FNV-1a, 64 bit: stable across builds and machines. It tells jobs apart by mistake, not by
  // malice.
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : job) hash = (hash ^ c) * 0x100000001b3;
  return hash == 0 ? 1 : hash;
}

namespace {

pb::Role RoleInHello(PeerRole role) {
  switch (role) {
    case PeerRole::kServer:
      return pb::SERVER;
    case PeerRole::kWorker:
      return pb::WORKER;
    case PeerRole::kScheduler:
    case PeerRole::kUnproven:
      break;
  }
  return pb::ROLE_UNKNOWN;  // schedulers do not join
}

bool MaySay(PeerRole role, const pb::FrameHeader& header) {
  const bool scheduler = role == PeerRole::kScheduler, server = role == PeerRole::kServer,
             worker = role == PeerRole::kWorker;
  switch (header.kind()) {
    case pb::HELLO: {
      pb::Hello hello;
      // One that is none is answered for that.
      return !hello.ParseFromString(header.body()) ||
             (!scheduler && hello.role() == RoleInHello(role));
    }
    case pb::REGISTER:
    case pb::HEARTBEAT:
    case pb::REPORT:
    case pb::FINISHED:
      return server || worker;
    case pb::CONTROL:
    case pb::ASSIGN:
    case pb::STOP:
    case pb::COUNT:
    case pb::CHECKPOINT:
    case pb::PING:
      return scheduler;
    case pb::PUSH:
    case pb::PULL:
    case pb::PUSH_PULL:
    case pb::LEAVE:
      return worker;
    case pb::BACKUP_NEWS:
    case pb::NORM:
    case pb::REPLICATE:
    case pb::SYNC:
      return server;
    case pb::REPLY:
    case pb::PARKED:
    case pb::FAILED:
    case pb::KIND_UNKNOWN:
      break;  // anybody's, or nobody's
  }
  return true;
}

}  // namespace

absl::Status CheckPeerRole(PeerRole role, const pb::FrameHeader& header) {
  if (role == PeerRole::kUnproven || MaySay(role, header)) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrFormat("%s from node %016x, whose key is a %s's: not its to say",
                      pb::Kind_Name(header.kind()), header.sender(), std::string(RoleName(role))));
}

absl::Status CheckAdmission(const pb::FrameHeader& header, uint64_t job) {
  if (header.protocol() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the sender speaks protocol version %d, this node %d", header.protocol(),
                        kProtocolVersion));
  }
  // Answers too: a node may be asked something before its own admission has reached it.
  const bool may_be_jobless = header.kind() == pb::HELLO || header.kind() == pb::FAILED ||
                              header.kind() == pb::REPLY || header.kind() == pb::PARKED ||
                              header.kind() == pb::CONTROL;
  if (job == 0 || header.job() == job || (header.job() == 0 && may_be_jobless)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("the frame is of job %016x, this node is of job %016x", header.job(), job));
}

}  // namespace parley
