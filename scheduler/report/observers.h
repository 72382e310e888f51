// Observers: hands everything on to several observers, in their order. Thread-safety as
// RunObserver.
#ifndef PARLEY_SCHEDULER_REPORT_OBSERVERS_H_
#define PARLEY_SCHEDULER_REPORT_OBSERVERS_H_

#include <string>
#include <utility>
#include <vector>

#include "scheduler/report/run_observer.h"

namespace parley {

class Observers : public RunObserver {
 public:
  // All must outlive this.
  explicit Observers(std::vector<RunObserver*> observers) : observers_(std::move(observers)) {}

  void OnStart(const std::string& job, const pb::Experiment& resolved) override {
    for (RunObserver* observer : observers_) observer->OnStart(job, resolved);
  }
  void OnEvent(const std::string& line) override {
    for (RunObserver* observer : observers_) observer->OnEvent(line);
  }
  void OnProgress(const RunProgress& progress) override {
    for (RunObserver* observer : observers_) observer->OnProgress(progress);
  }
  void OnEpoch(const EpochMetrics& metrics) override {
    for (RunObserver* observer : observers_) observer->OnEpoch(metrics);
  }
  void OnFinish(const RunSummary& summary) override {
    for (RunObserver* observer : observers_) observer->OnFinish(summary);
  }

 private:
  const std::vector<RunObserver*> observers_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_OBSERVERS_H_
