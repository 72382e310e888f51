#!/usr/bin/env python3
"""Whatever is killed or stops while the job trains, it ends well, with the weights of a run in which nothing happened.

    python3 tests/e2e/test_chaos.py --bin build/release/bin [--kills 50] [--seed 1] [--stops 0.25] [--replicas 1]
                                    [--roles server,worker,scheduler] [--json FILE]

Without --kills it is the short one of ctest: 8 events. benchmarks/chaos/chaos.py runs the long one and keeps its times.
"""

import json
import pathlib
import time

import chaos
import harness

# Set by main().
KILLS, SEED, JSON = 8, 1, None
STOPS, REPLICAS, ROLES = 0.25, 1, "server,worker,scheduler"

# Heartbeats so fast that the time to the next step can be told.
WATCHED = ("cluster.heartbeat_ms=50", "cluster.node_timeout_ms=2000")
SAFE = ("cluster.servers=2", "cluster.workers=2", "cluster.max_restarts=100",
        "checkpoints.keep=2")
# A step of about ten milliseconds, without data files; one of a tenth of a second with them.
MODEL = ("data.synthetic.train_samples=20000", "data.synthetic.width=64", "model.layer[1].linear.out=512",
         "training.global_batch=256", "training.epochs=1000", "training.evaluate=false")
CONVNET = ("data.train_limit=12800", "data.test_limit=500", "training.epochs=1000", "training.evaluate=false")


class Chaos(harness.E2eTest):
    # Real time between two events, for copies to be brought up again.
    SECONDS_AN_EVENT = 2.5

    def experiment(self):
        long = KILLS > 8 and harness.FASHION.is_dir()
        return (harness.CONVNET, CONVNET) if long else (harness.TINY, MODEL)

    def steps(self, experiment, sets):
        """As many as take SECONDS_AN_EVENT for each event, as fast as this machine is today."""
        calm = self.run_to_end(experiment, name="calibration", sets=[*sets, "training.max_steps=60"], deadline_s=120)
        rate = 60 / max(calm["train_seconds"], 0.05)
        return max(400, int(rate * self.SECONDS_AN_EVENT * (KILLS + 2)))

    def children(self):
        """{pid: (role, index)} of what `parley run` holds."""
        found = {}
        for pid, argv in harness.processes_with(self.dir).items():
            if not argv or "--log" not in argv:
                continue
            role, _, index = pathlib.Path(argv[argv.index("--log") + 1]).stem.rpartition("-")
            if argv[0].endswith(f"/parley-{role}") and "/chaos/" in argv[argv.index("--log") + 1]:
                found[pid] = (role, int(index))
        return found

    def test_the_weights_are_those_of_a_calm_run(self):
        experiment, model = self.experiment()
        base = [*WATCHED, *SAFE, f"cluster.replicas={REPLICAS}", *model]
        steps = self.steps(experiment, base)
        sets = [*base, f"training.max_steps={steps}", f"checkpoints.every_steps={max(50, steps // 20)}"]
        began = time.monotonic()
        calm = self.run_to_end(experiment, name="calm", sets=sets, deadline_s=120 + 20 * KILLS)
        calm_seconds, began = time.monotonic() - began, time.monotonic()
        run = self.start_run(experiment, "--spare-servers", "1", "--spare-workers", "1", "--progress-ms", "20",
                             name="chaos", sets=sets)
        events = chaos.schedule(SEED, KILLS, steps, roles=ROLES.split(","), stops=STOPS)
        driver = chaos.Chaos(run, self.dir / "chaos", self.children, events,
                             log=print if KILLS > 8 else lambda line: None)
        hits = driver.go()
        self.assertEqual(run.wait(120 + 20 * KILLS), 0, run.story())
        chaos_seconds = time.monotonic() - began
        summary = self.summary("chaos")
        self.assertGreaterEqual(len(hits), KILLS - 1, f"{hits} of {events}")
        self.assertTrue(summary["ok"])
        self.assertEqual(summary["steps"], steps)
        self.assertEqual(summary["weights_sha256"], calm["weights_sha256"], hits)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        self.assertEqual(summary["pushes_dropped"], 0)
        result = {"seed": SEED, "replicas": REPLICAS, "events": len(hits), "steps": steps, "calm_seconds": round(calm_seconds, 1),
                  "chaos_seconds": round(chaos_seconds, 1), "to_next_step": chaos.summarise(hits),
                  "failovers": summary["failovers"], "restarts": summary["restarts"],
                  "workers_replaced": summary["workers_replaced"], "checkpoints": summary["checkpoints"],
                  "same_weights": True, "hits": hits}
        if JSON:
            pathlib.Path(JSON).write_text(json.dumps(result, indent=1) + "\n")
        if KILLS > 8:
            print(json.dumps({k: v for k, v in result.items() if k != "hits"}, indent=1))


if __name__ == "__main__":
    take = harness.take
    KILLS, SEED, JSON = int(take("--kills", KILLS)), int(take("--seed", SEED)), take("--json", JSON)
    STOPS, REPLICAS, ROLES = float(take("--stops", STOPS)), int(take("--replicas", REPLICAS)), take("--roles", ROLES)
    harness.main()
