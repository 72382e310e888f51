#!/usr/bin/env python3
"""One thing dies, is slow, or is asked for, while `parley run` trains: it goes on, with the weights of a run where nothing did."""

import fcntl
import os
import re
import signal
import threading

import harness

# Half a minute of steps at most, and progress that is seen soon.
SETS = ("data.synthetic.train_samples=20000", "training.evaluate=false", "training.epochs=12",
        "cluster.heartbeat_ms=100", "cluster.node_timeout_ms=2000")
REPLICAS = ("cluster.replicas=1",)


class Base(harness.E2eTest):
    calm_hash = {}

    def calm(self, sets):
        """The hash of a run in which nothing happens; replicas change no bit."""
        key = tuple(s for s in sets if not s.startswith(("cluster.replicas", "checkpoints.")))
        if key not in self.calm_hash:
            self.calm_hash[key] = self.run_to_end(name=f"calm{len(self.calm_hash)}", sets=key)["weights_sha256"]
        return self.calm_hash[key]

    def start_training(self, *args, sets=SETS, name="run"):
        run = self.start_run(harness.TINY, *args, sets=sets, name=name)
        self.await_training(name)
        return run

    def end_well(self, run, sets, name="run"):
        self.assertEqual(run.wait(2 * harness.RUN_S), 0, run.story())
        self.assertEqual(run.stderr(), "", "a good run says nothing on stderr")
        summary = self.summary(name)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        self.assertEqual(summary["weights_sha256"], self.calm(sets))
        return summary

    def events(self, run="run"):
        return [m["text"] for m in self.metrics(run) if m["type"] == "event"]

    def is_role(self, argv, role, rank):
        return argv[0].endswith(f"/parley-{role}") and str(self.dir / "run" / "logs" / f"{role}-{rank}.log") in argv

    def await_copies(self):
        """Until a kill costs no roll-back: epochs go by meanwhile."""
        self.await_("an epoch with copies", lambda: any(m["type"] == "epoch" for m in self.metrics()))

    def kill(self, role, rank, number=signal.SIGKILL):
        victim = self.child(role, rank)
        os.kill(victim, number)
        return victim


