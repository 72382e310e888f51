#!/usr/bin/env python3
"""Under BSP the weights depend on the experiment alone: not on servers, shards, transport, partitions or the day."""

import itertools
import re
import subprocess
import unittest

import harness


class SameWeights(harness.E2eTest):
    runs = 0

    def printed_hash(self, *command):
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=self.env, timeout=harness.RUN_S, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        return re.search(r"^weights_sha256 ([0-9a-f]{64})$", done.stdout, re.MULTILINE).group(1)

    def with_sets(self, *command, sets):
        return self.printed_hash(*command, *itertools.chain.from_iterable(("--set", s) for s in sets))

    def local(self, experiment, sets):
        return self.with_sets(self.bin / "parley", "train", "--local", experiment, sets=sets)

    def simulated(self, experiment, sets):
        return self.with_sets(self.bin / "parley-sim", "--experiment", experiment, sets=sets)

    def hashes(self, experiment, sets, layouts):
        """{layout: hash} of real runs, one for each list of settings."""
        found = {}
        for layout in layouts:
            self.runs += 1
            summary = self.run_to_end(experiment, name=f"run{self.runs}", sets=[*sets, *layout])
            self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"], layout)
            self.assertRegex(summary["weights_sha256"], "^[0-9a-f]{64}$")
            found[f"run {self.runs}: {' '.join(layout) or 'as it is'}"] = summary["weights_sha256"]
        return found

    def assert_all_equal(self, found):
        self.assertEqual(len(set(found.values())), 1, "\n".join(f"{h}  {layout}" for layout, h in found.items()))

    @staticmethod
    def layouts(servers, shards, transports):
        return [(f"cluster.servers={n}", f"cluster.shards_per_server={k}", f"cluster.transport={t}")
                for n in servers for k in shards for t in transports]

    def test_tiny(self):
        layouts = self.layouts((1, 2, 3), (1, 2), ("TCP", "IPC")) + self.layouts((1, 3), (2,), ("SHM", "AUTO"))
        layouts += [(), (), ("cluster.partition_kib=8",), ("cluster.max_request_kib=4",)]
        found = self.hashes(harness.TINY, (), layouts)
        found["in one process"] = self.local(harness.TINY, ())
        found["simulated"] = self.simulated(harness.TINY, ())
        self.assert_all_equal(found)

    def test_two_runs_in_a_row(self):
        first = self.run_to_end(name="first")
        second = self.run_to_end(name="second")
        self.assertEqual(first["weights_sha256"], second["weights_sha256"])
        self.assertEqual([e["train_loss"] for e in first["epochs"]], [e["train_loss"] for e in second["epochs"]])
        # Otherwise the comparisons of this file would say nothing.
        other = self.run_to_end(name="other", sets=["seed=8"])
        self.assertNotEqual(first["weights_sha256"], other["weights_sha256"])

    def test_clipped_by_the_norm_over_all_servers(self):
        sets = ("optimizer.clip_norm=0.3", "optimizer.weight_decay=0.001", "training.epochs=2")
        found = self.hashes(harness.TINY, sets, self.layouts((1, 3), (1, 2), ("TCP",)))
        found["in one process"] = self.local(harness.TINY, sets)
        found["simulated"] = self.simulated(harness.TINY, sets)
        self.assert_all_equal(found)

    def test_with_and_without_push_pull(self):
        found = self.hashes(harness.TINY, (), [(f"cluster.push_pull={on}", f"cluster.transport={t}")
                                               for on in ("true", "false") for t in ("TCP", "IPC", "SHM")])
        self.assert_all_equal(found)

    # A partition is what a codec encodes at a time, so that it does not matter which server has it.
    def test_codecs(self):
        plain = self.local(harness.TINY, ())
        for push, pull, zstd in (("fp16", "bf16", 0), ("bf16", "none", 3), ("int8", "int8", 0), ("one_bit", "one_bit", 0),
                                 ("top_k", "top_k", 1), ("none", "int8", 0)):
            with self.subTest(push=push, pull=pull, zstd=zstd):
                sets = (f"compression.push={push}", f"compression.pull={pull}", f"compression.zstd_level={zstd}",
                        "compression.top_k=0.1", "compression.block=64")
                found = self.hashes(harness.TINY, sets, [("cluster.servers=1",), ("cluster.servers=3",),
                                                         ("cluster.push_pull=false", "cluster.transport=IPC")])
                found["in one process"] = self.local(harness.TINY, sets)
                found["simulated"] = self.simulated(harness.TINY, sets)
                self.assert_all_equal(found)
                self.assertNotIn(plain, found.values(), "the codec has lost nothing")

    def test_one_and_three_workers(self):
        for workers in (1, 3):
            # The last batch of 500 samples is not full, and three workers cannot share it evenly.
            sets = (f"cluster.workers={workers}", "data.train_limit=500", "training.epochs=2")
            found = self.hashes(harness.TINY, sets, [(f"cluster.servers={n}",) for n in (1, 3)])
            found["in one process"] = self.local(harness.TINY, sets)
            found["simulated"] = self.simulated(harness.TINY, sets)
            self.assert_all_equal(found)

    @unittest.skipUnless(harness.FASHION.is_dir(), f"needs {harness.FASHION}")
    def test_convnet_on_some_of_fashion_mnist(self):
        sets = ("data.train_limit=512", "data.test_limit=200", "training.epochs=1")
        layouts = [("cluster.servers=1", "cluster.transport=TCP"), ("cluster.servers=1", "cluster.transport=TCP"),
                   ("cluster.servers=2", "cluster.transport=TCP", "cluster.shards_per_server=2"),
                   ("cluster.servers=2", "cluster.transport=IPC"), ("cluster.servers=3", "cluster.transport=TCP"),
                   ("cluster.servers=3", "cluster.transport=IPC", "cluster.shards_per_server=2")]
        found = self.hashes(harness.CONVNET, sets, layouts)
        found["in one process"] = self.local(harness.CONVNET, sets)
        found["simulated"] = self.simulated(harness.CONVNET, sets)
        self.assert_all_equal(found)


if __name__ == "__main__":
    harness.main()
