#!/usr/bin/env python3
"""Puts the parts of tools/gpu-check together into one JSON, with a verdict on each demand.

    merge_results.py PARTS-DIR OUT [--name h200]

PARTS-DIR has conformance.json, sanitizer.json, step.json, torch.json, cluster.json, as far as those parts were run. A
verdict is {"demand", "figure", "limit", "ok"}; ok is null where its part was not run, or had nothing to measure with.
Exit code 1 if a verdict is false. Standard library only.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timezone

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
PARTS = ("conformance", "sanitizer", "step", "torch", "cluster")
GPU_FIELDS = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "pcie.link.gen.max",
              "pcie.link.width.max", "compute_mode", "persistence_mode", "mig.mode.current")

MIN_ACCURACY = 0.90
MAX_RATIO_TO_TORCH = 1.25
MIN_HIDDEN = 0.80


def printed(*command):
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              check=False).stdout.strip()
    except OSError:
        return ""


def cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def conditions():
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_now": round(os.getloadavg()[0], 2),
        "checkout": printed("git", "-C", REPOSITORY, "describe", "--always", "--dirty") or "unknown",
    }
    values = printed("nvidia-smi", "--query-gpu=" + ",".join(GPU_FIELDS), "--format=csv,noheader").splitlines()
    if values:
        found["gpus"] = [dict(zip(GPU_FIELDS, (value.strip() for value in line.split(",")))) for line in values]
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    release = [line for line in printed(nvcc, "--version").splitlines() if "release" in line]
    if release:
        found["nvcc"] = release[0].strip()
    return found


def at(part, *path):
    """A value deep in a part; None where anything on the way is missing."""
    for name in path:
        part = part.get(name) if isinstance(part, dict) else None
    return part


def verdict(demand, figure, limit, holds):
    return {"demand": demand, "figure": figure, "limit": limit, "ok": None if figure is None else bool(holds(figure))}


def verdicts(parts):
    gpu_placed = ("mlp_4096", "placements", "GPU")
    cluster = parts.get("cluster")
    result = [verdict("conformance tests that failed", at(parts.get("conformance"), "failed"), 0, lambda n: n == 0)]
    for tool in ("memcheck", "racecheck", "initcheck"):
        result.append(verdict(f"programs in which compute-sanitizer's {tool} found something",
                              at(parts.get("sanitizer"), tool, "failed"), 0, lambda n: n == 0))
    result += [
        verdict("ConvNet on Fashion-MNIST, 1 server and 1 GPU worker: test accuracy at least",
                at(cluster, "convnet", "test_accuracy"), MIN_ACCURACY, lambda a: a >= MIN_ACCURACY),
        verdict("MLP 4096x4 through the parameter server, step over PyTorch's local step, TF32: at most",
                at(cluster, *gpu_placed, "ratio_to_torch"), MAX_RATIO_TO_TORCH, lambda r: r <= MAX_RATIO_TO_TORCH),
        verdict("MLP 4096x4 through the parameter server, share of communication hidden: at least",
                at(cluster, *gpu_placed, "communication_hidden"), MIN_HIDDEN, lambda s: s >= MIN_HIDDEN),
    ]
    return result


def show(entry, simulated):
    state = {True: "holds", False: "FAILS", None: "not measured"}[entry["ok"]]
    if simulated and entry["ok"] is not None:
        state = "simulated"
    figure = entry["figure"]
    figure = f"{figure:.4g}" if isinstance(figure, (int, float)) else "-"
    print(f"{state:>12}  {entry['demand']}: {figure} (limit {entry['limit']})", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", metavar="PARTS-DIR")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--name", default="", help="of the GPU, for people")
    parser.add_argument("--complete", action="store_true", help="a demand that was not measured is not met")
    args = parser.parse_args()
    parts = {}
    for name in PARTS:
        path = os.path.join(args.parts, name + ".json")
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                parts[name] = json.load(file)
    simulated = any(part.get("simulated") for part in parts.values())
    judged = verdicts(parts)
    if simulated:  # speeds and accuracies of tiny sizes say nothing
        judged = [entry | {"ok": None} if "tests" not in entry["demand"] else entry for entry in judged]
    result = {"benchmark": "gpu", "name": args.name, "simulated": simulated, "conditions": conditions(),
              "verdicts": judged, **parts}
    temporary = args.out + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(temporary, args.out)
    for entry in judged:
        show(entry, simulated)
    return 1 if any(entry["ok"] is False or (args.complete and entry["ok"] is None) for entry in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
