// Writes the fuzz targets' seeds from real frames, payloads, records and experiments:
//
//   make_fuzz_corpus tests/fuzz/corpus
//
// Files that are there are overwritten; what a fuzzer has found is left alone.
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "ps/codec/payload_codec.h"
#include "ps/net/shm/ring.h"
#include "ps/wire/codec.h"
#include "tests/fuzz/state_seeds.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

void Write(const fs::path& folder, const std::string& name, const std::string& bytes) {
  fs::create_directories(folder);
  std::ofstream(folder / name, std::ios::binary) << bytes;
}

template <typename T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

// As fuzz_frame.cc takes it apart.
std::string FrameInput(const pb::FrameHeader& header, const std::vector<std::string>& payload,
                       bool envelope) {
  std::string input = Raw<uint8_t>(envelope) + Raw(static_cast<uint8_t>(payload.size()));
  for (const std::string& part : payload) input += Raw(static_cast<uint16_t>(part.size()));
  for (const std::string& part : payload) input += part;
  return input + (envelope ? header.SerializeAsString() : EncodeHeader(header));
}

pb::FrameHeader Header(pb::Kind kind) {
  pb::FrameHeader header;
  header.set_protocol(1);
  header.set_kind(kind);
  header.set_job(0x1122334455667788);
  header.set_sender(77);
  header.set_incarnation(1);
  header.set_request_id(300);
  header.set_epoch(1);
  header.set_tick(7);
  return header;
}

pb::Part* AddPart(pb::FrameHeader* header, uint32_t partition, uint64_t count) {
  pb::Part* part = header->add_part();
  part->set_partition(partition);
  part->set_count(count);
  part->set_sequence(8);
  part->set_acked_below(6);
  return part;
}

void WriteFrames(const fs::path& folder) {
  pb::FrameHeader push = Header(pb::PUSH);
  push.set_weight(64);
  AddPart(&push, 3, 2);
  AddPart(&push, 4, 0);
  AddPart(&push, 5, 3);
  Write(folder, "push", FrameInput(push, {std::string(8, 'a'), std::string(12, 'b')}, true));
  Write(folder, "push_one_buffer", FrameInput(push, {std::string(20, 'a')}, true));
  Write(folder, "push_envelope", FrameInput(push, {std::string(20, 'a')}, false));
  Write(folder, "push_short", FrameInput(push, {std::string(19, 'a')}, true));

  pb::FrameHeader encoded = push;
  encoded.mutable_part(0)->set_value_bytes(4);
  encoded.mutable_part(2)->set_value_bytes(6);
  Write(folder, "push_encoded", FrameInput(encoded, {std::string(10, 'c')}, true));

  pb::FrameHeader sparse = Header(pb::PUSH_PULL);
  sparse.set_weight(1);
  sparse.set_pull_tick(8);
  sparse.set_table(1);
  pb::Part* part = AddPart(&sparse, 9, 8);
  part->set_keys(2);
  part->set_key_bytes(16);
  part->set_key_digest(std::string(16, 'd'));
  Write(folder, "sparse", FrameInput(sparse, {std::string(16, 'k'), std::string(32, 'v')}, true));
  part->set_key_bytes(0);
  Write(folder, "sparse_by_digest", FrameInput(sparse, {std::string(32, 'v')}, true));

  pb::FrameHeader pull = Header(pb::PULL);
  AddPart(&pull, 3, 0)->set_base_version(4);
  Write(folder, "pull", FrameInput(pull, {}, true));
  pb::FrameHeader reply = Header(pb::REPLY);
  AddPart(&reply, 3, 2)->set_version(5);
  Write(folder, "reply", FrameInput(reply, {std::string(8, 'w')}, true));
  pb::FrameHeader refusal = Header(pb::REPLY);
  refusal.set_status_code(3);
  refusal.set_status_message("partition 9 lives elsewhere");
  Write(folder, "refusal", FrameInput(refusal, {}, false));
  pb::FrameHeader hello = Header(pb::HELLO);
  hello.set_body(std::string(20, 'h'));
  Write(folder, "hello", FrameInput(hello, {}, true));
  Write(folder, "unknown_kind", FrameInput(Header(pb::KIND_UNKNOWN), {}, true));
}

// As fuzz_payload_codecs.cc takes it apart; block 16 + 48, top_k (1 + 6553) / 65536.
std::string CodecInput(uint8_t codec, uint8_t how) {
  return Raw(codec) + Raw(how) + Raw(uint16_t{48}) + Raw(uint16_t{6553});
}

