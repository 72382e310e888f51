#!/usr/bin/env python3
"""The same epoch with Parley and with PyTorch's DistributedDataParallel: who takes how long, and what limits Parley.

    benchmarks/vs_torch/vs_torch.py                 5 runs each, 2 epochs a run, in turns: 15 to 30 minutes
    benchmarks/vs_torch/vs_torch.py --quick         1 run each, 1 epoch: does it work? Not a measurement

Peers: Parley with 2 workers and 1 server; DDP over Gloo with 2 processes, as Debian ships it and with its allocator
tuned; PyTorch in one process with 1 and 2 threads. Both models of experiments/: the ConvNet and the MLP. The peers run
one after the other, never at once, and each round begins with another one. Prints one JSON; progress goes to stderr.
"""
import argparse
import statistics
import sys
import time

import harness

GLOBAL_BATCH = 128
AIMS = {"convnet": 0.5, "mlp": 0.3}  # of tuned DDP's time
OPTIMIZERS = {"convnet": "Adadelta, lr 0.5, rho 0.9, eps 1e-6", "mlp": "SGD, lr 0.1"}
PEERS = {
    "parley": {"what": "Parley, 2 workers x 64 samples, 1 server, 1 compute thread a worker"},
    "ddp_tuned": {"what": "PyTorch DDP over Gloo, 2 processes x 64 samples, 1 thread each, tuned allocator",
                  "world": 2, "threads": 1, "tuned": True},
    "ddp_plain": {"what": "PyTorch DDP over Gloo, 2 processes x 64 samples, 1 thread each, allocator as shipped",
                  "world": 2, "threads": 1, "tuned": False},
    "torch_1t": {"what": "PyTorch, one process x 128 samples, 1 thread, tuned allocator",
                 "world": 1, "threads": 1, "tuned": True},
    "torch_2t": {"what": "PyTorch, one process x 128 samples, 2 threads, tuned allocator",
                 "world": 1, "threads": 2, "tuned": True},
}


def run_peer(peer, model, epochs, args):
    """One run: seconds by epoch, CPU seconds and waits of all processes; for Parley also its summary."""
    if peer == "parley":
        # A small test set: evaluation is not timed, but makes Parley wait for the last update, which is.
        overrides = ["data.test_limit=1000", f"data.idx.directory={args.data}"] + args.parley_set
        if args.train_limit:
            overrides.append(f"data.train_limit={args.train_limit}")
        summary = harness.run_parley(args.bin, model, epochs, overrides)
        return {"epoch_seconds": [epoch["train_seconds"] for epoch in summary["epochs"]],
                "cpu_seconds_all": summary["cpu_seconds_all"], "context_switches": summary["context_switches"],
                "summary": summary}
    setup = PEERS[peer]
    return harness.run_torch(args, model, epochs, setup["world"], setup["threads"], setup["tuned"])


def measure(model, peers, epochs, args):
    runs = {peer: [] for peer in peers}
    for round_number in range(args.runs):
        # A drifting machine (heat, neighbours) meets everybody alike.
        first = round_number % len(peers)
        for peer in peers[first:] + peers[:first]:
            begin = time.monotonic()
            run = run_peer(peer, model, epochs, args)
            runs[peer].append(run)
            took = ", ".join(f"{seconds:.2f}" for seconds in run["epoch_seconds"])
            print(f"{model} round {round_number + 1} of {args.runs}: {peer} {took} s an epoch "
                  f"({time.monotonic() - begin:.0f} s in all)", file=sys.stderr, flush=True)
    return runs


def describe(seconds):
    return {"all": [round(s, 4) for s in seconds], "median": round(statistics.median(seconds), 4),
            "min": round(min(seconds), 4), "max": round(max(seconds), 4)}


def compare(runs, epoch, other):
    """Parley's time over another's in one epoch: the ratio of medians, and the range of the ratios within a round."""
    ours = [run["epoch_seconds"][epoch] for run in runs["parley"]]
    theirs = [run["epoch_seconds"][epoch] for run in runs[other]]
    rounds = [a / b for a, b in zip(ours, theirs)]
    return {"ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 4),
            "by_round_min": round(min(rounds), 4), "by_round_max": round(max(rounds), 4)}


def limits(runs, epoch):
    """Where the time of Parley's epoch went, in medians of its own metrics.

    A worker either computes or waits for weights, and the waiting is split: while the busiest server was in its update
    pass, that is the server's share; the rest is the wire, which here means messages, hand-offs between threads and
    processes, and waiting for the other worker. `apply_seconds` is known for the whole run only and shared out evenly.
    """
    def median(value):
        return statistics.median(value(run["summary"]) for run in runs)

    def of_epoch(name):
        return median(lambda s: s["epochs"][epoch][name])

    train, compute, wait = (of_epoch(name) for name in ("train_seconds", "compute_seconds", "wait_seconds"))
    apply = min(wait, median(lambda s: s["apply_seconds"] / len(s["epochs"])))
    total = max(train, compute + wait)
    shares = {"compute": compute / total, "server": apply / total, "wire": (wait - apply) / total}
    shares["other"] = max(0.0, 1 - sum(shares.values()))
    steps = median(lambda s: s["steps"] / len(s["epochs"]))
    return {
        "largest": max(shares, key=shares.get),
        "shares": {name: round(share, 4) for name, share in shares.items()},
        "milliseconds_a_step": {"all": round(1000 * train / steps, 4), "compute": round(1000 * compute / steps, 4),
                                "wait": round(1000 * wait / steps, 4), "server_update": round(1000 * apply / steps, 4)},
        "bytes_a_step": {"pushed": round(median(lambda s: s["bytes_pushed"] / s["steps"])),
                         "pulled": round(median(lambda s: s["bytes_pulled"] / s["steps"]))},
        "rpc_retries": median(lambda s: s["rpc_retries"]),
    }


