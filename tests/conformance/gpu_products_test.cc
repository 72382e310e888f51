// Products of matrices on every Gpu, against sums in float64.
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/conformance/gpu_rig.h"

namespace parley {
namespace {

struct Case {
  int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate;
};

// To nearest, ties to even.
uint16_t ToBf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float FromBf16(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

std::vector<double> Reference(const Case& c, const std::vector<float>& a,
                              const std::vector<float>& b, const std::vector<float>& before) {
  std::vector<double> out(c.m * c.n);
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = c.accumulate ? before[i * c.n + j] : 0;
      for (int64_t k = 0; k < c.k; ++k) {
        sum += double{c.transpose_a ? a[k * c.m + i] : a[i * c.k + k]} *
               double{c.transpose_b ? b[j * c.k + k] : b[k * c.n + j]};
      }
      out[i * c.n + j] = sum;
    }
  }
  return out;
}

// |got - wanted| / |wanted|, norms of Euclid.
double Error(const std::vector<float>& got, const std::vector<double>& wanted) {
  double off = 0, all = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    off += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    all += wanted[i] * wanted[i];
  }
  return std::sqrt(off / all);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{65, 33, 129}, {1, 10, 300}, {64, 64, 64}}) {
    for (int flags = 0; flags < 8; ++flags) {
      cases.push_back({m, n, k, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0});
    }
  }
  return cases;
}

std::string Text(const Case& c, GemmMath math) {
  return absl::StrCat(ToString(math), " [", c.m, ", ", c.k, "]", c.transpose_a ? "T" : "", " [",
                      c.k, ", ", c.n, "]", c.transpose_b ? "T" : "", c.accumulate ? " +=" : "");
}

TEST_P(GpuConformance, ProductsOfFloat32) {
  for (const Case& c : Cases()) {
    const std::vector<float> a = Numbers(c.m * c.k, 1), b = Numbers(c.k * c.n, 2),
                             before = Numbers(c.m * c.n, 3);
    const float *a_there = Put(a), *b_there = Put(b);
    const std::vector<double> wanted = Reference(c, a, b, before);
    for (const auto& [math, most] :
         {std::pair{GemmMath::kFp32, 1e-6}, std::pair{GemmMath::kTf32, 2e-3}}) {
      SCOPED_TRACE(Text(c, math));
      float* out = Put(before);
      ASSERT_OK(stream().Gemm({.math = math,
                               .transpose_a = c.transpose_a,
                               .transpose_b = c.transpose_b,
                               .accumulate = c.accumulate,
                               .m = c.m,
                               .n = c.n,
                               .k = c.k,
                               .a = a_there,
                               .b = b_there,
                               .c = out}));
      EXPECT_LT(Error(Get(out, c.m * c.n), wanted), most);
    }
  }
}

// Against factors that are rounded, so that what is left is the error of sums, and against those
// that are not.
TEST_P(GpuConformance, ProductsOfBfloat16) {
  for (const Case& c : Cases()) {
    SCOPED_TRACE(Text(c, GemmMath::kBf16));
    const std::vector<float> before = Numbers(c.m * c.n, 3);
    std::vector<float> factors[2] = {Numbers(c.m * c.k, 1), Numbers(c.k * c.n, 2)};
    const std::vector<double> unrounded = Reference(c, factors[0], factors[1], before);
    const uint16_t* there[2];
    for (int i = 0; i < 2; ++i) {
      std::vector<uint16_t> halves;
      for (float& number : factors[i]) {
        halves.push_back(ToBf16(number));
        number = FromBf16(halves.back());
      }
      there[i] = Put(halves);
    }
    float* out = Put(before);
    ASSERT_OK(stream().Gemm({.math = GemmMath::kBf16,
                             .transpose_a = c.transpose_a,
                             .transpose_b = c.transpose_b,
                             .accumulate = c.accumulate,
                             .m = c.m,
                             .n = c.n,
                             .k = c.k,
                             .a = there[0],
                             .b = there[1],
                             .c = out}));
    const std::vector<float> got = Get(out, c.m * c.n);
    EXPECT_LT(Error(got, Reference(c, factors[0], factors[1], before)), 1e-4);
    EXPECT_LT(Error(got, unrounded), 1e-2);
  }
}

TEST_P(GpuConformance, ProductsOfNothing) {
  const std::vector<float> before = Numbers(6, 4);
  float* c = Put(before);
  ASSERT_OK(stream().Gemm({.accumulate = true, .m = 2, .n = 3, .k = 0, .c = c}));
  EXPECT_EQ(Get(c, 6), before);
  ASSERT_OK(stream().Gemm({.m = 2, .n = 3, .k = 0, .c = c}));
  EXPECT_EQ(Get(c, 6), std::vector<float>(6, 0));
  ASSERT_OK(stream().Gemm({.m = 0, .n = 3, .k = 2, .b = Put(before), .c = c}));
  ASSERT_OK(stream().Gemm({.m = 2, .n = 0, .k = 3, .a = Put(before), .c = c}));
  ASSERT_OK(stream().Sync());
}

// Few rows and a long sum, which a GPU likes to cut into parts; beside another stream that does the
// same, and on a stream of its own.
TEST_P(GpuConformance, ProductsAreTheSameBitsEachTime) {
  constexpr int64_t kM = 48, kN = 40, kK = 4096;
  const std::vector<float> a = Numbers(kM * kK, 5), b = Numbers(kK * kN, 6);
  const float *a_there = Put(a), *b_there = Put(b);
  std::vector<uint16_t> a_halves, b_halves;
  for (float number : a) a_halves.push_back(ToBf16(number));
  for (float number : b) b_halves.push_back(ToBf16(number));
  const uint16_t *a_half = Put(a_halves), *b_half = Put(b_halves);
  for (GemmMath math : {GemmMath::kFp32, GemmMath::kTf32, GemmMath::kBf16}) {
    SCOPED_TRACE(ToString(math));
    GemmCall call{.math = math, .m = kM, .n = kN, .k = kK, .a = a_there, .b = b_there};
    if (math == GemmMath::kBf16) call.a = a_half, call.b = b_half;
    auto other = NewStream();
    std::vector<float*> products;
    for (int i = 0; i < 3; ++i) {
      for (GpuStream* on : {&stream(), other.get()}) {
        call.c = products.emplace_back(Floats(kM * kN));
        ASSERT_OK(on->Gemm(call));
      }
    }
    ASSERT_OK(other->Sync());
    const std::vector<float> first = Get(products[0], kM * kN);
    for (const float* product : products) {
      const std::vector<float> again = Get(product, kM * kN);
      EXPECT_EQ(std::memcmp(again.data(), first.data(), kM * kN * sizeof(float)), 0);
    }
  }
}

}  // namespace
}  // namespace parley
