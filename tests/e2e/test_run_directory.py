#!/usr/bin/env python3
"""What a run leaves behind, and what it shows meanwhile."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
import xml.etree.ElementTree

import harness


class RunDirectory(harness.E2eTest):
    def test_holds_everything(self):
        summary = self.run_to_end()
        run = self.dir / "run"
        found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
        wanted = {"experiment.resolved.textproto", "metrics.jsonl", "summary.json", "curves.svg",
                  *(f"logs/{n}.log" for n in ("scheduler-0", "server-0", "server-1", "worker-0", "worker-1"))}
        self.assertLessEqual(wanted, found)
        self.assertEqual([name for name in found if name.endswith(".new")], [], "half-written files")
        self.check_summary(summary)
        self.check_metrics(summary)
        self.check_curves(run / "curves.svg")
        for log in (run / "logs").iterdir():
            lines = log.read_text().splitlines()
            self.assertGreater(len(lines), 2, log)
            for line in lines:
                self.assertRegex(line, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} \S")

    def check_summary(self, summary):
        self.assertIs(summary["ok"], True)
        self.assertEqual(summary["reason"], "")
        self.assertEqual(summary["job"], "tiny_synthetic")
        self.assertEqual(summary["steps"], 3 * 512 // 32)
        self.assertEqual(summary["pushes_acknowledged"], 48 * 2 * 2)
        self.assertEqual(summary["pushes_applied"], summary["pushes_acknowledged"])
        self.assertRegex(summary["weights_sha256"], "^[0-9a-f]{64}$")
        self.assertTrue(0.9 < summary["test_accuracy"] <= 1)
        self.assertTrue(0 < summary["test_loss"] < 0.5)
        self.assertTrue(0 < summary["train_seconds"] <= summary["wall_seconds"] < harness.RUN_S)
        self.assertAlmostEqual(summary["samples_per_second"] * summary["train_seconds"], 3 * 512, delta=1)
        # Every weight and every gradient has travelled: 1,348 floats, 48 steps, 2 workers.
        self.assertGreaterEqual(summary["bytes_pushed"], 48 * 2 * 1348 * 4)
        self.assertGreaterEqual(summary["bytes_pulled"], 48 * 2 * 1348 * 4)
        limits = summary["limits"]
        self.assertAlmostEqual(sum(limits[k] for k in ("compute", "wire", "server", "other")), 1, places=3)
        self.assertEqual(len(summary["epochs"]), 3)
        self.assertEqual([e["train_samples"] for e in summary["epochs"]], [512] * 3)

    def check_metrics(self, summary):
        text = (self.dir / "run" / "metrics.jsonl").read_text()
        self.assertTrue(text.endswith("\n"))
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertLessEqual({line["type"] for line in lines}, {"event", "progress", "epoch"})
        epochs = [{k: v for k, v in line.items() if k not in ("type", "seconds")} for line in lines
                  if line["type"] == "epoch"]
        self.assertEqual(epochs, summary["epochs"])
        times = [line["seconds"] for line in lines]
        self.assertEqual(times, sorted(times))
        events = [line["text"] for line in lines if line["type"] == "event"]
        for part in ("server 0", "server 1", "worker 0", "worker 1",
                     "training starts: 2 servers, 2 workers, 512 samples"):
            self.assertTrue(any(part in event for event in events), part)

    def check_curves(self, path):
        svg = xml.etree.ElementTree.parse(path).getroot()
        self.assertEqual(svg.tag, "{http://www.w3.org/2000/svg}svg")
        text = " ".join(svg.itertext())
        for word in ("tiny_synthetic", "loss", "accuracy"):
            self.assertIn(word, text)

    def test_the_resolved_experiment_runs_again(self):
        first = self.run_to_end(sets=["optimizer.lr=0.02", "training.epochs=1"])
        resolved = self.dir / "run" / "experiment.resolved.textproto"
        again = self.run_to_end(resolved, name="again")
        self.assertEqual(first["weights_sha256"], again["weights_sha256"])
        self.assertEqual(resolved.read_text(), (self.dir / "again" / "experiment.resolved.textproto").read_text())
        self.assertIn("node_timeout_ms: 5000", resolved.read_text(), "defaults are written out")

    def test_without_a_directory_it_makes_one(self):
        self.assertEqual(self.start("first", "parley", "run", harness.TINY).wait(harness.RUN_S), 0)
        self.assertEqual(self.start("second", "parley", "run", harness.TINY).wait(harness.RUN_S), 0)
        made = sorted((self.dir / "runs").iterdir())
        self.assertEqual(len(made), 2)
        for path in made:
            self.assertRegex(path.name, r"^tiny_synthetic-\d{8}-\d{6}(-\d)?$")
            self.assertTrue(json.loads((path / "summary.json").read_text())["ok"])

    def test_plot_draws_the_curves_anew(self):
        self.run_to_end()
        curves = self.dir / "run" / "curves.svg"
        before = curves.read_text()
        curves.unlink()
        self.assertEqual(self.start("plot", "parley", "plot", self.dir / "run").wait(harness.FAILURE_S), 0)
        # It knows the directory, not the job: the title is another, the curves are the same.
        self.assertEqual(curves.read_text().replace(">run<", ">tiny_synthetic<"), before)

    def test_a_failed_run_leaves_its_record_too(self):
        run = self.start_run(harness.TINY, "--no-restart", sets=[*harness.ENDLESS, *harness.FRAGILE])
        self.await_training()
        os.kill(self.child("worker", 0), signal.SIGKILL)
        self.assert_fails(run)
        self.check_curves(self.dir / "run" / "curves.svg")
        self.assertFalse(self.summary()["ok"])
        self.assertGreater(len(self.metrics()), 3)


class Output(harness.E2eTest):
    def test_plain_lines_into_a_file(self):
        run = self.start_run()
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        text = run.stdout()
        self.assertTrue(all(c == "\n" or c.isprintable() for c in text), "no control characters")
        for part in ("tiny_synthetic: 2 servers, 2 workers, BSP, 3 epochs", "training starts", "epoch 3/3  train loss",
                     "done: test accuracy", f"sha256 {self.summary()['weights_sha256']}", str(self.dir / "run")):
            self.assertIn(part, text)

    def test_gradient_lines(self):
        run = self.start_run(harness.TINY, "--metrics-format", "gradient")
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        points = [json.loads(line) for line in run.stdout().splitlines() if line.startswith("{")]
        charts = {}
        for point in points:
            self.assertEqual(set(point), {"chart", "x", "y"})
            charts.setdefault(point["chart"], []).append((point["x"], point["y"]))
        epochs = self.summary()["epochs"]
        self.assertEqual(charts["loss"], [(e["epoch"], e["train_loss"]) for e in epochs])
        self.assertEqual(charts["test_accuracy"], [(e["epoch"], e["test_accuracy"]) for e in epochs])
        self.assertEqual(set(charts), {"loss", "accuracy", "test_loss", "test_accuracy"})

    def test_quiet(self):
        run = self.start_run(harness.TINY, "--quiet")
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertNotIn("joined", run.stdout())
        self.assertNotIn("epoch 1", run.stdout())
        self.assertIn("done: test accuracy", run.stdout())

    def test_a_reader_that_goes_away(self):
        # As in `parley run ... | head -1`.
        read, write = os.pipe()
        run = self.start_run(stdout=write)
        os.close(write)
        os.close(read)
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertTrue(self.summary()["ok"])


class Terminal(harness.E2eTest):
    def start_on_terminal(self, sets, columns=120):
        """A run whose controlling terminal is the one returned."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        run = self.start_run(name=f"run{columns}", sets=sets, stdout=slave,
                             preexec=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0))
        os.close(slave)
        return run, master

    @staticmethod
    def read_all(master):
        text = b""
        while True:
            try:
                more = os.read(master, 65536)
            except OSError:  # EIO: nobody has the other end open
                return text.decode()
            if not more:
                return text.decode()
            text += more

    def test_a_bar_is_drawn(self):
        for columns in (80, 140):
            with self.subTest(columns=columns):
                self.check_bar(columns)

    def check_bar(self, columns):
        sets = ["data.synthetic.train_samples=20000", "training.epochs=6", "cluster.heartbeat_ms=100"]
        run, master = self.start_on_terminal(sets, columns=columns)
        text = self.read_all(master)
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertIn("\r\x1b[K", text, "the bar is drawn over")
        pieces = re.split(r"\r\x1b\[K|\r\n", text)
        bars = [piece for piece in pieces if re.match(r"epoch \d/6 \[", piece)]
        self.assertGreater(len({bar for bar in bars if "step 0/" not in bar}), 1, text)
        for bar in bars:
            self.assertRegex(bar, r"^epoch \d/6 \[=*>? *\] +\d+%  (step \d+/3750  )?loss \d+\.\d{4}  [\d,]+ samples/s  "
                                  r"staleness 0")
            self.assertLess(len(bar), columns)
        # What stays on the screen is whole lines, no bar among them.
        kept = [line.split("\r\x1b[K")[-1] for line in text.split("\r\n")]
        self.assertTrue(any(line.startswith("epoch 6/6  train loss") for line in kept), kept)
        self.assertFalse(any("[=" in line or "[>" in line for line in kept), kept)

    def test_ctrl_c_at_the_keyboard(self):
        run, master = self.start_on_terminal(harness.ENDLESS)
        self.await_training("run120")
        os.write(master, b"\x03")
        self.read_all(master)
        self.assert_fails(run, "parley: interrupted", code=130)
        self.assertFalse(self.summary("run120")["ok"])


if __name__ == "__main__":
    harness.main()
