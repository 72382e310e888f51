#!/usr/bin/env python3
"""How long is an epoch over links of 1 Gbit/s, by payload codec, and at what accuracy?

    sudo benchmarks/gigabit/gigabit.py [--bin DIR] [--codecs none,top_k] [--epochs 5] [--json FILE]

Puts the scheduler, the servers and the workers of an experiment into network namespaces, a link each (network.py),
and trains with each codec in turn. Says the median epoch, the accuracy after the last, and the bytes that went through
the workers' interfaces beside those that `parley explain` foretells. Where namespaces are not allowed it says why and
skips, with exit code 0. Standard library only.
"""
import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone

from network import Network, NetworkError, missing

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
# By name: what of the experiment each changes. Codecs that keep what they lose travel both ways.
CODECS = {
    "none": [],
    "fp16": ["compression.push=fp16", "compression.pull=fp16"],
    "int8": ["compression.push=int8", "compression.pull=int8"],
    "one_bit": ["compression.push=one_bit", "compression.pull=one_bit"],
    "top_k": ["compression.push=top_k", "compression.pull=top_k"],
}
TIMEOUT_SECONDS = 600


class BenchmarkError(Exception):
    pass


def last_line(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "no output"


def explain(bin_dir, experiment, overrides, workers):
    """Bytes that `parley explain` says all workers push and pull in a step."""
    command = [os.path.join(bin_dir, "parley"), "explain", experiment]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"parley explain: {done.stderr.strip()}")
    wire = re.search(r"^\s+wire\s+(?:up to )?(\d+) B to servers and (\d+) B back, by each worker", done.stdout,
                     re.MULTILINE)
    if not wire:
        raise BenchmarkError("parley explain does not say what goes over the wire in a step")
    return (int(wire[1]) + int(wire[2])) * workers


def wait_for_file(path, process, log):
    for _ in range(1000):
        if os.path.exists(path) and os.path.getsize(path) > 0:
            with open(path, encoding="utf-8") as file:
                return file.readline().strip()
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise BenchmarkError(f"the scheduler does not start: {last_line(log)}")


def total(counters):
    return sum(c["payload"] for c in counters)


def watch(scheduler, metrics, log, count):
    """Until the scheduler ends: (steps done, payload bytes so far) as each epoch ends."""
    marks, seen, end = [], 0, time.monotonic() + TIMEOUT_SECONDS
    while scheduler.poll() is None:
        if time.monotonic() > end:
            raise BenchmarkError(f"no end after {TIMEOUT_SECONDS} s; the scheduler: {last_line(log)}")
        time.sleep(0.005)
        try:
            with open(metrics, encoding="utf-8") as file:
                epochs = [line for line in file if '"type": "epoch"' in line and line.endswith("\n")]
            if len(epochs) > seen:
                seen = len(epochs)
                marks.append((json.loads(epochs[-1])["step"], total(count())))
        except (OSError, NetworkError):
            continue  # not there yet, or gone already
    return marks


def train(args, codec, seed, directory):
    """One training in a network of its own; what it took."""
    overrides = [f"cluster.servers={args.servers}", f"cluster.workers={args.workers}", "cluster.transport=TCP",
                 f"training.epochs={args.epochs}", f"seed={seed}", *CODECS[codec], *args.set]
    if codec == "top_k" and args.top_k:
        overrides.append(f"compression.top_k={args.top_k}")
    if codec in ("int8", "one_bit") and args.block:
        overrides.append(f"compression.block={args.block}")
    foretold = explain(args.bin, args.experiment, overrides, args.workers)
    servers = [f"server-{i}" for i in range(args.servers)]
    workers = [f"worker-{i}" for i in range(args.workers)]
    run_dir, endpoint_file = os.path.join(directory, "run"), os.path.join(directory, "endpoint")
    log = lambda name: os.path.join(directory, name + ".log")
    program = lambda name: os.path.join(args.bin, name)
    with Network(["scheduler", *servers, *workers], args.rate) as network:
        command = [program("parley-scheduler"), "--experiment", args.experiment, "--run-dir", run_dir, "--quiet", "--insecure",
                   "--bind", f"tcp://{network.address('scheduler')}:0", "--endpoint-file", endpoint_file]
        for override in overrides:
            command += ["--set", override]
        scheduler = network.start("scheduler", command, log("scheduler"))
        endpoint = wait_for_file(endpoint_file, scheduler, log("scheduler"))
        for rank, name in enumerate(servers):
            network.start(name, [program("parley-server"), "--scheduler", endpoint, "--rank", str(rank), "--transport", "tcp",
                                 "--insecure", "--bind", f"tcp://{network.address(name)}:0"], log(name))
        for rank, name in enumerate(workers):
            network.start(name, [program("parley-worker"), "--scheduler", endpoint, "--rank", str(rank)], log(name))
        marks = watch(scheduler, os.path.join(run_dir, "metrics.jsonl"), log("scheduler"),
                      lambda: [network.counters(name) for name in workers])
        if scheduler.returncode != 0:
            raise BenchmarkError(f"the training with {codec} failed: {last_line(log('scheduler'))}")
        counters = [network.counters(name) for name in workers]
    with open(os.path.join(run_dir, "summary.json"), encoding="utf-8") as file:
        summary = json.load(file)
    # From the end of the first epoch to that of the last but one: what happens once (joining; the first pull, which
    # codecs that send changes make in float32; the last) is not a step's.
    first, last = (marks[0], marks[-2]) if len(marks) > 2 else ((0, 0), (summary["steps"], total(counters)))
    a_step = (last[1] - first[1]) / (last[0] - first[0])
    return {
        "epoch_seconds": [epoch["train_seconds"] for epoch in summary["epochs"]],
        "accuracy": summary["test_accuracy"],
        "steps": summary["steps"],
        "interface_bytes": sum(c["rx_bytes"] + c["tx_bytes"] for c in counters),
        "payload_bytes": total(counters),
        "payload_bytes_a_step": a_step,
        "foretold_bytes_a_step": foretold,
        "foretold_ratio": a_step / foretold,
        "compute_seconds": summary["compute_seconds"],
        "wait_seconds": summary["wait_seconds"],
        "overrides": overrides,
    }


