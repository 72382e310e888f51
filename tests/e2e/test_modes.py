#!/usr/bin/env python3
"""Every consistency mode and way to share the data trains to the end, and every push is accounted for."""

import harness


class Modes(harness.E2eTest):
    def check(self, sets, steps=None, workers=2):
        summary = self.run_to_end(sets=[*sets, f"cluster.workers={workers}"])
        self.assertTrue(summary["ok"])
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"] + summary["pushes_dropped"])
        self.assertGreater(summary["pushes_applied"], 0)
        # Two partitions, a push of each worker to each in every step.
        if steps is not None:
            self.assertEqual(summary["steps"], steps)
            self.assertEqual(summary["pushes_acknowledged"], steps * workers * 2)
        self.assertEqual([e["epoch"] for e in summary["epochs"]], [1, 2, 3])
        # Clusters this far apart are learnt in any mode.
        self.assertGreater(summary["test_accuracy"], 0.9)
        return summary

    def test_bsp(self):
        summary = self.check([], steps=48)
        self.assertEqual((summary["pushes_dropped"], summary["max_staleness"]), (0, 0))

    def test_ssp(self):
        summary = self.check(["consistency.mode=SSP", "consistency.staleness=3"], steps=48)
        self.assertEqual(summary["pushes_dropped"], 0)
        self.assertLessEqual(summary["max_staleness"], 3)

    def test_ssp_0(self):
        self.assertEqual(self.check(["consistency.mode=SSP"], steps=48)["max_staleness"], 0)

    def test_asp(self):
        self.assertEqual(self.check(["consistency.mode=ASP"], steps=48)["pushes_dropped"], 0)

    def test_backup_workers(self):
        self.check(["consistency.backup_workers=1"], steps=48, workers=3)

    def test_by_worker(self):
        self.assertEqual(self.check(["data.sharding=BY_WORKER"], steps=48)["pushes_dropped"], 0)

    def test_by_worker_with_uneven_parts(self):
        # 500 samples over 3 workers, batches of 10: parts and last batches of different sizes.
        sets = ["data.sharding=BY_WORKER", "data.synthetic.train_samples=500", "training.global_batch=30"]
        for mode in ("BSP", "SSP", "ASP"):
            with self.subTest(mode):
                name = mode.lower()
                summary = self.run_to_end(name=name, sets=[*sets, f"consistency.mode={mode}", "cluster.workers=3"])
                self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
                self.assertEqual([e["train_samples"] for e in summary["epochs"]], [500] * 3)

    def test_by_worker_in_every_mode(self):
        for mode in (["consistency.mode=SSP", "consistency.staleness=2"], ["consistency.mode=ASP"],
                     ["consistency.backup_workers=1"]):
            with self.subTest(mode):
                name = "by-worker-" + mode[0].split("=")[1].lower()
                summary = self.run_to_end(name=name, sets=["data.sharding=BY_WORKER", *mode])
                self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"] + summary["pushes_dropped"])

    def test_max_steps(self):
        summary = self.run_to_end(sets=["training.max_steps=5"])
        self.assertEqual(summary["steps"], 5)
        self.assertEqual(summary["pushes_acknowledged"], 5 * 2 * 2)


if __name__ == "__main__":
    harness.main()