void WritePayloads(const fs::path& folder) {
  std::vector<float> values;
  for (int i = 0; i < 77; ++i) values.push_back(static_cast<float>(i * 37 % 78 - 30) * 0.01f);
  std::vector<float> odd = values;
  const uint32_t specials[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 1, 0x80000000};
  std::memcpy(odd.data() + 20, specials, sizeof(specials));
  const std::vector<std::string> names = PayloadCodec::Names();
  for (size_t codec = 0; codec < names.size(); ++codec) {
    for (const uint8_t zstd : {0, 2}) {
      pb::Compression config;
      config.set_block(64);
      config.set_top_k(6554 / 65536.0f);
      config.set_zstd_level(zstd ? 1 : 0);
      const auto made = PayloadCodec::Create(names[codec], config);
      if (!made.ok() || *made == nullptr) continue;
      const auto index = static_cast<uint8_t>(codec);
      for (const auto* floats : {&values, &odd}) {
        std::vector<float> residual(floats->size());
        std::vector<std::byte> out((*made)->MaxEncodedBytes(floats->size()));
        out.resize((*made)->Encode(floats->data(), floats->size(), residual.data(), out.data()));
        const std::string kind = floats == &odd ? "_odd" : "";
        Write(folder, "decode_" + (*made)->name() + kind,
              CodecInput(index, zstd) + Raw(static_cast<uint16_t>(floats->size())) +
                  std::string(reinterpret_cast<const char*>(out.data()), out.size()));
        if (zstd != 0 && floats == &odd) continue;
        Write(folder, "encode_" + (*made)->name() + kind,
              CodecInput(index, zstd | 1) +
                  std::string(reinterpret_cast<const char*>(floats->data()), floats->size() * 4));
      }
    }
  }
}

void WriteRings(const fs::path& folder) {
  using shm::RecordKind;
  std::string ring(shm::kMinRingBytes, '\0');
  shm::RingWriter writer({reinterpret_cast<std::byte*>(ring.data()), ring.size()});
  const auto add = [&](RecordKind kind, uint16_t flags, const std::string& body) {
    std::memcpy(writer.Begin(body.size(), 0), body.data(), body.size());
    writer.End(kind, flags);
  };
  add(RecordKind::kBytes, shm::kMoreParts, Raw(uint64_t{40}) + std::string(20, 'x'));
  add(RecordKind::kMoreBytes, 0, std::string(20, 'y'));
  std::string reference(shm::kReferenceBytes, '\0');
  shm::PutReference({.arena = 1, .offset = 64, .size = 4096, .token = 7},
                    reinterpret_cast<std::byte*>(reference.data()));
  add(RecordKind::kReference, 0, reference);
  add(RecordKind::kRelease, 0, Raw(uint64_t{7}) + Raw(uint64_t{8}));
  add(RecordKind::kBye, 0, "");
  const std::string bytes = ring.substr(0, writer.position());
  const auto input = [&](uint8_t how, const std::vector<uint64_t>& written) {
    std::string text = Raw(how) + Raw(static_cast<uint8_t>(written.size()));
    for (const uint64_t position : written) text += Raw(position);
    return text + bytes;
  };
  Write(folder, "records", input(0, {writer.position()}));
  Write(folder, "records_in_two", input(0, {32, writer.position()}));
  Write(folder, "records_changing", input(2, {4096}));
  Write(folder, "whole_ring", input(0, {shm::kMinRingBytes}));
  Write(folder, "beyond_the_ring", input(0, {shm::kMinRingBytes + 8}));
  Write(folder, "backwards", input(0, {64, 8}));
  Write(folder, "odd_position", input(0, {13}));
  std::string sizes = Raw(uint8_t{1});
  for (uint16_t i = 0; i < 60; ++i) sizes += Raw(static_cast<uint16_t>(i * 41));
  Write(folder, "written_by_us", sizes);
}

