#include "models/gpu/gpu_engine.h"

#include "absl/strings/str_cat.h"

namespace parley {

absl::StatusOr<std::unique_ptr<GpuEngine>> GpuEngine::Create(std::shared_ptr<Gpu> gpu,
                                                             GemmMath math, bool graphs) {
  std::unique_ptr<GpuEngine> engine(new GpuEngine(std::move(gpu), math, graphs));
  if (absl::Status status = engine->Init(); !status.ok()) return status;
  return engine;
}

absl::Status GpuEngine::Init() {
  for (std::unique_ptr<GpuStream>* stream : {&in_, &compute_, &out_}) {
    absl::StatusOr<std::unique_ptr<GpuStream>> made = gpu_->NewStream();
    if (!made.ok()) return made.status();
    *stream = *std::move(made);
  }
  for (std::unique_ptr<GpuEvent>* event : {&copied_in_, &computed_, &copied_out_}) {
    absl::StatusOr<std::unique_ptr<GpuEvent>> made = gpu_->NewEvent();
    if (!made.ok()) return made.status();
    *event = *std::move(made);
  }
  return absl::OkStatus();
}

bool GpuEngine::Reserve(DeviceMemory* memory, size_t bytes, const char* what) {
  if (!ok()) return false;
  if (bytes > memory->size()) Flush();  // what is held back may mean the memory that goes
  absl::Status status = memory->Reserve(gpu_.get(), bytes);
  if (!status.ok()) {
    Note(absl::Status(status.code(), absl::StrCat(what, ": ", status.message())));
  }
  return status.ok();
}

void GpuEngine::Enqueue(const GpuKernel& kernel, uint32_t blocks, const void* args,
                        size_t args_bytes) {
  if (!ok()) return;
  if (!graphs_) {
    Note(compute_->LaunchErased(kernel, blocks, args, args_bytes));
    return;
  }
  const auto* begin = static_cast<const std::byte*>(args);
  GpuOperation operation;
  operation.kernel = &kernel;
  operation.blocks = blocks;
  operation.args.assign(begin, begin + args_bytes);
  held_back_.push_back(std::move(operation));
}

void GpuEngine::Gemm(const GemmCall& call) {
  if (!ok()) return;
  if (!graphs_) {
    Note(compute_->Gemm(call));
    return;
  }
  GpuOperation operation;
  operation.gemm = call;
  held_back_.push_back(std::move(operation));
}

void GpuEngine::CopyWithin(void* to, const void* from, size_t bytes) {
  Flush();
  if (ok()) Note(compute_->CopyWithin(to, from, bytes));
}

void GpuEngine::Flush() {
  if (held_back_.empty()) return;
  if (ok()) Note(graph_cache_.Enqueue(std::exchange(held_back_, {}), compute_.get()));
  held_back_.clear();
}

void GpuEngine::Order(GpuStream* earlier, GpuEvent* event, GpuStream* later) {
  Flush();
  if (ok()) Note(earlier->Record(event));
  if (ok()) Note(later->WaitFor(*event));
}

void GpuEngine::BeginStep() {
  ++step_;
  Flush();
  graph_cache_.BeginStep();
  Order(compute_.get(), computed_.get(), in_.get());
  HoldOperations();
}

void GpuEngine::CopyIn(void* device, const void* host, size_t bytes) {
  if (!ok()) return;
  Note(in_->CopyIn(device, host, bytes));
  Order(in_.get(), copied_in_.get(), compute_.get());
}

void GpuEngine::CopyOut(void* host, const void* device, size_t bytes) {
  Order(compute_.get(), computed_.get(), out_.get());
  if (ok()) Note(out_->CopyOut(host, device, bytes));
}

Mark GpuEngine::MarkHere() {
  ++last_mark_;
  if (!ok()) return Mark{last_mark_};
  Order(compute_.get(), computed_.get(), out_.get());
  std::unique_ptr<GpuEvent> event;
  if (!free_events_.empty()) {
    event = std::move(free_events_.back());
    free_events_.pop_back();
  } else {
    absl::StatusOr<std::unique_ptr<GpuEvent>> made = gpu_->NewEvent();
    Note(made.status());
    if (!made.ok()) return Mark{last_mark_};
    event = *std::move(made);
  }
  if (ok()) Note(out_->Record(event.get()));
  pending_.push_back({last_mark_, std::move(event)});
  return Mark{last_mark_};
}

bool GpuEngine::Reached(Mark mark) {
  // Marks are reached in order; those that failed to be made have no event.
  const Pending* last = nullptr;
  for (const Pending& pending : pending_) {
    if (pending.mark > static_cast<uint64_t>(mark)) break;
    last = &pending;
  }
  return last == nullptr || last->event->done();
}

void GpuEngine::Await(Mark mark) {
  Pending last{0, nullptr};
  while (!pending_.empty() && pending_.front().mark <= static_cast<uint64_t>(mark)) {
    if (last.event != nullptr) free_events_.push_back(std::move(last.event));
    last = std::move(pending_.front());
    pending_.pop_front();
  }
  if (last.event == nullptr) return;
  Note(last.event->Await());
  free_events_.push_back(std::move(last.event));
}

void GpuEngine::SyncAll() {
  Flush();
  for (GpuStream* stream : {in_.get(), compute_.get(), out_.get()}) Note(stream->Sync());
  for (Pending& pending : pending_) free_events_.push_back(std::move(pending.event));
  pending_.clear();
}

}  // namespace parley
