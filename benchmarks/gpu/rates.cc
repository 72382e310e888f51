#include "benchmarks/gpu/rates.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

// Walks the layers, the shape in front of each at hand.
class WorkList {
 public:
  WorkList(SampleShape input, uint64_t rows) : shape_(input), rows_(static_cast<int64_t>(rows)) {}

  void Add(const pb::Layer& layer) {
    switch (layer.kind_case()) {
      case pb::Layer::kLinear: {
        const auto in = static_cast<int64_t>(shape_.size());
        shape_ = {layer.linear().out(), 1, 1};
        AddProducts(layer.name(), rows_, shape_.channels, in);
        break;
      }
      case pb::Layer::kConv2D: {
        const pb::Conv2d& conv = layer.conv2d();
        const int64_t depth = int64_t{shape_.channels} * conv.kernel() * conv.kernel();
        const uint32_t grow = 2 * conv.padding() + 1;
        shape_ = {conv.out_channels(), shape_.height + grow - conv.kernel(),
                  shape_.width + grow - conv.kernel()};
        AddProducts(layer.name(), rows_ * shape_.height * shape_.width, shape_.channels, depth);
        break;
      }
      case pb::Layer::kMaxPool2D: {
        const SampleShape in = shape_;
        const uint32_t kernel = layer.max_pool2d().kernel();
        shape_ = {in.channels, in.height / kernel, in.width / kernel};
        AddBytes(in);
        break;
      }
      case pb::Layer::kDropout:
      case pb::Layer::kLogSoftmax:
        AddBytes(shape_);
        break;
      case pb::Layer::kFlatten:
        shape_ = {static_cast<uint32_t>(shape_.size()), 1, 1};
        break;
      default:
        break;
    }
  }

  StepWork Take() { return std::move(work_); }

 private:
  // y [rows, out] = x [rows, in] W^T, then dW = dy^T x and dx = dy W. Nobody needs the gradient of
  // the model's input.
  void AddProducts(const std::string& layer, int64_t rows, int64_t out, int64_t in) {
    const bool first = work_.products.empty();
    work_.products.push_back({layer, "forward", rows, out, in, false, true});
    work_.products.push_back({layer, "weights", out, in, rows, true, false});
    if (!first) work_.products.push_back({layer, "data", rows, in, out, false, false});
  }

  void AddBytes(const SampleShape& in) {
    const double one_way =
        static_cast<double>(rows_) * static_cast<double>(in.size() + shape_.size()) * sizeof(float);
    work_.other_bytes += 2 * one_way;
  }

  SampleShape shape_;
  const int64_t rows_;
  StepWork work_;
};

Timing MeasureProduct(Bench& bench, const Product& product, GemmMath math) {
  const bool halves = math == GemmMath::kBf16;
  const size_t factor = halves ? sizeof(uint16_t) : sizeof(float);
  const size_t bytes[] = {product.m * product.k * factor, product.k * product.n * factor,
                          product.m * product.n * sizeof(float)};
  DeviceMemory memory[3];
  for (int i = 0; i < 3; ++i) {
    Check(memory[i].Reserve(bench.gpu().get(), bytes[i]));
    if (i == 2) continue;
    if (halves) {
      bench.FillRandomHalves(memory[i].data(), bytes[i], 1);
    } else {
      bench.FillRandom(memory[i].data(), bytes[i], 1);
    }
  }
  GemmCall call{.math = math,
                .transpose_a = product.transpose_a,
                .transpose_b = product.transpose_b,
                .m = product.m,
                .n = product.n,
                .k = product.k};
  call.a = memory[0].data();
  call.b = memory[1].data();
  call.c = memory[2].floats();
  return bench.TimeEnqueued([&] { Check(bench.stream().Gemm(call)); });
}

}  // namespace

std::string CopyRates::Json() const {
  return JsonLine()
      .Count("bytes", bytes)
      .Number("in_gb_per_s", in / 1e9)
      .Number("out_gb_per_s", out / 1e9)
      .Number("both_gb_per_s", both / 1e9)
      .Number("within_gb_per_s", within / 1e9)
      .str();
}

CopyRates MeasureCopies(Bench& bench) {
  CopyRates rates;
  rates.bytes = bench.settings().simulated ? size_t{64} << 10 : size_t{256} << 20;
  Gpu* const gpu = bench.gpu().get();
  const PinnedMemory to = Check(PinnedMemory::Create(gpu, rates.bytes));
  const PinnedMemory from = Check(PinnedMemory::Create(gpu, rates.bytes));
  DeviceMemory a, b;
  Check(a.Reserve(gpu, rates.bytes));
  Check(b.Reserve(gpu, rates.bytes));
  bench.FillRandom(a.data(), rates.bytes, 1);
  bench.FillRandom(b.data(), rates.bytes, 1);

  const auto bytes = static_cast<double>(rates.bytes);
  const auto copy_in = [&] { Check(bench.stream().CopyIn(a.data(), from.data(), rates.bytes)); };
  const auto copy_out = [&] {
    Check(bench.other_stream().CopyOut(to.data(), b.data(), rates.bytes));
  };
  rates.in = bytes / bench.TimeEnqueued(copy_in).median;
  rates.out = bytes / bench.TimeEnqueued(copy_out).median;
  rates.both = 2 * bytes / bench.TimeEnqueued([&] { copy_in(), copy_out(); }).median;
  rates.within =
      bytes /
      bench.TimeEnqueued([&] { Check(bench.stream().CopyWithin(a.data(), b.data(), rates.bytes)); })
          .median;
  Say(absl::StrFormat("copies: %.1f GB/s in, %.1f out, %.1f both ways, %.0f within", rates.in / 1e9,
                      rates.out / 1e9, rates.both / 1e9, rates.within / 1e9));
  return rates;
}

StepWork WorkOf(const pb::Model& model, SampleShape input, uint64_t rows) {
  WorkList list(input, rows);
  for (const pb::Layer& layer : model.layer()) list.Add(layer);
  return list.Take();
}

ProductTimes MeasureProducts(Bench& bench, const StepWork& work, GemmMath math) {
  ProductTimes times;
  std::vector<std::string> items;
  // Layers of the same shape take the same time: each shape is measured once.
  std::vector<std::pair<const Product*, Timing>> known;
  for (const Product& product : work.products) {
    const auto same = std::find_if(known.begin(), known.end(), [&](const auto& entry) {
      const Product& p = *entry.first;
      return p.m == product.m && p.n == product.n && p.k == product.k &&
             p.transpose_a == product.transpose_a && p.transpose_b == product.transpose_b;
    });
    const Timing timing = same != known.end() ? same->second : MeasureProduct(bench, product, math);
    if (same == known.end()) known.emplace_back(&product, timing);
    (product.forward() ? times.forward : times.backward) += timing.median;
    times.flops += product.flops();
    items.push_back(
        JsonLine()
            .Text("layer", product.layer)
            .Text("pass", product.pass)
            .Raw("m_n_k", absl::StrCat("[", product.m, ", ", product.n, ", ", product.k, "]"))
            .Number("ms", timing.median * 1e3)
            .Number("tflop_per_s", product.flops() / timing.median / 1e12)
            .str());
  }
  times.json = ListJson(items);
  return times;
}

}  // namespace parley