// As fuzz_shm_connection.cc takes them apart: its steps by number.
void WriteConnections(const fs::path& folder) {
  enum : uint8_t {
    kRaw,
    kRecord,
    kHeader,
    kReference,
    kShow,
    kShowOther,
    kRead,
    kReadOther,
    kReleaseOne,
    kAnnounce,
    kWords,
    kSay,
    kHangUp,
    kSend,
    kServe,
    kSleep,
    kClose
  };
  const auto step = [](uint8_t what, const std::string& rest = "") { return Raw(what) + rest; };
  const auto header = [&](const std::vector<std::pair<uint16_t, uint16_t>>& parts) {
    std::string text = Raw(uint8_t{kHeader}) + Raw(static_cast<uint8_t>(parts.size()));
    for (const auto& [keys, values] : parts) text += Raw(keys) + Raw(values);
    return text;
  };
  const auto reference = [&](uint8_t arena, uint8_t flags, uint16_t offset, uint16_t size) {
    return step(kReference, Raw(arena) + Raw(flags) + Raw(offset) + Raw(size) + Raw(uint8_t{9}));
  };
  const auto send = [&](const std::vector<uint16_t>& sizes) {
    std::string text = Raw(uint8_t{kSend}) + Raw(static_cast<uint8_t>(sizes.size()));
    for (const uint16_t size : sizes) text += Raw(size);
    return text;
  };
  const std::string greet = Raw(uint8_t{0});
  const std::string announce = step(kAnnounce, Raw(uint8_t{0}) + Raw(uint8_t{0}));
  const std::string heard = step(kShow) + step(kServe);
  Write(folder, "bad_greeting", Raw(uint8_t{1}) + std::string(32, 'g') + step(kServe));
  Write(folder, "lent_keys_and_values",
        greet + announce + header({{800, 0}, {0, 401}, {160, 400}}) + reference(0, 1, 0, 800) +
            reference(0, 1, 800, 401) + reference(0, 0, 4096, 560) + heard + step(kServe));
  Write(folder, "past_the_arena",
        greet + announce + header({{0, 800}}) + reference(0, 0, 65000, 800) + heard);
  Write(folder, "never_announced", greet + header({{0, 800}}) + reference(3, 0, 0, 800) + heard);
  Write(folder, "announced_twice", greet + announce + step(kServe) + announce + step(kServe));
  Write(folder, "lent_and_released",
        greet + send({100, 12000}) + step(kReleaseOne, Raw(uint8_t{0})) + heard + step(kRead) +
            send({5000}) + step(kReleaseOne, Raw(uint8_t{0})) + heard);
  Write(folder, "released_twice",
        greet + send({12000}) + step(kReleaseOne, Raw(uint8_t{0})) +
            step(kReleaseOne, Raw(uint8_t{0})) + heard);
  Write(folder, "past_the_bound",
        greet + send({19000, 19000, 19000, 19000}) + step(kRead) + step(kServe) + step(kSleep) +
            step(kRead) + step(kServe) + step(kReleaseOne, Raw(uint8_t{0})) + heard);
  Write(folder, "reads_more_than_is_there",
        greet + step(kReadOther, Raw(uint64_t{1} << 40)) + send({4000, 4000, 4000}) + step(kServe));
  Write(folder, "asleep_then_gone",
        greet + step(kWords, Raw(uint8_t{3})) + send({64}) + step(kClose) + step(kServe) +
            step(kHangUp) + step(kServe));
  Write(folder, "records_as_they_come",
        greet +
            step(kRecord, Raw(uint8_t{1}) + Raw(uint8_t{0}) + Raw(uint8_t{8}) + Raw(uint64_t{20})) +
            step(kRecord,
                 Raw(uint8_t{2}) + Raw(uint8_t{0}) + Raw(uint8_t{20}) + std::string(20, 'm')) +
            heard + step(kRecord, Raw(uint8_t{5}) + Raw(uint8_t{0}) + Raw(uint8_t{0})) + heard);
  Write(folder, "bytes_as_they_come",
        greet + step(kRaw, Raw(uint16_t{0}) + Raw(uint8_t{16}) + std::string(16, 'r')) +
            step(kShowOther, Raw(uint64_t{16})) + step(kServe) +
            step(kSay, Raw(uint8_t{3}) + "abc") + step(kServe));
}

void WriteExperiments(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator("experiments")) {
    if (entry.path().extension() != ".textproto") continue;
    std::ifstream file(entry.path());
    Write(folder, entry.path().stem().string(),
          std::string{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()});
  }
  Write(folder, "everything",
        "name: \"x\" data { synthetic_clicks { fields: 3 } }\n"
        "model { layer { embedding { dim: 4 optimizer { ftrl { l1: 0.1 } } eviction { max_age: 3 }"
        " compression { push: \"top_k\" zstd_level: 1 } } }\n"
        " layer { linear { out: 2 } } layer { log_softmax {} } }\n"
        "optimizer { adam {} schedule { cosine { steps: 10 } warmup_steps: 2 } }\n"
        "compression { push: \"one_bit\" pull: \"int8\" block: 64 }\n"
        "cluster { transport: AUTO } consistency { mode: BSP }\n");
  Write(folder, "mistakes",
        "nmae: \"x\" data { synthetic { noise: nan } idx {} } model { layer { relu {} } }\n"
        "compression { push: \"topk\" top_k: 7 } consistency { mode: SSP backup_workers: 9 }\n");
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_fuzz_corpus FOLDER   (in the repository's root)\n");
    return 2;
  }
  const std::filesystem::path root = argv[1];
  parley::WriteFrames(root / "frame");
  parley::WritePayloads(root / "payload_codecs");
  parley::WriteRings(root / "shm_ring");
  parley::WriteConnections(root / "shm_connection");
  parley::WriteExperiments(root / "experiment");
  const auto in = [&root](const char* target) {
    return [folder = root / target](const std::string& name, const std::string& bytes) {
      parley::Write(folder, name, bytes);
    };
  };
  parley::WriteCheckpointSeeds(in("checkpoint"));
  parley::WriteReplicaSeeds(in("replica"));
  parley::WriteJournalSeeds(in("journal"));
}
