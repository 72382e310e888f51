#!/usr/bin/env python3
"""Does Parley learn as well as PyTorch? Test accuracies on Fashion-MNIST, the median of three seeds each.

    benchmarks/vs_torch/accuracy.py            about 5 minutes; exit code 1 if a model is not within a point

The ConvNet after 1 epoch (Adadelta, lr 0.5) and the MLP after 5 (SGD, lr 0.1), global batch 128: Parley with 2 workers
and 1 server, PyTorch in one process. Initial weights, data order and dropout masks differ with the seed and between
the two, so single runs differ by about a point; the medians should not. Prints one JSON; progress goes to stderr.
"""
import argparse
import statistics
import sys

import harness

EPOCHS = {"convnet": 1, "mlp": 5}
ALLOWED_DIFFERENCE = 0.01


def accuracy_of_parley(model, seed, args):
    overrides = [f"seed={seed}", f"data.idx.directory={args.data}"]
    if args.train_limit:
        overrides.append(f"data.train_limit={args.train_limit}")
    summary = harness.run_parley(args.bin, model, EPOCHS[model], overrides)
    return {"test_accuracy": summary["test_accuracy"], "weights_sha256": summary["weights_sha256"]}


def accuracy_of_torch(model, seed, args):
    run = harness.run_torch(args, model, EPOCHS[model], seed=seed, evaluate=True)
    return {"test_accuracy": run["test_accuracy"]}


def compare(model, args):
    report = {"epochs": EPOCHS[model], "global_batch": 128}
    for name, accuracy_of in (("parley", accuracy_of_parley), ("torch", accuracy_of_torch)):
        runs = []
        for seed in range(1, args.seeds + 1):
            run = accuracy_of(model, seed, args)
            runs.append({"seed": seed, **run})
            print(f"{model} seed {seed}: {name} {run['test_accuracy']:.4f}", file=sys.stderr, flush=True)
        report[name] = {"median": round(statistics.median(run["test_accuracy"] for run in runs), 4), "runs": runs}
    difference = report["parley"]["median"] - report["torch"]["median"]
    report["difference"] = round(difference, 4)
    report["allowed_difference"] = ALLOWED_DIFFERENCE
    report["ok"] = abs(difference) <= ALLOWED_DIFFERENCE
    return report


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_common_arguments(parser, "benchmarks/results/accuracy.json")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model and side, seeds 1..N (default: 3)")
    parser.add_argument("--models", default="convnet,mlp", help="comma-separated (default: convnet,mlp)")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds is {args.seeds}, allowed is 1 and more")
    args.models = args.models.split(",")
    for model in args.models:
        if model not in EPOCHS:
            parser.error(f"--models has '{model}', allowed is {', '.join(EPOCHS)}")
    return args


def main():
    args = parse_arguments()
    harness.check_ready(args)
    result = {"benchmark": "accuracy",
              "question": "does Parley reach PyTorch's test accuracy with the same model, optimizer and batch?",
              "conditions": harness.conditions(args), "models": {}}
    result["conditions"].update({"parley_workers": 2, "parley_servers": 1, "torch_processes": 1})
    for model in args.models:
        result["models"][model] = compare(model, args)
    harness.publish(result, args.out)
    return 0 if all(report["ok"] for report in result["models"].values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except harness.BenchmarkError as error:
        harness.fail(error)
    except KeyboardInterrupt:
        harness.fail("interrupted")
