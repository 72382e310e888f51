// What the optimizer does to one element: the arithmetic that all kernels share, those of the CPU's
// instruction sets (optimizer_kernels.inc.h) and the GPU's (gpu_optimizer_kernels.h), so that all
// give the same bits. Included within a namespace of the kernel's own, which defines
//
//   PARLEY_ELEMENT      what is written in front of a function: inline, where it runs
//   PARLEY_SQRT(x)      correctly rounded, of a float32
//   PARLEY_ABS(x)
//
// No include guard and no library header on purpose: see optimizer_kernels.h, which is included
// before. Only + - * / and square roots, each rounded once: whoever includes this is compiled
// without contraction to FMA.

// What follows the sum of the gradients. A NaN passes the clip as torch.clamp lets it.
PARLEY_ELEMENT float Scaled(float s, float inverse_weight, float norm_scale, float clip) {
  s = s * inverse_weight;
  s = s * norm_scale;
  s = s < -clip ? -clip : s;
  return s > clip ? clip : s;
}

PARLEY_ELEMENT float Decayed(float weight_decay, float w, float g) { return g + weight_decay * w; }

// The rules. Next returns the weight after, from w: the weight before, g: the finished gradient,
// a, b, c: slots, of which kSlots exist. Operation order is that of torch.optim's single-tensor
// loops; addcdiv is w + (value * a) / b.

struct SgdRule {
  static constexpr int kSlots = 0;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float&, float&, float&) {
    return w + k.minus_lr * g;
  }
};

struct SgdMomentumRule {
  static constexpr int kSlots = 1;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float&,
                                   float&) {
    a = k.keep * a + k.take * g;
    return w + k.minus_lr * a;
  }
};

struct SgdNesterovRule {
  static constexpr int kSlots = 1;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float&,
                                   float&) {
    a = k.keep * a + k.take * g;
    return w + k.minus_lr * (g + k.momentum * a);
  }
};

struct AdagradRule {
  static constexpr int kSlots = 1;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float&,
                                   float&) {
    a = a + g * g;
    return w + (k.minus_lr * g) / (PARLEY_SQRT(a) + k.eps);
  }
};

struct AdadeltaRule {
  static constexpr int kSlots = 2;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float& b,
                                   float&) {
    a = k.keep * a + (k.take * g) * g;
    const float std = PARLEY_SQRT(a + k.eps);
    const float delta = PARLEY_SQRT(b + k.eps) / std * g;
    b = k.keep * b + (k.take * delta) * delta;
    return w + k.minus_lr * delta;
  }
};

// kCentered: slot 1 is the gradient average; kMomentum: the last slot is the momentum buffer.
template <bool kCentered, bool kMomentum>
struct RmsPropRule {
  static constexpr int kSlots = 1 + (kCentered ? 1 : 0) + (kMomentum ? 1 : 0);
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float& b,
                                   float& c) {
    a = k.keep * a + (k.take * g) * g;
    float variance = a;
    if (kCentered) {
      b = k.keep * b + k.take * g;
      variance = a - b * b;
    }
    const float avg = PARLEY_SQRT(variance) + k.eps;
    if (!kMomentum) return w + (k.minus_lr * g) / avg;
    float& buffer = kCentered ? c : b;
    buffer = k.momentum * buffer + g / avg;
    return w + k.minus_lr * buffer;
  }
};

template <bool kAmsgrad>
struct AdamRule {
  static constexpr int kSlots = kAmsgrad ? 3 : 2;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& a, float& b,
                                   float& c) {
    a = k.keep * a + k.take * g;
    b = k.keep_second * b + (k.take_second * g) * g;
    float second = b;
    if (kAmsgrad) {
      second = c > second ? c : second;
      c = second;
    }
    const float denominator = PARLEY_SQRT(second) / k.bias2_sqrt + k.eps;
    return w * k.weight_factor + (k.minus_lr * a) / denominator;
  }
};

// Algorithm 1 of McMahan et al. 2013, with the weight of the next round stored beside z and n
// instead of made from them when it is asked for.
struct FtrlRule {
  static constexpr int kSlots = 2;
  PARLEY_ELEMENT static float Next(const RuleScalars& k, float w, float g, float& z, float& n,
                                   float&) {
    const float squares = n + g * g;
    const float root = PARLEY_SQRT(squares);
    const float sigma = (root - PARLEY_SQRT(n)) / k.alpha;
    const float sum = (z + g) - sigma * w;
    n = squares;
    z = sum;
    const float beyond = sum < 0 ? sum + k.l1 : sum - k.l1;
    const float weight = -beyond / ((k.beta + root) / k.alpha + k.l2);
    // Written so that a z that is no number makes a weight that is none.
    return PARLEY_ABS(sum) <= k.l1 ? 0.0f : weight;
  }
};

// visitor.Visit<Rule>() of the rule of that name.
template <typename Visitor>
PARLEY_ELEMENT void VisitRule(UpdateRule rule, const Visitor& visitor) {
  switch (rule) {
    case UpdateRule::kSgd:
      return visitor.template Visit<SgdRule>();
    case UpdateRule::kSgdMomentum:
      return visitor.template Visit<SgdMomentumRule>();
    case UpdateRule::kSgdNesterov:
      return visitor.template Visit<SgdNesterovRule>();
    case UpdateRule::kAdagrad:
      return visitor.template Visit<AdagradRule>();
    case UpdateRule::kAdadelta:
      return visitor.template Visit<AdadeltaRule>();
    case UpdateRule::kRmsProp:
      return visitor.template Visit<RmsPropRule<false, false>>();
    case UpdateRule::kRmsPropMomentum:
      return visitor.template Visit<RmsPropRule<false, true>>();
    case UpdateRule::kRmsPropCentered:
      return visitor.template Visit<RmsPropRule<true, false>>();
    case UpdateRule::kRmsPropCenteredMomentum:
      return visitor.template Visit<RmsPropRule<true, true>>();
    case UpdateRule::kAdam:
      return visitor.template Visit<AdamRule<false>>();
    case UpdateRule::kAdamAmsgrad:
      return visitor.template Visit<AdamRule<true>>();
    case UpdateRule::kFtrl:
      return visitor.template Visit<FtrlRule>();
    case UpdateRule::kRowAdagrad:  // knows rows, not elements
      return;
  }
}
