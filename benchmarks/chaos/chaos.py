#!/usr/bin/env python3
"""How soon does training go on after a kill, and does it end with the same weights?

    benchmarks/chaos/chaos.py [--bin build/release/bin] [--kills 50] [--seed 1] [--json FILE]
    benchmarks/chaos/chaos.py --stops 0 ...                                kills alone
    benchmarks/chaos/chaos.py --replicas 0 --roles server --stops 0 ...    roll-backs to checkpoints
    sudo benchmarks/chaos/chaos.py --cuts 20 ...                           servers and workers cut off from the network

Trains a ConvNet on a slice of Fashion-MNIST (without the data: a small perceptron) with one copy of each partition, a spare
server, a spare worker and checkpoints, while a seeded schedule kills processes of all roles, and stops some of them for a while
(tests/e2e/chaos.py). The time is from the signal to the report of the first step behind the longest standstill that followed,
after a roll-back to that of the first step done again; "regained" is the first step that had not been done before.
Reports come with heartbeats of 50 ms, by the scheduler's progress of 20 ms: times are up to a tenth of a second too long, and a
standstill of less than a quarter of a second is told as the longest distance of two reports. While the scheduler is away nobody
reports: its times are those until reports go on, steps are done meanwhile. Exit code 0: the weights are those of a calm run, and
as many pushes were applied as were acknowledged. Standard library only.

With --cuts nobody is killed: servers and workers run in network namespaces, on links of 100 Mbit/s, and are cut off, every second
one of a role one way only, for longer than they are waited for (tests/e2e/test_cuts.py); the time to the next step is then mostly
node_timeout_ms, 2.5 s there.
"""
import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default=ROOT / "build" / "release" / "bin", help="where the programs are")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stops", type=float, default=0.25, help="share of SIGSTOP, for a while, instead of SIGKILL")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--roles", default="server,worker,scheduler")
    parser.add_argument("--cuts", type=int, help="cut nodes off so many times, in place of kills and stops; needs root")
    parser.add_argument("--json", help="write times and counts here")
    args = parser.parse_args()
    command = [sys.executable, ROOT / "tests" / "e2e" / "test_chaos.py", "--bin", args.bin, "--kills", args.kills,
               "--seed", args.seed,
               "--stops", args.stops, "--replicas", args.replicas, "--roles", args.roles]
    if args.cuts is not None:
        command = [sys.executable, ROOT / "tests" / "e2e" / "test_cuts.py", "--bin", args.bin, "--cuts", args.cuts,
                   "--seed", args.seed]
    if args.json:
        command += ["--json", pathlib.Path(args.json).resolve()]
    return subprocess.run([str(word) for word in command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
