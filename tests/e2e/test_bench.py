#!/usr/bin/env python3
"""`parley bench` measures real clusters, says under which conditions, and leaves nothing behind."""

import json
import pathlib
import re
import shutil
import signal

import harness

QUICK = ("--rounds", "2", "--round-ms", "30")


class Bench(harness.E2eTest):
    def bench(self, suite, *args):
        out = self.dir / f"{suite}.json"
        process = self.start(f"bench-{suite}", "parley", "bench", suite, "--json", out, *QUICK, *args)
        self.assertEqual(process.wait(harness.RUN_S), 0, process.story())
        self.assertEqual(process.stderr(), "")
        return json.loads(out.read_text()), process

    def check(self, report, unit, names):
        self.assertEqual(report["benchmark"], "bench")
        for condition in ("cpu", "cores", "kernel", "libzmq", "checkout", "load_at_start"):
            self.assertTrue(report["conditions"][condition], condition)
        results = {r["name"]: r for r in report["results"] if r["unit"] == unit}
        self.assertEqual(set(results), set(names))
        for result in results.values():
            self.assertEqual(len(result["values"]), 2)
            self.assertGreater(result["min"], 0)
            self.assertGreater(result["ratio"], 0)
            self.assertTrue(result["path"])
        return results

    def test_dense(self):
        report, process = self.bench("dense", "--bytes", "65536", "--in-flight", "2", "--transport", "tcp")
        results = self.check(report, "GB/s", ["push", "pull", "push_then_pull", "push_pull"])
        self.assertEqual(results["push"]["settings"]["bytes"], "65536")
        self.assertIn("push_then_pull", process.stdout())

    def test_dense_of_several(self):
        report, _ = self.bench("dense", "--bytes", "262144", "--servers", "2", "--workers", "2", "--transport", "ipc",
                               "--partition-kib", "64")
        self.check(report, "GB/s", ["push", "pull", "push_then_pull", "push_pull"])

    def test_dense_with_a_codec(self):
        report, _ = self.bench("dense", "--bytes", "65536", "--codec", "fp16", "--pull-codec", "fp16", "--transport",
                               "tcp")
        self.check(report, "GB/s", ["push", "pull", "push_then_pull", "push_pull"])

    def test_latency(self):
        report, _ = self.bench("latency", "--transport", "tcp")
        self.check(report, "us", [f"{case}.{q}" for case in ("pull", "push_then_pull", "push_pull")
                                  for q in ("p50", "p99")])

    def test_sparse(self):
        report, _ = self.bench("sparse", "--table-keys", "20000", "--keys", "1000", "--distribution", "zipf:1.05",
                               "--transport", "tcp", "--workers", "2")
        self.check(report, "Mkeys/s", ["pull", "push"])

    def test_rate(self):
        report, _ = self.bench("rate", "--table-keys", "1000", "--in-flight", "500", "--transport", "tcp")
        self.check(report, "M/s", ["update"])

    def test_shared_memory_is_what_is_used(self):
        report, _ = self.bench("dense", "--bytes", "262144", "--transport", "shm")
        results = self.check(report, "GB/s", ["push", "pull", "push_then_pull", "push_pull"])
        self.assertEqual({r["path"] for r in results.values()}, {"shm"})

    def test_epoch(self):
        report, _ = self.bench("epoch", "--experiment", harness.TINY, "--set", "training.epochs=2", "--transport",
                               "tcp")
        results = {r["name"]: r for r in report["results"]}
        self.assertEqual(len(results["epoch"]["values"]), 2)
        self.assertGreater(results["test_accuracy"]["median"], 0.5)


class BenchMistakes(harness.E2eTest):
    def test_usage(self):
        for args, parts in ((("densse",), ("densse", "did you mean 'dense'")),
                            (("dense", "--bytes", "1022"), ("--bytes 1022", "multiple of 4")),
                            (("sparse", "--distribution", "even"), ("'even'", "zipf:S")),
                            (("rate", "--json", "no/such/x.json"), ("--json no/such/x.json", "cannot be written")),
                            (("dense", "--workers", "0"), ("--workers", "1..64"))):
            with self.subTest(args):
                name = "-".join(args).replace("/", "")
                self.assert_fails(self.start(name, "parley", "bench", *args), *parts, code=2)

    def test_a_failing_cluster_is_one_line(self):
        # No such codec: the servers or the workers refuse it.
        process = self.start("bench", "parley", "bench", "dense", "--bytes", "65536", "--codec", "no_such", "--transport",
                             "tcp", *QUICK)
        line = self.assert_fails(process, "no_such", deadline_s=harness.RUN_S)
        # Its logs are kept for whoever reads that line.
        log = re.search(r"/tmp/parley-bench-\w+", line)
        self.assertIsNotNone(log, line)
        shutil.rmtree(log[0])

    def test_interrupted(self):
        process = self.start("bench", "parley", "bench", "dense", "--bytes", "65536", "--transport", "tcp",
                             "--round-ms", "60000")
        worker = self.await_("a worker", lambda: next(
            (argv for argv in harness.processes_with(self.dir).values() if "parley-bench-worker" in argv[0]), None), 60)
        scratch = pathlib.Path(worker[worker.index("--directory") + 1])
        self.assertTrue(scratch.exists())
        process.signal(signal.SIGINT)
        self.assert_fails(process, "interrupted", code=130)
        # The test's end sees that no process is left.
        self.assertFalse(scratch.exists())


if __name__ == "__main__":
    harness.main()
