#!/usr/bin/env python3
"""Processes that die, hang or are interrupted in the middle of training: one line, in time, and nobody left."""

import os
import signal
import time

import harness


class KilledUnderParleyRun(harness.E2eTest):
    """Where nothing is to be put right (--no-restart, FRAGILE); test_comebacks.py has the rest."""

    def start_training(self, *sets):
        run = self.start_run(harness.TINY, "--no-restart", sets=[*harness.ENDLESS, *harness.FRAGILE, *sets])
        self.await_training()
        return run

    def kill_and_check(self, role, rank, *sets):
        run = self.start_training(*sets)
        victim = self.child(role, rank)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        # Who it was, by its pid too: the scheduler's ranks and the launcher's need not agree.
        line = self.assert_fails(run, f"parley: {role}", f"{victim}")
        self.assertLess(time.monotonic() - killed, harness.FAILURE_S)
        self.assertEqual(self.await_gone(1), {}, "children of a run that is over")
        summary = self.summary()
        self.assertFalse(summary["ok"])
        self.assertIn(role, summary["reason"])
        return line

    def test_worker(self):
        self.kill_and_check("worker", 1)

    def test_server(self):
        self.kill_and_check("server", 0, *harness.QUICK_DEATH)

    def test_scheduler(self):
        line = self.kill_and_check("scheduler", 0, *harness.QUICK_DEATH)
        self.assertIn("was killed by signal 9", line)

    def test_the_last_server(self):
        # Nobody but the scheduler is left to notice.
        self.kill_and_check("server", 0, "cluster.servers=1", "cluster.workers=1", *harness.QUICK_DEATH)

    def test_a_worker_that_stands_still(self):
        run = self.start_training(*harness.QUICK_DEATH)
        victim = self.child("worker", 0)
        os.kill(victim, signal.SIGSTOP)
        self.assert_fails(run, "parley: worker", f":{victim}) is dead: no heartbeat for", "node_timeout_ms is 2000")

    def test_a_short_stop_does_no_harm(self):
        sets = ("data.synthetic.train_samples=20000", "training.epochs=2", "cluster.heartbeat_ms=200")
        run = self.start_run(sets=[*sets, "cluster.node_timeout_ms=5000"])
        self.await_training()
        victim = self.child("worker", 0)
        os.kill(victim, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(victim, signal.SIGCONT)
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertEqual(self.summary()["weights_sha256"],
                         self.run_to_end(name="calm", sets=sets)["weights_sha256"])

    def test_parley_run_itself(self):
        run = self.start_training()
        self.assertGreaterEqual(len(harness.processes_with(self.dir)), 6)
        run.signal(signal.SIGKILL)
        run.wait(harness.FAILURE_S)
        self.assertEqual(self.await_gone(harness.FAILURE_S), {})


class KilledByHand(harness.E2eTest):
    """Without a launcher that sees children die, heartbeats must do it."""

    def train(self):
        nodes = self.start_cluster(sets=[*harness.ENDLESS, *harness.QUICK_DEATH, *harness.FRAGILE])
        self.await_training()
        return nodes

    def test_worker(self):
        nodes = self.train()
        self.check_victim(nodes, "worker-1", "worker")

    def test_server(self):
        nodes = self.train()
        self.check_victim(nodes, "server-1", "server")

    def check_victim(self, nodes, name, role):
        victim = nodes.pop(name)
        victim.signal(signal.SIGKILL)
        victim.wait(harness.FAILURE_S)
        for name, node in nodes.items():
            line = self.assert_fails(node, f"parley-{name.split('-')[0]}: {role} ", f":{victim.pid})",
                                     "is dead: no heartbeat for", "node_timeout_ms is 2000")
            # What was awaited, too: the other worker cannot go on for long.
            self.assertRegex(line, r"in epoch \d+ at step \d+; worker \d waits for .*step \d+")
        self.assertIn(f":{victim.pid}) is dead", self.summary()["reason"])

    def test_scheduler(self):
        nodes = self.train()
        nodes.pop("scheduler").signal(signal.SIGKILL)
        for name, node in nodes.items():
            self.assert_fails(node, f"parley-{name.split('-')[0]}: the scheduler at tcp://127.0.0.1:",
                              "has not answered a heartbeat", "scheduler_timeout_ms is 2000")

    def test_a_worker_that_stands_still(self):
        nodes = self.train()
        victim = nodes.pop("worker-0")
        victim.signal(signal.SIGSTOP)
        for node in nodes.values():
            self.assert_fails(node, f":{victim.pid}) is dead")
        # When it comes back, it learns that it has been given up.
        victim.signal(signal.SIGCONT)
        self.assert_fails(victim, "parley-worker: ")

    def test_a_worker_that_is_told_to_end(self):
        nodes = self.train()
        victim = nodes.pop("worker-0")
        victim.signal(signal.SIGTERM)
        self.assert_fails(victim, "parley-worker: stopped by SIGTERM")
        for node in nodes.values():
            self.assert_fails(node, "worker", f":{victim.pid}) failed: stopped by SIGTERM")

    def test_a_scheduler_that_is_told_to_end(self):
        nodes = self.train()
        nodes["scheduler"].signal(signal.SIGINT)
        for node in nodes.values():
            self.assert_fails(node, "stopped by SIGINT")
        self.assertIn("stopped by SIGINT", self.summary()["reason"])

    def test_everybody_is_told_at_once(self):
        # Ctrl-C in a terminal that runs them all.
        nodes = self.train()
        for node in nodes.values():
            node.signal(signal.SIGINT)
        for node in nodes.values():
            self.assert_fails(node, "SIGINT")


class Interrupted(harness.E2eTest):
    def check(self, run):
        self.assert_fails(run, "parley: interrupted", self.dir / "run", code=130)
        self.assertEqual(self.await_gone(1), {})
        summary = self.summary()
        self.assertFalse(summary["ok"])
        self.assertNotEqual(summary["reason"], "")
        for log in ("scheduler-0", "server-0", "server-1", "worker-0", "worker-1"):
            last = (self.dir / "run" / "logs" / f"{log}.log").read_text().splitlines()[-1]
            self.assertIn("stopped by SIGTERM", last, f"{log} ended in order")

    def test_ctrl_c(self):
        run = self.start_run(sets=harness.ENDLESS)
        self.await_training()
        os.killpg(run.pid, signal.SIGINT)
        self.check(run)

    def test_sigterm(self):
        run = self.start_run(sets=harness.ENDLESS)
        self.await_training()
        run.signal(signal.SIGTERM)
        self.check(run)

    def test_ctrl_c_before_training(self):
        # The workers are still reading their data, or have not even arrived.
        for delay in (0.0, 0.05, 0.15, 0.3):
            name = f"run{delay}"
            run = self.start_run(name=name, sets=["data.synthetic.train_samples=2000000", "training.epochs=1000"])
            self.await_("start of the run", (self.dir / name / "experiment.resolved.textproto").exists)
            time.sleep(delay)
            run.signal(signal.SIGINT)
            self.assert_fails(run, "parley: interrupted", code=130)
            self.assertEqual(self.await_gone(1), {})
            self.assertFalse(self.summary(name)["ok"])

    def test_an_impatient_second_ctrl_c(self):
        run = self.start_run(sets=harness.ENDLESS)
        self.await_training()
        os.kill(self.child("scheduler", 0), signal.SIGSTOP)  # so that the first comes to nothing
        run.signal(signal.SIGINT)
        time.sleep(0.5)
        self.assertIsNone(run.poll(), run.story())
        run.signal(signal.SIGINT)
        self.assert_fails(run, "parley: interrupted", code=130, deadline_s=5)

    def test_ctrl_c_in_one_process(self):
        changes = [word for change in harness.ENDLESS for word in ("--set", change)]
        run = self.start("train", "parley", "train", "--local", harness.TINY, *changes)
        time.sleep(0.5)
        run.signal(signal.SIGINT)
        self.assertIn(run.wait(harness.FAILURE_S), (130, -signal.SIGINT), run.story())


if __name__ == "__main__":
    harness.main()
