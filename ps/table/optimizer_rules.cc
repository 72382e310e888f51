#include "ps/table/optimizer_rules.h"

#include <cmath>

#include "ps/table/decimal.h"
#include "ps/table/fixed_math.h"

namespace parley {

UpdateRule RuleOf(const pb::Optimizer& config) {
  switch (config.rule_case()) {
    case pb::Optimizer::kSgd:
      if (config.sgd().momentum() == 0) return UpdateRule::kSgd;
      return config.sgd().nesterov() ? UpdateRule::kSgdNesterov : UpdateRule::kSgdMomentum;
    case pb::Optimizer::kAdagrad:
      return UpdateRule::kAdagrad;
    case pb::Optimizer::kAdadelta:
      return UpdateRule::kAdadelta;
    case pb::Optimizer::kRmsprop:
      if (config.rmsprop().centered()) {
        return config.rmsprop().momentum() > 0 ? UpdateRule::kRmsPropCenteredMomentum
                                               : UpdateRule::kRmsPropCentered;
      }
      return config.rmsprop().momentum() > 0 ? UpdateRule::kRmsPropMomentum : UpdateRule::kRmsProp;
    case pb::Optimizer::kAdam:
      return config.adam().amsgrad() ? UpdateRule::kAdamAmsgrad : UpdateRule::kAdam;
    case pb::Optimizer::kFtrl:
      return UpdateRule::kFtrl;
    case pb::Optimizer::kRowAdagrad:
      return UpdateRule::kRowAdagrad;
    case pb::Optimizer::kAdamw:
    case pb::Optimizer::RULE_NOT_SET:  // refused by CheckOptimizer
      return UpdateRule::kAdam;
  }
  return UpdateRule::kAdam;
}

int SlotsOf(UpdateRule rule) {
  switch (rule) {
    case UpdateRule::kSgd:
    case UpdateRule::kRowAdagrad:
      return 0;
    case UpdateRule::kSgdMomentum:
    case UpdateRule::kSgdNesterov:
    case UpdateRule::kAdagrad:
    case UpdateRule::kRmsProp:
      return 1;
    case UpdateRule::kAdadelta:
    case UpdateRule::kRmsPropMomentum:
    case UpdateRule::kRmsPropCentered:
    case UpdateRule::kAdam:
    case UpdateRule::kFtrl:
      return 2;
    case UpdateRule::kRmsPropCenteredMomentum:
    case UpdateRule::kAdamAmsgrad:
      return 3;
  }
  return 0;
}

// Adam and AdamW have the same fields.
template <typename Config>
void RuleNumbers::SetAdam(const Config& adam) {
  beta1_ = DecimalOf(adam.beta1());
  beta2_ = DecimalOf(adam.beta2());
  constant_.keep = static_cast<float>(beta1_);
  constant_.take = static_cast<float>(1 - beta1_);
  constant_.keep_second = static_cast<float>(beta2_);
  constant_.take_second = static_cast<float>(1 - beta2_);
  constant_.eps = static_cast<float>(DecimalOf(adam.eps()));
}

RuleNumbers::RuleNumbers(const pb::Optimizer& config)
    : rule_(config.rule_case()), weight_decay_(DecimalOf(config.weight_decay())) {
  RuleScalars& k = constant_;
  switch (rule_) {
    case pb::Optimizer::kSgd:
      k.momentum = static_cast<float>(DecimalOf(config.sgd().momentum()));
      k.keep = k.momentum;
      k.take = static_cast<float>(1 - DecimalOf(config.sgd().dampening()));
      break;
    case pb::Optimizer::kAdagrad:
      lr_decay_ = DecimalOf(config.adagrad().lr_decay());
      k.eps = static_cast<float>(DecimalOf(config.adagrad().eps()));
      break;
    case pb::Optimizer::kAdadelta: {
      const double rho = DecimalOf(config.adadelta().rho());
      k.keep = static_cast<float>(rho);
      k.take = static_cast<float>(1 - rho);
      k.eps = static_cast<float>(DecimalOf(config.adadelta().eps()));
      break;
    }
    case pb::Optimizer::kRmsprop: {
      const double alpha = DecimalOf(config.rmsprop().alpha());
      k.keep = static_cast<float>(alpha);
      k.take = static_cast<float>(1 - alpha);
      k.momentum = static_cast<float>(DecimalOf(config.rmsprop().momentum()));
      k.eps = static_cast<float>(DecimalOf(config.rmsprop().eps()));
      break;
    }
    case pb::Optimizer::kAdam:
      SetAdam(config.adam());
      break;
    case pb::Optimizer::kAdamw:
      SetAdam(config.adamw());
      break;
    case pb::Optimizer::kFtrl:
      k.beta = config.ftrl().beta();
      k.l1 = config.ftrl().l1();
      k.l2 = config.ftrl().l2();
      break;
    case pb::Optimizer::kRowAdagrad:
      k.eps = static_cast<float>(DecimalOf(config.row_adagrad().eps()));
      break;
    case pb::Optimizer::RULE_NOT_SET:
      break;
  }
}

RuleScalars RuleNumbers::Scalars(double lr, uint64_t update) const {
  RuleScalars k = constant_;
  k.minus_lr = static_cast<float>(-lr);
  switch (rule_) {
    case pb::Optimizer::kSgd:
      // The first gradient enters the momentum buffer whole, without dampening; the slot, being
      // zero then, adds nothing.
      if (update <= 1) {
        k.keep = 0;
        k.take = 1;
      }
      break;
    case pb::Optimizer::kAdagrad:
      k.minus_lr = static_cast<float>(-(lr / (1 + (static_cast<double>(update) - 1) * lr_decay_)));
      break;
    case pb::Optimizer::kAdamw:
      k.weight_factor = static_cast<float>(1 - lr * weight_decay_);
      [[fallthrough]];
    case pb::Optimizer::kAdam:
      k.bias2_sqrt = static_cast<float>(std::sqrt(1 - IntegerPower(beta2_, update)));
      k.minus_lr = static_cast<float>(-(lr / (1 - IntegerPower(beta1_, update))));
      break;
    case pb::Optimizer::kFtrl:
      k.alpha = static_cast<float>(lr);
      break;
    default:
      break;
  }
  return k;
}

}  // namespace parley
