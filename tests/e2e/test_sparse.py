#!/usr/bin/env python3
"""Sparse tables in real processes: the same rows for any number of servers, click logs, what is refused."""

import gzip
import itertools
import re
import subprocess
import unittest

import harness

CLICKS = harness.ROOT / "experiments" / "clicks_tiny.textproto"
SHORT = ("data.synthetic_clicks.train_samples=1500", "data.synthetic_clicks.test_samples=200", "training.epochs=2")
ROWS = "model.layer[0].embedding"


def sets_of(settings):
    return itertools.chain.from_iterable(("--set", s) for s in settings)


class SparseTest(harness.E2eTest):
    runs = 0

    def printed(self, *command):
        """(weights_sha256, embedding_digest) of a command that prints both."""
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=self.env, timeout=harness.RUN_S, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        return tuple(re.search(rf"^{name} ([0-9a-f]+)$", done.stdout, re.MULTILINE).group(1)
                     for name in ("weights_sha256", "embedding_digest"))

    def local(self, experiment, sets):
        return self.printed(self.bin / "parley", "train", "--local", experiment, *sets_of(sets))

    def simulated(self, experiment, sets):
        return self.printed(self.bin / "parley-sim", "--experiment", experiment, *sets_of(sets))

    def run_once(self, experiment, sets):
        self.runs += 1
        summary = self.run_to_end(experiment, name=f"run{self.runs}", sets=sets)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"], sets)
        table, = summary["tables"]
        self.assertEqual(table["name"], "embedding")
        self.assertGreater(table["rows"], 0)
        return summary, (summary["weights_sha256"], table["digest"])

    def assert_all_equal(self, experiment, sets, layouts):
        found = {"in one process": self.local(experiment, sets), "simulated": self.simulated(experiment, sets)}
        for layout in layouts:
            found[" ".join(layout) or "as it is"] = self.run_once(experiment, [*sets, *layout])[1]
        self.assertEqual(len(set(found.values())), 1, "\n".join(f"{h}  {name}" for name, h in found.items()))


class SameRows(SparseTest):
    def test_servers_shards_and_transports(self):
        layouts = [(f"cluster.servers={n}", f"cluster.transport={t}") for n in (1, 2, 3) for t in ("TCP", "IPC")]
        layouts += [("cluster.servers=2", "cluster.transport=SHM"), ("cluster.servers=3", "cluster.transport=AUTO")]
        layouts += [("cluster.servers=2", "cluster.shards_per_server=2"), ("cluster.max_request_kib=4",),
                    ("cluster.push_pull=false",)]
        self.assert_all_equal(CLICKS, SHORT, layouts)

    def test_other_seeds_make_other_rows(self):
        # Otherwise the comparisons of this file would say nothing.
        first, second = self.local(CLICKS, SHORT), self.local(CLICKS, (*SHORT, "seed=8"))
        self.assertNotEqual(first[0], second[0])
        self.assertNotEqual(first[1], second[1])

    def test_codecs_row_types_and_eviction(self):
        for sets in ((f"{ROWS}.row_type=BF16", f"{ROWS}.compression.push=fp16", f"{ROWS}.compression.pull=bf16"),
                     (f"{ROWS}.compression.push=one_bit", f"{ROWS}.compression.block=64", "compression.push=top_k",
                      "compression.pull=int8"),
                     (f"{ROWS}.eviction.min_frequency=2", f"{ROWS}.eviction.max_age=9", f"{ROWS}.pooling=SUM",
                      f"{ROWS}.compression.push=top_k", "compression.zstd_level=1")):
            with self.subTest(sets):
                self.assert_all_equal(CLICKS, (*SHORT, *sets), [(), ("cluster.servers=3", "cluster.transport=IPC")])

    def test_uneven_batches_of_three_workers(self):
        # The last batch of an epoch leaves the third worker without a sample.
        sets = (*SHORT, "cluster.workers=3", "data.train_limit=258", "training.global_batch=64")
        self.assert_all_equal(CLICKS, sets, [(f"cluster.servers={n}",) for n in (1, 2)])

    def test_it_learns(self):
        summary, _ = self.run_once(CLICKS, ())
        self.assertGreater(summary["epochs"][-1]["test_accuracy"], 0.82)

    def test_other_consistency(self):
        for mode in ("SSP", "ASP"):
            summary, _ = self.run_once(CLICKS, (*SHORT, f"consistency.mode={mode}"))
            self.assertEqual(summary["epochs"][-1]["train_samples"], 1500)


class ClickLogs(SparseTest):
    EXPERIMENT = """
        name: "log" seed: 3
        cluster { servers: 2 workers: 2 partition_kib: 4 }
        data { click_log { train: "%s" fields: 4 } }
        model {
          layer { embedding { dim: 4 bound: 0.1 pooling: SUM partitions: 4 optimizer { ftrl { l2: 0.1 } lr: 0.3 } } }
          layer { linear { out: 2 } }
          layer { log_softmax {} }
        }
        training { epochs: 3 global_batch: 20 }
        optimizer { sgd {} lr: 0.2 }
    """

    def write(self, lines, opener=open):
        log = self.dir / "clicks.tsv"
        with opener(log, "wt") as out:
            out.writelines(lines)
        path = self.dir / "log.textproto"
        path.write_text(self.EXPERIMENT % log)
        return path

    # Key 7 means yes, key 8 no; the rest is noise. Lines of three and of five keys.
    GOOD = [f"{7 + i % 2},{100 + i % 37}:1,{1 << 60 | i % 11}{',5,6' if i % 3 == 0 else ''}\t{1 - i % 2}\n"
            for i in range(400)]

    def test_the_example_of_the_guide(self):
        guide = (harness.ROOT / "docs" / "guide.md").read_text()
        text = re.search(r'^```\n(name: "clicks"\n.*?)^```$', guide, re.MULTILINE | re.DOTALL).group(1)
        self.write(self.GOOD)
        path = self.dir / "guide.textproto"
        path.write_text(text.replace("clicks.tsv.gz", str(self.dir / "clicks.tsv")))
        self.assert_all_equal(path, ("training.global_batch=64",), [()])

    def test_plain_and_gzip(self):
        results = []
        for opener in (open, gzip.open):
            experiment = self.write(self.GOOD, opener)
            self.assert_all_equal(experiment, (), [(), ("cluster.servers=1",)])
            summary, result = self.run_once(experiment, ())
            self.assertEqual(summary["epochs"][-1]["train_samples"], 360)
            self.assertGreater(summary["epochs"][-1]["test_accuracy"], 0.95)
            results.append(result)
        self.assertEqual(*results)

    def test_a_bad_line_is_named(self):
        experiment = self.write([*self.GOOD[:123], "7,8:half\t1\n", *self.GOOD[123:]])
        process = self.start_run(experiment)
        self.assertEqual(process.wait(harness.FAILURE_S), 1, process.story())
        self.assertRegex(process.stderr(), r"clicks\.tsv:124: has the feature '8:half', allowed is")

    def test_embeddings_need_keys_and_keys_embeddings(self):
        text = self.write(self.GOOD).read_text()
        for old, new in ((r"click_log \{.*?\}", "synthetic { classes: 2 }"), (r"layer \{ embedding .*", "")):
            path = self.dir / "bad.textproto"
            path.write_text(re.sub(old, new, text))
            process = self.start_run(path, name=f"bad{len(self.processes)}")
            self.assertIn(process.wait(harness.FAILURE_S), (1, 2), process.story())
            self.assertIn("embedding", process.stderr())


if __name__ == "__main__":
    harness.main()
