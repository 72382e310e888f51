#!/usr/bin/env python3
"""What of a GPU's speed is left when the weights live on a parameter server?

    benchmarks/gpu/gpu_cluster.py                     ConvNet and perceptron, one server and one GPU worker each: 5 min
    benchmarks/gpu/gpu_cluster.py --only mlp          or convnet
    benchmarks/gpu/gpu_cluster.py --simulated         no GPU: tries this program on tiny sizes, measures nothing

The ConvNet is trained on Fashion-MNIST for its test accuracy. The perceptron of experiments/mlp_4096.textproto is
timed by its own metrics, with the weights in the GPU's memory and in the host's, beside the same step in PyTorch
(torch_step.py) and the step without a server (gpu_bench), in turns. Prints one JSON; progress goes to stderr.
README.md of the folder above says what each number means. Standard library only.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "vs_torch"))
import harness  # noqa: E402

PLACEMENTS = ("GPU", "HOST")
WARM_UP_EPOCHS = 3
EPOCH_STEPS = 4
harness.EXPERIMENTS["mlp_4096"] = os.path.join(harness.REPOSITORY, "experiments", "mlp_4096.textproto")
# What makes the experiment small enough for the host; the layers keep their number.
TINY = ["data.synthetic.width=64", "data.synthetic.train_samples=32"] + [
    f"model.layer[{index}].linear.out=64" for index in (1, 3, 5, 7)]


def say(line):
    print(line, file=sys.stderr, flush=True)


def run_json(command, what):
    """What a program of ours printed; None, and why, if it has nothing to measure with (exit code 3)."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=harness.clean_environment(),
                          cwd=harness.REPOSITORY)
    if done.returncode == 3:
        return None
    if done.returncode != 0:
        raise harness.BenchmarkError(f"{what} ended with exit code {done.returncode}")
    return json.loads(done.stdout)


def settings(args):
    return ["compute.device=" + ("CUDA_SIMULATED" if args.simulated else "CUDA"), "compute.gpu_math=TF32"] + args.parley_set


def convnet(args):
    overrides = settings(args) + [f"data.idx.directory={args.data}"]
    if args.simulated:
        overrides += ["data.train_limit=64", "data.test_limit=32", "training.global_batch=32"]
    epochs = 1 if args.simulated else args.epochs
    say(f"convnet: {epochs} epochs of Fashion-MNIST")
    summary = harness.run_parley(args.bin, "convnet", epochs, overrides, servers=1, workers=1)
    say(f"convnet: test accuracy {summary['test_accuracy']:.4f}, {summary['samples_per_second']:.0f} samples/s")
    return {"epochs": epochs, "test_accuracy": summary["test_accuracy"],
            "samples_per_second": summary["samples_per_second"],
            "epoch_seconds": [epoch["train_seconds"] for epoch in summary["epochs"]],
            "weights_sha256": summary["weights_sha256"]}


def mlp_run(args, placement, batch):
    """Milliseconds of a step in one run, the median of its warm epochs."""
    overrides = settings(args) + [f"compute.placement={placement}"]
    if args.simulated:
        overrides += TINY
    overrides += [f"training.global_batch={batch}", f"data.train_limit={EPOCH_STEPS * batch}"]
    epochs = WARM_UP_EPOCHS + (2 if args.simulated else args.warm_epochs)
    summary = harness.run_parley(args.bin, "mlp_4096", epochs, overrides, servers=1, workers=1)
    warm = summary["epochs"][WARM_UP_EPOCHS:]

    def milliseconds(name):
        return 1000 * statistics.median(epoch[name] for epoch in warm) / EPOCH_STEPS

    return {"step_ms": milliseconds("train_seconds"), "compute_ms": milliseconds("compute_seconds"),
            "wait_ms": milliseconds("wait_seconds"), "server_update_ms": 1000 * summary["apply_seconds"] / summary["steps"],
            "bytes_pushed": summary["bytes_pushed"] / summary["steps"],
            "bytes_pulled": summary["bytes_pulled"] / summary["steps"], "transport": summary["transport"]}


def middle(runs):
    """Medians over runs, by name; what is no number is the first's."""
    return {name: statistics.median(run[name] for run in runs) if isinstance(value, (int, float)) else value
            for name, value in runs[0].items()}


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def local_steps(args):
    """Milliseconds of the step without a server, with the whole batch and with one sample."""
    if args.local:
        try:
            with open(args.local, encoding="utf-8") as file:
                result = json.load(file)
        except (OSError, ValueError) as error:
            raise harness.BenchmarkError(f"--local {args.local}: {error}") from error
    else:
        say("mlp_4096: the step without a server")
        command = [os.path.join(args.bin, "gpu_bench"), "--quick"]
        result = run_json(command + (["--device", "simulated"] if args.simulated else []), "gpu_bench")
    steps = {case["batch"]: case["step"]["median_ms"] for case in result["cases"]
             if case["model"] == "mlp_4096" and case["math"] == "TF32"}
    if len(steps) != 2:
        raise harness.BenchmarkError("gpu_bench did not measure mlp_4096 in TF32")
    return steps[max(steps)], steps[min(steps)]


def torch_round(args):
    command = [args.python, os.path.join(HERE, "torch_step.py"), "--models", "mlp_4096", "--math", "TF32"]
    result = None if args.simulated else run_json(command + (["--quick"] if args.quick else []), "torch_step.py")
    return result and result["cases"][0]


