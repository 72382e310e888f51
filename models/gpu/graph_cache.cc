#include "models/gpu/graph_cache.h"

#include <utility>

#include "absl/status/statusor.h"

namespace parley {
namespace {

absl::Status EnqueueAll(const std::vector<GpuOperation>& operations, GpuStream* stream) {
  for (const GpuOperation& operation : operations) {
    absl::Status status;
    if (operation.kernel != nullptr) {
      status = stream->LaunchErased(*operation.kernel, operation.blocks, operation.args.data(),
                                    operation.args.size());
    } else {
      status = stream->Gemm(operation.gemm);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status GraphCache::Enqueue(std::vector<GpuOperation> operations, GpuStream* stream) {
  if (operations.size() < kLeast) return EnqueueAll(operations, stream);
  if (next_ == pieces_.size()) pieces_.emplace_back();
  Piece& piece = pieces_[next_++];
  if (!(piece.operations == operations)) {
    piece.operations = std::move(operations);
    piece.graph = nullptr;
    return EnqueueAll(piece.operations, stream);
  }
  if (piece.graph == nullptr) {
    if (absl::Status status = stream->BeginGraph(); !status.ok()) return status;
    // Ended in any case: a stream that goes on recording is of no use to anybody.
    const absl::Status status = EnqueueAll(piece.operations, stream);
    absl::StatusOr<std::unique_ptr<GpuGraph>> graph = stream->EndGraph();
    if (!status.ok()) return status;
    // Somebody else may have waited for the whole GPU meanwhile, which ends a recording.
    if (!graph.ok()) return EnqueueAll(piece.operations, stream);
    piece.graph = *std::move(graph);
  }
  ++launched_;
  return stream->Launch(*piece.graph);
}

}  // namespace parley
