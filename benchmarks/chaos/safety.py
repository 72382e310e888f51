#!/usr/bin/env python3
"""What does it cost a run in which nothing dies that something may, and how long does a resize stop it?

    benchmarks/chaos/safety.py [--bin build/release/bin] [--rounds 5] [--resizes 10] [--json FILE]

Trains the ConvNet on a slice of Fashion-MNIST on 2 servers with 2 workers: as it is set at first (no copies, worker_loss
REPLACE); with one copy of each partition; and with SKIP, for which servers do not keep what a step overwrote. All in turns, the
order reversed every second round, so that a drifting machine meets them alike; a cost is the median of the rounds' ratios of
training time. Then one run is resized from 2 servers to 3 and back, again and again; the times are those that `parley resize`
tells of the partition that stood still for longest. Prints one JSON. Standard library only.
"""
import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "fashion_convnet.textproto"
VARIANTS = {"plain": (), "one copy": ("cluster.replicas=1",), "skip": ("cluster.worker_loss=SKIP",)}
LONGEST = re.compile(r"(\d+) partitions moved, none stood still for more than ([0-9.]+) ms")


def words(args, *more):
    sets = ["cluster.servers=2", "cluster.workers=2", f"data.train_limit={args.samples}", "data.test_limit=500",
            "training.epochs=100000", "training.evaluate=false", *more]
    return [word for change in sets for word in ("--set", change)]


def command(args, run_dir, *more):
    return [str(word) for word in (args.bin / "parley", "run", EXPERIMENT, "--run-dir", run_dir, *more)]


def train(args, run_dir, sets):
    argv = command(args, run_dir, *words(args, f"training.max_steps={args.steps}", *sets))
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"safety.py: {' '.join(argv)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads((run_dir / "summary.json").read_text())


def costs(args, place):
    rounds = []
    for number in range(args.rounds):
        order = list(VARIANTS) if number % 2 == 0 else list(VARIANTS)[::-1]
        seconds = {}
        for name in order:
            seconds[name] = train(args, place / f"{name.replace(' ', '-')}-{number}", VARIANTS[name])["train_seconds"]
        rounds.append(seconds)
        print(f"round {number + 1} of {args.rounds}: {seconds}", file=sys.stderr, flush=True)

    def ratio(name, base):
        return round(statistics.median(r[name] / r[base] for r in rounds), 4)

    return {"rounds": rounds, "one_copy_over_plain": ratio("one copy", "plain"), "replace_over_skip": ratio("plain", "skip")}


def until(run, condition, what):
    end = time.monotonic() + 60
    while not condition():
        if run.poll() is not None or time.monotonic() > end:
            sys.exit(f"safety.py: {what} did not come within 60 s, or the run ended")
        time.sleep(0.05)


def resizes(args, place):
    run_dir = place / "resized"
    # One that is let go ends, and nobody starts it again.
    argv = command(args, run_dir, "--spare-servers", (args.resizes + 1) // 2, *words(args))
    run = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    found = []
    try:
        metrics = run_dir / "metrics.jsonl"
        until(run, lambda: metrics.exists() and '"type":"progress"' in metrics.read_text().replace(" ", ""), "training")
        for number in range(args.resizes):
            servers = 3 if number % 2 == 0 else 2
            said = subprocess.run([str(args.bin / "parley"), "resize", "--servers", str(servers), str(run_dir)],
                                  capture_output=True, text=True, check=False)
            match = LONGEST.search(said.stdout)
            if said.returncode != 0 or match is None:
                sys.exit(f"safety.py: parley resize to {servers}: {said.stdout}{said.stderr}")
            pause = float(match[2]) / 1000
            found.append({"servers": servers, "moved": int(match[1]), "longest_pause_s": round(pause, 4)})
            print(f"resize {number + 1} of {args.resizes}: {found[-1]}", file=sys.stderr, flush=True)
            time.sleep(1)
    finally:
        if run.poll() is None:
            os.kill(run.pid, signal.SIGINT)
            run.wait(60)
    pauses = [r["longest_pause_s"] for r in found]
    return {"resizes": found, "median_s": statistics.median(pauses), "worst_s": max(pauses)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "release" / "bin", help="where the programs are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resizes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=12800)
    parser.add_argument("--json", type=pathlib.Path, help="write the result here")
    args = parser.parse_args()
    args.bin = args.bin.resolve()
    with tempfile.TemporaryDirectory(prefix="parley-safety-") as directory:
        place = pathlib.Path(directory)
        result = {"benchmark": "safety", "experiment": EXPERIMENT.name, "steps": args.steps, "samples": args.samples,
                  "cores": os.cpu_count(), "cost": costs(args, place), "resize": resizes(args, place)}
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