def judge(runs, ones, local, local_one, torch):
    """One placement. README.md, "Reading gpu-*.json", defines the shares."""
    entry, one = middle(runs), middle(ones)
    alone = one["step_ms"] - local_one
    entry.update({
        "step_ms_by_run": spread([run["step_ms"] for run in runs]),
        "one_sample": one,
        "communication_alone_ms": alone,
        "communication_hidden": 1 - (entry["step_ms"] - local) / alone if alone > 0 else None,
        "communication_hidden_by_wait": 1 - entry["wait_ms"] / alone if alone > 0 else None,
        "ratio_to_local": entry["step_ms"] / local,
    })
    if torch:
        entry["ratio_to_torch"] = entry["step_ms"] / statistics.median(torch)
        ratios = [run["step_ms"] / other for run, other in zip(runs, torch)]
        entry["ratio_to_torch_by_run"] = spread(ratios)
    return entry


def mlp(args):
    batch = 8 if args.simulated else 4096
    local, local_one = local_steps(args)
    runs = {placement: [] for placement in args.placements}
    ones = {placement: [] for placement in args.placements}
    torch, torch_resident = [], []
    for number in range(args.runs):
        # Neighbours in time are compared: a GPU that grows warm slows all of them down.
        other = torch_round(args)
        if other:
            torch.append(other["step"]["median_ms"])
            torch_resident.append(other["resident_step"]["median_ms"])
        for placement in args.placements:
            runs[placement].append(mlp_run(args, placement, batch))
            ones[placement].append(mlp_run(args, placement, 1))
            say(f"mlp_4096 round {number + 1} of {args.runs}: placement {placement}, "
                f"{runs[placement][-1]['step_ms']:.3f} ms a step, {runs[placement][-1]['wait_ms']:.3f} of it waiting; "
                f"with one sample {ones[placement][-1]['step_ms']:.3f} ms")
    result = {"batch": batch, "math": "TF32", "local_step_ms": local, "local_one_sample_step_ms": local_one,
              "torch_step_ms": spread(torch) if torch else None,
              "torch_resident_step_ms": spread(torch_resident) if torch else None, "placements": {}}
    for placement in args.placements:
        entry = judge(runs[placement], ones[placement], local, local_one, torch)
        result["placements"][placement] = entry
        hidden = entry["communication_hidden"]
        say(f"mlp_4096, placement {placement}: {entry['step_ms']:.3f} ms, {entry['ratio_to_local']:.2f} of the local step"
            + (f", {entry['ratio_to_torch']:.2f} of PyTorch's" if torch else "")
            + (f", {hidden:.0%} of the communication hidden" if hidden is not None else ""))
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(harness.REPOSITORY, "build", "release", "bin"), metavar="DIR",
                        help="where parley, parley-* and gpu_bench are (default: build/release/bin)")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has torch (default: this one)")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", metavar="DIR")
    parser.add_argument("--local", metavar="FILE", help="a result of gpu_bench; without it gpu_bench is run")
    parser.add_argument("--only", choices=("convnet", "mlp"))
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help="comma-separated (default: GPU,HOST)")
    parser.add_argument("--epochs", type=int, default=5, help="of the ConvNet (default: 5)")
    parser.add_argument("--warm-epochs", type=int, default=25,
                        help=f"of the perceptron, {EPOCH_STEPS} steps each, that are timed (default: 25)")
    parser.add_argument("--runs", type=int, default=3, help="of the perceptron (default: 3)")
    parser.add_argument("--parley-set", action="append", default=[], metavar="A.B=C",
                        help="a field of both experiments, as in compute.gpu_graphs=true")
    parser.add_argument("--quick", action="store_true", help="--runs 1 --warm-epochs 5: does it work?")
    parser.add_argument("--simulated", action="store_true", help="tiny sizes on the simulated GPU; measures nothing")
    args = parser.parse_args()
    if args.quick or args.simulated:
        args.runs, args.warm_epochs = 1, 5
    args.placements = args.placements.split(",")
    for word in args.placements:
        if word not in PLACEMENTS:
            parser.error(f"--placements has '{word}', allowed is {', '.join(PLACEMENTS)}")
    for program in ("parley", "parley-scheduler", "parley-server", "parley-worker"):
        if not os.access(os.path.join(args.bin, program), os.X_OK):
            raise harness.BenchmarkError(f"{program} is not in {args.bin}: build it, or give --bin DIR")
    if args.only != "mlp" and not os.path.isfile(os.path.join(args.data, harness.DATA_FILES[0])):
        raise harness.BenchmarkError(f"{harness.DATA_FILES[0]} is not in {args.data}: install dataset-fashion-mnist, or "
                                     "give --data DIR")
    return args


def main():
    args = parse_arguments()
    result = {"benchmark": "gpu_cluster", "simulated": args.simulated, "quick": args.quick, "servers": 1, "workers": 1,
              "parley_overrides": args.parley_set}
    if args.only != "mlp":
        result["convnet"] = convnet(args)
    if args.only != "convnet":
        result["mlp_4096"] = mlp(args)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    try:
        main()
    except harness.BenchmarkError as error:
        harness.fail(error)
    except KeyboardInterrupt:
        harness.fail("interrupted")