class Comebacks(Base):
    def test_a_worker(self):
        run = self.start_training()
        victim = self.kill("worker", 1)
        self.assertEqual(self.end_well(run, SETS)["workers_replaced"] > 0, True)
        self.assertIn(f"worker 1 (pid {victim}) was killed by signal 9 (Killed); started again as pid", run.stdout())

    def test_a_server_with_copies(self):
        sets = (*SETS, *REPLICAS)
        run = self.start_training(sets=sets)
        self.await_copies()
        self.kill("server", 0)
        summary = self.end_well(run, sets)
        self.assertEqual((summary["failovers"], summary["restarts"]), (1, 0), self.events())

    def test_a_server_without_copies_rolls_back(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        run = self.start_training(sets=sets)
        self.await_("a checkpoint", lambda: any("checkpoint of step" in e for e in self.events()))
        self.kill("server", 1)
        summary = self.end_well(run, sets)
        self.assertEqual(summary["restarts"], 1, self.events())

    def test_the_scheduler(self):
        run = self.start_training()
        before = self.metrics()
        self.kill("scheduler", 0)
        summary = self.end_well(run, SETS)
        self.assertEqual((summary["failovers"], summary["restarts"], summary["workers_replaced"]), (0, 0, 0))
        after = self.metrics()
        self.assertEqual(after[:len(before)], before, "the record is added to")
        self.assertGreater(len(after), len(before))
        self.assertFalse((self.dir / "run" / "state").exists(), "nobody is to go on with a job that is over")

    def test_all_at_once(self):
        sets = (*SETS, *REPLICAS, "checkpoints.every_steps=500")
        run = self.start_training(sets=sets)
        self.await_copies()
        for role, rank in (("scheduler", 0), ("worker", 0), ("server", 1)):
            self.kill(role, rank)
        self.end_well(run, sets)

    def test_a_worker_that_stands_still_for_long(self):
        run = self.start_training("--spare-workers", "1")
        victim = self.kill("worker", 0, signal.SIGSTOP)
        self.await_("its replacement", lambda: any(f":{victim})" in e and "dead" in e for e in self.events()))
        os.kill(victim, signal.SIGCONT)
        self.end_well(run, SETS)

    def test_restarts_that_are_used_up(self):
        run = self.start_run(harness.TINY, "--max-restarts", "1", sets=[*harness.ENDLESS, *harness.QUICK_DEATH])
        self.await_training()
        first = self.kill("worker", 0)
        self.await_("another process in its place", lambda: first not in harness.processes_with(self.dir)
                    and any(self.is_role(argv, "worker", 0) for argv in harness.processes_with(self.dir).values()))
        second = self.kill("worker", 0)
        self.assert_fails(run, "parley: worker 0", f"(pid {second}) was killed by signal 9")


class Saved(Base):
    def checkpoints(self, run="run"):
        return sorted(p.name for p in (self.dir / run / "checkpoints").glob("step-*"))

    def test_a_checkpoint_now(self):
        sets = (*SETS, "training.epochs=120")  # the second is asked for when the first is written
        run = self.start_training(sets=sets)
        saved = self.start("save", "parley", "save", self.dir / "run")
        self.assertEqual(saved.wait(harness.FAILURE_S), 0, saved.story())
        self.assertRegex(saved.stdout(), r"^checkpoint of step \d+ written in ")
        self.assertEqual(len(self.checkpoints()), 1)
        run.signal(signal.SIGUSR1)
        self.await_("a second checkpoint", lambda: len(self.checkpoints()) == 2)
        self.end_well(run, sets)

    def resume(self, *args, name="resumed", sets=(), resume="run"):
        for change in sets:
            args += ("--set", change)
        return self.start(f"{name}-cli", "parley", "run", "--resume", self.dir / resume, "--run-dir", self.dir / name, *args)

    def interrupted(self, sets):
        run = self.start_training(sets=sets)
        self.await_("a checkpoint", self.checkpoints)
        run.signal(signal.SIGINT)
        self.assertEqual(run.wait(harness.FAILURE_S), 130, run.story())

    def test_resume_on_other_servers(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        self.interrupted(sets)
        for servers in (1, 3):
            name = f"resumed{servers}"
            run = self.resume("--servers", servers, name=name)
            self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
            self.assertEqual(self.summary(name)["weights_sha256"], self.calm(sets))

    def test_resume_in_the_same_directory(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        self.interrupted(sets)
        before = self.metrics()
        run = self.resume(name="run")
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertEqual(self.summary()["weights_sha256"], self.calm(sets))
        self.assertEqual(self.metrics()[:len(before)], before)

    def test_resume_after_everybody_was_killed(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        run = self.start_training(sets=sets)
        self.await_("a checkpoint", self.checkpoints)
        run.signal(signal.SIGKILL)
        run.wait(harness.FAILURE_S)
        self.assertEqual(self.await_gone(harness.FAILURE_S), {})
        run = self.resume(name="run")
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertEqual(self.summary()["weights_sha256"], self.calm(sets))

    def test_a_run_that_goes_on_is_left_alone(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        run = self.start_training(sets=sets)
        self.await_("a checkpoint", self.checkpoints)
        files = [self.dir / "run" / name for name in ("experiment.resolved.textproto", "scheduler.endpoint")]
        before = [(path.read_bytes(), path.stat().st_ino) for path in files]
        second = self.start("second", "parley", "run", "--resume", self.dir / "run", "--run-dir", self.dir / "run", "--set",
                            "optimizer.lr=0.5")
        self.assert_fails(second, f"directory {self.dir / 'run'}:",
                          "another parley run", "allowed: ", code=2)
        self.assertEqual([(path.read_bytes(), path.stat().st_ino) for path in files], before)
        self.end_well(run, sets)
        self.assertFalse((self.dir / "run" / "lock").exists())

    def test_a_directory_that_a_scheduler_holds_is_left_alone(self):
        sets = (*SETS, "checkpoints.every_steps=500")
        run = self.start_training(sets=sets)
        self.await_("a checkpoint", self.checkpoints)
        run.signal(signal.SIGKILL)
        run.wait(harness.FAILURE_S)
        self.assertEqual(self.await_gone(harness.FAILURE_S), {})
        # As the scheduler does, of a run that was killed or one by hand.
        with open(self.dir / "run" / "state" / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.assert_fails(self.resume(name="run"), self.dir / "run", "a scheduler has its state/", code=2)
            self.assertTrue((self.dir / "run" / "scheduler.endpoint").exists())
            self.assertFalse((self.dir / "run" / "summary.json").exists())
        run = self.resume(name="run")
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())

    def test_a_relative_directory_is_found_from_anywhere(self):
        run = self.start_run(sets=[*SETS, "checkpoints.every_steps=500", "checkpoints.directory=of-run/../saved"])
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertIn(f'directory: "{self.dir}/saved"',
                      (self.dir / "run" / "experiment.resolved.textproto").read_text())

        def elsewhere():
            os.chdir("/")

        listed = self.start("list", "parley", "checkpoint", "list", self.dir / "run", preexec=elsewhere)
        self.assertEqual(listed.wait(harness.FAILURE_S), 0, listed.story())
        self.assertIn("yes", listed.stdout())
        # To another place, in the same run directory: the newest of that place counts from then on.
        moved = self.start("moved", "parley", "run", "--resume", self.dir / "run", "--run-dir", self.dir / "run", "--set",
                           f"checkpoints.directory={self.dir}/moved", "--set", "checkpoints.at_end=true",
                           preexec=elsewhere)
        self.assertEqual(moved.wait(harness.RUN_S), 0, moved.story())
        self.assertIn(f"from {self.dir}/saved/step-", moved.stdout())
        inspected = self.start("inspect", "parley", "checkpoint", "inspect", self.dir / "run", preexec=elsewhere)
        self.assertEqual(inspected.wait(harness.FAILURE_S), 0, inspected.story())
        self.assertIn(f"{self.dir}/moved/step-", inspected.stdout())

    def test_nothing_to_resume(self):
        (self.dir / "run").mkdir()
        self.assert_fails(self.resume(), "--resume", self.dir / "run", "allowed: ", code=2)
        self.assert_fails(self.start("both", "parley", "run", harness.TINY, "--resume", self.dir / "run"), "allowed: ", code=2)
        self.assert_fails(self.start("neither", "parley", "run"), "FILE is missing", "--resume", code=2)


class Resized(Base):
    def resize(self, servers, name):
        process = self.start(name, "parley", "resize", "--servers", servers, self.dir / "run")
        self.assertEqual(process.wait(2 * harness.FAILURE_S), 0, process.story())
        return process.stdout()

    def test_more_servers_and_fewer(self):
        run = self.start_training("--spare-servers", "1")
        self.assertIn("3 servers", self.resize(3, "grow"))
        self.assertIn("1 server", self.resize(1, "shrink"))
        self.end_well(run, SETS)

    def test_more_than_there_are(self):
        run = self.start_training()
        process = self.start("resize", "parley", "resize", "--servers", "9", self.dir / "run")
        self.assertNotEqual(process.wait(harness.FAILURE_S), 0, process.story())
        self.assertEqual(len(process.stderr().splitlines()), 1, process.story())
        run.signal(signal.SIGINT)
        run.wait(harness.FAILURE_S)

    def test_nobody_to_ask(self):
        self.assert_fails(self.start("where", "parley", "resize", "--servers", "2", self.dir), "is no run directory",
                          "allowed: ", code=2)
        self.assert_fails(self.start("what", "parley", "resize", self.dir), "--servers is missing", "allowed: 1..1024", code=2)
        port = harness.Port(self)
        port.close()
        self.assert_fails(self.start("nobody", "parley", "save", port.endpoint), port.endpoint, "is it running there?")


class Slow(Base):
    # Steps that compute for milliseconds: a worker that gets a tenth of its time is many times as slow, whatever else goes on.
    SETS = ("data.synthetic.train_samples=20000", "data.synthetic.width=64", "model.layer[1].linear.out=512",
            "training.global_batch=256", "training.epochs=1000", "training.max_steps=1500", "training.evaluate=false",
            "cluster.heartbeat_ms=100")
    RUNS_S, STANDS_S = 0.01, 0.09

    def slow_down(self, pid):
        """Lets the process run a tenth of the time, until the test says that it is enough, or ends."""
        enough = threading.Event()

        def cycle():
            try:
                while not enough.wait(self.RUNS_S):
                    os.kill(pid, signal.SIGSTOP)
                    enough.wait(self.STANDS_S)
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # the run is over

        thread = threading.Thread(target=cycle)
        thread.start()

        def end():
            enough.set()
            thread.join()

        self.addCleanup(end)
        return end

    def test_its_work_goes_to_another(self):
        run = self.start_training("--spare-workers", "1", sets=(*self.SETS, "cluster.slow_worker_factor=3"))
        # Whichever process has the place: who comes as a spare may be there sooner.
        slow = int(re.findall(r"^worker 1 \(.*:(\d+)\) is ready ", "\n".join(self.events()), re.MULTILINE)[-1])
        end = self.slow_down(slow)
        self.await_("its verdict", lambda: run.poll() is not None or any(
            re.fullmatch(rf"worker 1 \(.*:{slow}\) is slow: \d\.\d+ s a step, more than 3\.0 times the median", event)
            for event in self.events()), harness.RUN_S)
        self.await_("its work elsewhere", lambda: run.poll() is not None or any(
            "logical worker 1 goes on at " in event and f":{slow})" not in event for event in self.events()))
        self.assertIsNone(run.poll(), f"it ended before that\n{run.story()}")
        end()
        self.end_well(run, self.SETS)
        self.assertNotIn("started again", run.stdout(), "nobody was lost")


if __name__ == "__main__":
    harness.main()
