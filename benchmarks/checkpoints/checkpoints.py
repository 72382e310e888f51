#!/usr/bin/env python3
"""What does writing a checkpoint every 50 steps cost, and does every number of servers restore the same weights?

    benchmarks/checkpoints/checkpoints.py [--bin build/release/bin] [--rounds 5] [--every 50] [--json FILE]

Trains the ConvNet on a slice of Fashion-MNIST with and without checkpoints, in turns, so that a drifting machine meets both
alike; the cost is the median of the rounds' ratios of training time. Then an interrupted run is resumed on 1, 2 and 4 servers:
the weights must be those of the run that was not interrupted. Prints one JSON. Standard library only.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiments" / "fashion_convnet.textproto"
AIM = 1.05


def run(args, run_dir, *words):
    command = [args.bin / "parley", "run", *words, "--run-dir", run_dir]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"checkpoints.py: {' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return json.loads((run_dir / "summary.json").read_text())


def settings(args, *more):
    sets = [f"data.train_limit={args.samples}", "data.test_limit=500", "training.epochs=1000", "training.evaluate=false",
            f"training.max_steps={args.steps}", *more]
    return [word for change in sets for word in ("--set", change)]


def cost(args, place):
    every = f"checkpoints.every_steps={args.every}"
    rounds = []
    for number in range(args.rounds):
        seconds = {}
        order = ("with", "without") if number % 2 else ("without", "with")
        for name in order:
            summary = run(args, place / f"{name}-{number}", EXPERIMENT, *settings(args, *([every] if name == "with" else [])))
            seconds[name] = summary["train_seconds"]
            written = summary["checkpoints"] if name == "with" else 0
            if name == "with":
                seconds["checkpoints"] = written
        seconds["ratio"] = seconds["with"] / seconds["without"]
        rounds.append(seconds)
        print(f"round {number + 1} of {args.rounds}: {seconds}", file=sys.stderr, flush=True)
    return {"rounds": rounds, "ratio_median": statistics.median(r["ratio"] for r in rounds), "ratio_aim": AIM}


def restores(args, place):
    """The same end from a checkpoint in the middle, on any number of servers."""
    whole = run(args, place / "whole", EXPERIMENT, *settings(args))["weights_sha256"]
    half = settings(args, f"training.max_steps={args.steps // 2}", "checkpoints.at_end=true")
    run(args, place / "half", EXPERIMENT, *half)
    found = {}
    for servers in (1, 2, 4):
        summary = run(args, place / f"resumed-{servers}", "--resume", place / "half", "--set", f"cluster.servers={servers}",
                      "--set", f"training.max_steps={args.steps}")
        found[servers] = summary["weights_sha256"]
        print(f"restored onto {servers} servers: {found[servers]}", file=sys.stderr, flush=True)
    return {"whole": whole, "restored": found, "same": set(found.values()) == {whole}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "release" / "bin", help="where the programs are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--samples", type=int, default=12800)
    parser.add_argument("--json", type=pathlib.Path, help="write the result here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parley-checkpoints-") as directory:
        place = pathlib.Path(directory)
        result = {"benchmark": "checkpoints", "experiment": EXPERIMENT.name, "steps": args.steps, "every_steps": args.every,
                  "samples": args.samples, "disk": str(place), "cost": cost(args, place), "restore": restores(args, place)}
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.json:
        args.json.write_text(text)
    return 0 if result["restore"]["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
