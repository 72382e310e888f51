#!/usr/bin/env python3
"""Nodes on hosts of their own - network namespaces - are cut off from the others for longer than they are waited for, and come
back: training goes on without them, they find out that they were given up, and the weights are those of a calm run.

    python3 tests/e2e/test_cuts.py --bin build/release/bin [--cuts 3] [--seed 1] [--json FILE]

Needs root and network namespaces; skipped, with the reason, where it may not make any. benchmarks/chaos/chaos.py runs a long one.
"""

import ctypes
import json
import pathlib
import re
import signal
import sys

import chaos
import harness

sys.path.insert(0, str(harness.ROOT / "benchmarks" / "gigabit"))
import network  # noqa: E402

# Set at the end of the file.
CUTS, SEED, JSON = 3, 1, None

NODE_TIMEOUT_S = 2.5
# Long enough to be given up, and to be back before the schedulers of the job would be looked for in vain.
CUT_S = (3.5, 4.5)
# A step takes the links of a hundred megabits some twenty milliseconds, and a process that has memory in place of links a few.
MODEL = ("data.synthetic.train_samples=20000", "data.synthetic.width=64", "model.layer[1].linear.out=512",
         "training.epochs=1000", "training.evaluate=false")
STEPS_A_CUT = 270  # and more: six seconds of steps at this rate, and standing still
RATE = "100mbit"
JOB = ("cluster.servers=2", "cluster.workers=2", "cluster.replicas=1", "cluster.heartbeat_ms=100",
       f"cluster.node_timeout_ms={round(NODE_TIMEOUT_S * 1000)}", "cluster.scheduler_timeout_ms=30000")
COPIES = "all partitions have their copies"


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class CutOff(harness.E2eTest):
    def setUp(self):
        why = network.missing()
        if why:
            self.skipTest(why)
        super().setUp()
        self.living = {}  # pid: (role, index), Process
        self.lost = []

    def events(self):
        return [m["text"] for m in self.metrics() if m["type"] == "event"]

    # --- hosts ---

    def start_on(self, host, name, program, *args):
        command = [*self.network.enter(host), self.bin / program, *args]
        process = harness.Process(name, command, self.dir, self.env, preexec=die_with_parent)
        self.processes.append(process)
        return process

    def start_node_on(self, role, index):
        host, name = f"{role}-{index}", f"{role}-{index}-{len(self.processes)}"
        more = ["--transport", "tcp", "--insecure", "--bind", f"tcp://{self.network.address(host)}:0"] if role == "server" else []
        process = self.start_on(host, name, f"parley-{role}", "--scheduler", self.endpoint(), "--rank", index,
                                "--log", self.log(name), *more)
        self.living[process.pid] = ((role, index), process)
        return process

    def start_job(self):
        sets = [word for change in self.sets for word in ("--set", change)]
        scheduler = self.start_on("scheduler", "scheduler", "parley-scheduler", "--experiment", harness.TINY, "--run-dir",
                                  self.dir / "run", "--insecure", "--bind", f"tcp://{self.network.address('scheduler')}:0",
                                  "--endpoint-file", self.dir / "scheduler.endpoint", "--log", self.log("scheduler"),
                                  "--progress-ms", "20", *sets)
        self.endpoint()
        for role in ("server", "worker"):
            for index in range(2):
                self.start_node_on(role, index)
        self.await_("copies", lambda: COPIES in self.events(), harness.RUN_S)
        return scheduler

    # --- what chaos.Chaos asks for ---

    def children(self):
        return {pid: place for pid, (place, process) in self.living.items() if process.poll() is None}

    def cut(self, pid, event):
        role, index = self.living[pid][0]
        host = f"{role}-{index}"
        (self.network.deafen if event.deaf else self.network.cut)(host)
        return lambda: self.network.heal(host)

    def after_cut(self, pid, event):
        """Who was cut off knows by itself; whoever starts processes here then starts another."""
        (role, index), process = self.living[pid]
        if self.scheduler.poll() is not None:
            return
        self.assertEqual(process.wait(harness.RUN_S), 1, process.story())
        self.assertRegex(process.stderr(), rf"^parley-{role}: .*this scheduler of job '.*' does not know node .*: it has to join "
                                           r"first\n$")
        self.lost.append((role, process))
        del self.living[pid]
        before = self.events().count(COPIES)
        node = self.start_node_on(role, index)
        # The next is hit when it can be borne, if there is to be a next.
        if role == "server":
            there = lambda: self.events().count(COPIES) > before
        else:
            there = lambda: any(re.search(rf"logical worker \d+ goes on at worker .*:{node.pid}\)", e) for e in self.events())
        self.await_("work for the one that came", lambda: self.scheduler.poll() is not None or there(), harness.RUN_S)

    def test_the_weights_are_those_of_a_calm_run(self):
        steps = STEPS_A_CUT * CUTS
        self.sets = [*MODEL, *JOB, f"training.max_steps={steps}"]
        calm = self.run_to_end(name="calm", sets=self.sets, deadline_s=harness.RUN_S + 5 * CUTS)
        hosts = ["scheduler", *(f"{role}-{index}" for role in ("server", "worker") for index in range(2))]
        with network.Network(hosts, RATE) as self.network:
            self.scheduler = self.start_job()
            # Of either role one that is pulled from the network, and a server that speaks but does not hear.
            # All of them soon enough for the last to be found out before the end.
            events = chaos.schedule(SEED, CUTS, steps - STEPS_A_CUT * 3 // 4, roles=("server", "worker"), stops=0, cut_s=CUT_S)
            driver = chaos.Chaos(self.scheduler, self.dir / "run", self.children, events, cut=self.cut, after=self.after_cut)
            hits = driver.go()
            self.assertEqual(self.scheduler.wait(2 * harness.RUN_S), 0, self.scheduler.story())
            for _, process in self.living.values():
                self.assertEqual(process.wait(harness.FAILURE_S), 0, process.story())
        summary = self.summary()
        self.assertEqual(len(self.lost), len(events), hits)
        self.assertEqual(summary["weights_sha256"], calm["weights_sha256"], hits)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        self.assertEqual(summary["restarts"], 0, self.events())
        if JSON:
            result = {"seed": SEED, "cuts": CUTS, "steps": steps, "node_timeout_s": NODE_TIMEOUT_S,
                      "to_next_step": chaos.summarise(hits), "failovers": summary["failovers"],
                      "workers_replaced": summary["workers_replaced"], "same_weights": True, "hits": hits}
            pathlib.Path(JSON).write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps({k: v for k, v in result.items() if k != "hits"}, indent=1))


if __name__ == "__main__":
    CUTS, SEED, JSON = int(harness.take("--cuts", CUTS)), int(harness.take("--seed", SEED)), harness.take("--json", JSON)
    harness.main()
