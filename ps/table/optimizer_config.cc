#include "ps/table/optimizer_config.h"

#include <cmath>
#include <initializer_list>

#include "absl/strings/str_format.h"
#include "ps/table/schedule.h"

namespace parley {
namespace {

struct Field {
  const char* name;  // below "optimizer."
  float value;
  enum { kNotNegative, kFraction, kFractionBelowOne, kFinite } allowed;
};

absl::Status Check(const Field& field) {
  const float v = field.value;
  const char* allowed = nullptr;
  switch (field.allowed) {
    case Field::kNotNegative:
      if (!(v >= 0) || !std::isfinite(v)) allowed = "0 or more, finite";
      break;
    case Field::kFraction:
      if (!(v >= 0 && v <= 1)) allowed = "0 to 1";
      break;
    case Field::kFractionBelowOne:
      if (!(v >= 0 && v < 1)) allowed = "0 up to, not including, 1";
      break;
    case Field::kFinite:
      if (!std::isfinite(v)) allowed = "any finite number";
      break;
  }
  if (allowed == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("optimizer.%s is %g; allowed: %s", field.name, v, allowed));
}

absl::Status CheckAll(std::initializer_list<Field> fields) {
  for (const Field& field : fields) {
    if (absl::Status status = Check(field); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckSgd(const pb::Sgd& sgd) {
  absl::Status status = CheckAll({{"sgd.momentum", sgd.momentum(), Field::kNotNegative},
                                  {"sgd.dampening", sgd.dampening(), Field::kFinite}});
  if (!status.ok()) return status;
  if (sgd.nesterov() && (sgd.momentum() == 0 || sgd.dampening() != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("optimizer.sgd.nesterov is true with momentum %g and dampening %g; "
                        "allowed: with a momentum above 0 and a dampening of 0",
                        sgd.momentum(), sgd.dampening()));
  }
  return absl::OkStatus();
}

absl::Status CheckRule(const pb::Optimizer& config) {
  switch (config.rule_case()) {
    case pb::Optimizer::kSgd:
      return CheckSgd(config.sgd());
    case pb::Optimizer::kAdagrad:
      return CheckAll({{"adagrad.eps", config.adagrad().eps(), Field::kNotNegative},
                       {"adagrad.lr_decay", config.adagrad().lr_decay(), Field::kNotNegative},
                       {"adagrad.initial_accumulator", config.adagrad().initial_accumulator(),
                        Field::kNotNegative}});
    case pb::Optimizer::kAdadelta:
      return CheckAll({{"adadelta.rho", config.adadelta().rho(), Field::kFraction},
                       {"adadelta.eps", config.adadelta().eps(), Field::kNotNegative}});
    case pb::Optimizer::kRmsprop:
      return CheckAll({{"rmsprop.alpha", config.rmsprop().alpha(), Field::kFraction},
                       {"rmsprop.eps", config.rmsprop().eps(), Field::kNotNegative},
                       {"rmsprop.momentum", config.rmsprop().momentum(), Field::kNotNegative}});
    case pb::Optimizer::kAdam:
      return CheckAll({{"adam.beta1", config.adam().beta1(), Field::kFractionBelowOne},
                       {"adam.beta2", config.adam().beta2(), Field::kFractionBelowOne},
                       {"adam.eps", config.adam().eps(), Field::kNotNegative}});
    case pb::Optimizer::kAdamw:
      return CheckAll({{"adamw.beta1", config.adamw().beta1(), Field::kFractionBelowOne},
                       {"adamw.beta2", config.adamw().beta2(), Field::kFractionBelowOne},
                       {"adamw.eps", config.adamw().eps(), Field::kNotNegative}});
    case pb::Optimizer::kFtrl:
    case pb::Optimizer::kRowAdagrad:
      return absl::InvalidArgumentError(
          "optimizer: ftrl and row_adagrad are rules for the rows of sparse tables; dense tables "
          "take sgd, adagrad, adadelta, rmsprop, adam, adamw");
    case pb::Optimizer::RULE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "optimizer has no rule; set one of sgd, adagrad, adadelta, rmsprop, adam, adamw");
}

// What every rule has.
absl::Status CheckCommon(const pb::Optimizer& config) {
  absl::Status status = CheckAll({{"lr", config.lr(), Field::kNotNegative},
                                  {"weight_decay", config.weight_decay(), Field::kNotNegative},
                                  {"clip_value", config.clip_value(), Field::kNotNegative},
                                  {"clip_norm", config.clip_norm(), Field::kNotNegative}});
  if (!status.ok()) return status;
  return CheckSchedule(config.schedule());
}

}  // namespace

absl::Status CheckOptimizer(const pb::Optimizer& config) {
  absl::Status status = CheckRule(config);
  return status.ok() ? CheckCommon(config) : status;
}

absl::Status CheckRowOptimizer(const pb::Optimizer& config) {
  absl::Status status;
  if (config.has_ftrl()) {
    status = CheckAll({{"ftrl.beta", config.ftrl().beta(), Field::kNotNegative},
                       {"ftrl.l1", config.ftrl().l1(), Field::kNotNegative},
                       {"ftrl.l2", config.ftrl().l2(), Field::kNotNegative}});
  } else if (config.has_row_adagrad()) {
    const pb::RowAdagrad& rule = config.row_adagrad();
    status = CheckAll(
        {{"row_adagrad.eps", rule.eps(), Field::kNotNegative},
         {"row_adagrad.initial_accumulator", rule.initial_accumulator(), Field::kNotNegative}});
  } else {
    status = CheckRule(config);
  }
  return status.ok() ? CheckCommon(config) : status;
}

}  // namespace parley