def combine(codec, runs, plain):
    seconds = [second for run in runs for second in run["epoch_seconds"]]
    entry = {
        "codec": codec,
        "epoch_seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
                          "values": seconds},
        "accuracy": {"median": statistics.median(run["accuracy"] for run in runs),
                     "values": [run["accuracy"] for run in runs]},
        "runs": runs,
    }
    for key in ("payload_bytes_a_step", "foretold_bytes_a_step", "foretold_ratio"):
        entry[key] = statistics.median(run[key] for run in runs)
    if plain:
        entry["speedup"] = plain["epoch_seconds"]["median"] / entry["epoch_seconds"]["median"]
        entry["accuracy_loss_points"] = 100 * (plain["accuracy"]["median"] - entry["accuracy"]["median"])
        if codec in ("one_bit", "top_k"):
            entry["aim"] = {"speedup": 5, "accuracy_loss_points": 0.5, "foretold_within": 0.02,
                            "reached": entry["speedup"] >= 5 and entry["accuracy_loss_points"] <= 0.5}
    return entry


def conditions(args):
    cpu = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    checkout = subprocess.run(["git", "-C", REPOSITORY, "describe", "--always", "--dirty", "--exclude", "*"],
                              capture_output=True, text=True).stdout.strip() or "unknown"
    return {
        "cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "rate": args.rate,
        "network": "namespaces and veth pairs on a bridge, tbf on both ends of every link",
        "servers": args.servers, "workers": args.workers, "epochs": args.epochs, "seeds": args.seeds,
        "experiment": os.path.relpath(args.experiment, REPOSITORY), "set": args.set,
        "load_at_start": os.getloadavg()[0], "checkout": checkout,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(REPOSITORY, "build", "release", "bin"), metavar="DIR")
    parser.add_argument("--experiment", metavar="FILE",
                        default=os.path.join(REPOSITORY, "experiments", "fashion_mlp.textproto"))
    parser.add_argument("--codecs", default=",".join(CODECS), help=f"of {', '.join(CODECS)}; none is always first")
    parser.add_argument("--servers", type=int, default=1, help="each has a link; with more the load is spread")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each, with seeds 1, 2, ..")
    parser.add_argument("--top-k", type=float, default=0, help="share of elements that top_k keeps; else the default")
    parser.add_argument("--block", type=int, default=0, help="elements of one scale of int8 and one_bit")
    parser.add_argument("--rate", default="1gbit", help="of each link, both ways, as tc writes it")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="changes a field for all")
    parser.add_argument("--json", metavar="FILE", help="write the results here")
    args = parser.parse_args()
    args.codecs = ["none"] + [name for name in args.codecs.split(",") if name != "none"]
    for name in args.codecs:
        if name not in CODECS:
            parser.error(f"--codecs: unknown codec '{name}'; allowed: {', '.join(CODECS)}")
    for name in ("parley", "parley-scheduler", "parley-server", "parley-worker"):
        if not os.access(os.path.join(args.bin, name), os.X_OK):
            parser.error(f"--bin {args.bin}: there is no {name}; build Parley first, or say where it is")
    return args


def interrupted(signal_number, _frame):
    raise KeyboardInterrupt(signal_number)


def measure(args):
    results = []
    print(f"{args.servers} servers, {args.workers} workers, links of {args.rate}, {args.epochs} epochs")
    print(f"{'':10} {'epoch':>9} {'faster':>7} {'accuracy':>9} {'loss':>6} {'bytes a step':>13} {'of foretold':>12}")
    for codec in args.codecs:
        runs = []
        for seed in range(1, args.seeds + 1):
            with tempfile.TemporaryDirectory(prefix="parley-gbit-") as directory:
                runs.append(train(args, codec, seed, directory))
        entry = combine(codec, runs, results[0] if results else None)
        results.append(entry)
        faster = f"{entry['speedup']:.2f}x" if "speedup" in entry else ""
        loss = f"{entry['accuracy_loss_points']:+.2f}" if "accuracy_loss_points" in entry else ""
        print(f"{codec:10} {entry['epoch_seconds']['median']:8.3f}s {faster:>7} {entry['accuracy']['median']:9.4f} "
              f"{loss:>6} {entry['payload_bytes_a_step']:13,.0f} {entry['foretold_ratio']:12.3f}", flush=True)
    return results


def main():
    args = parse_args()
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        return 0
    signal.signal(signal.SIGTERM, interrupted)
    about = conditions(args)
    try:
        results = measure(args)
    except (BenchmarkError, NetworkError) as error:
        print(f"gigabit.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gigabit.py: interrupted", file=sys.stderr)
        return 130
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"benchmark": "gigabit", "conditions": about, "codecs": results}, file, indent=2)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