def report_model(model, runs, epochs):
    report = {"optimizer": OPTIMIZERS[model], "global_batch": GLOBAL_BATCH, "peers": {}}
    for peer, its_runs in runs.items():
        entry = {"what": PEERS[peer]["what"],
                 "first_epoch_seconds": describe([run["epoch_seconds"][0] for run in its_runs])}
        if epochs > 1:
            entry["warm_epoch_seconds"] = describe([run["epoch_seconds"][1] for run in its_runs])
        # Of whole runs: start, loading and Parley's evaluation are in here, too.
        entry["cpu_seconds_of_a_run"] = round(statistics.median(run["cpu_seconds_all"] for run in its_runs), 3)
        entry["waits_of_a_run"] = round(statistics.median(run["context_switches"] for run in its_runs))
        report["peers"][peer] = entry

    others = [peer for peer in runs if peer != "parley"]
    report["first_epoch_ratios"] = {f"parley/{other}": compare(runs, 0, other) for other in others}
    if epochs > 1:
        report["warm_epoch_ratios"] = {f"parley/{other}": compare(runs, 1, other) for other in others}
    if "ddp_tuned" in runs:
        aim = {"parley/ddp_tuned": AIMS[model]}
        for name in ("first_epoch_ratios", "warm_epoch_ratios"):
            if name in report:
                ratio = report[name]["parley/ddp_tuned"]["ratio_of_medians"]
                aim[name.replace("_ratios", "_reached")] = ratio <= AIMS[model]
        report["aim"] = aim
    report["parley_limits"] = limits(runs["parley"], epochs - 1)
    return report


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_common_arguments(parser, "benchmarks/results/vs_torch.json")
    parser.add_argument("--runs", type=int, default=5, help="of each peer and model (default: 5)")
    parser.add_argument("--epochs", type=int, default=2, help="of each run; the second is the warm one (default: 2)")
    parser.add_argument("--models", default="convnet,mlp", help="comma-separated (default: convnet,mlp)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"besides parley (default: {','.join(PEERS)})")
    parser.add_argument("--parley-set", action="append", default=[], metavar="A.B=C",
                        help="a field of Parley's experiment, as in cluster.transport=IPC")
    parser.add_argument("--allow-slow-blas", action="store_true",
                        help="go on with a torch on the reference BLAS; the ratios then say nothing")
    parser.add_argument("--quick", action="store_true",
                        help="--runs 1 --epochs 1 without the one-process peers, and no --out unless given")
    args = parser.parse_args()
    if args.quick:
        args.runs, args.epochs = 1, 1
        if args.peers == parser.get_default("peers"):
            args.peers = "parley,ddp_tuned,ddp_plain"
        if args.out == parser.get_default("out"):
            args.out = "-"
    for name, value in (("--runs", args.runs), ("--epochs", args.epochs)):
        if value < 1:
            parser.error(f"{name} is {value}, allowed is 1 and more")
    args.models, args.peers = args.models.split(","), args.peers.split(",")
    for given, known, name in ((args.models, AIMS, "--models"), (args.peers, PEERS, "--peers")):
        for word in given:
            if word not in known:
                parser.error(f"{name} has '{word}', allowed is {', '.join(known)}")
    if "parley" not in args.peers:
        args.peers.insert(0, "parley")
    return args


def main():
    args = parse_arguments()
    harness.check_ready(args)
    harness.check_blas(args)
    result = {"benchmark": "vs_torch",
              "question": "how long is an epoch with Parley, beside PyTorch DistributedDataParallel?",
              "conditions": harness.conditions(args)}
    result["conditions"].update({
        "runs": args.runs, "epochs_a_run": args.epochs, "quick": args.quick,
        "parley_overrides": args.parley_set, "torch_tuned_GLIBC_TUNABLES": harness.TUNED_MALLOC,
        "torch_transport": "gloo over loopback", "torch_environment": harness.torch_environment(tuned=False),
    })
    result["models"] = {}
    transports = set()
    for model in args.models:
        runs = measure(model, args.peers, args.epochs, args)
        transports.update(run["summary"]["transport"] for run in runs["parley"])
        result["models"][model] = report_model(model, runs, args.epochs)
    result["conditions"]["parley_transport"] = ", ".join(sorted(transports))
    harness.publish(result, args.out)


if __name__ == "__main__":
    try:
        main()
    except harness.BenchmarkError as error:
        harness.fail(error)
    except KeyboardInterrupt:
        harness.fail("interrupted")
