#!/usr/bin/env python3
"""Two schedulers over an etcd, of which one leads: the other takes over when that one dies or stands still, and knows when the job
is over."""

import shutil
import signal
import urllib.error
import urllib.request

import harness

# A quarter of a minute of steps: more than a lease lasts.
SETS = ("data.synthetic.train_samples=20000", "training.evaluate=false", "training.epochs=12",
        "cluster.heartbeat_ms=100", "cluster.node_timeout_ms=2000")
JOB = "tiny_synthetic"


@harness.unittest.skipIf(shutil.which("etcd") is None, "etcd is not installed (Debian: etcd-server)")
class TwoSchedulers(harness.E2eTest):
    calm_hash = None

    def setUp(self):
        super().setUp()
        self.etcd = self.start_etcd()
        self.ports = [harness.Port(self) for _ in range(2)]
        for port in self.ports:
            port.close()

    def start_etcd(self):
        """Its host:port. Somebody may take the ports before it does: then with others."""
        for attempt in range(3):
            ports = [harness.Port(self) for _ in range(2)]
            client, peer = (f"http://127.0.0.1:{port.number}" for port in ports)
            for port in ports:
                port.close()
            process = harness.Process(f"etcd-{attempt}", [
                shutil.which("etcd"), "--data-dir", self.dir / f"etcd-{attempt}", "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}", "--unsafe-no-fsync"], self.dir, self.env)
            self.processes.append(process)
            self.addCleanup(lambda process=process: process.poll() is None and process.signal(signal.SIGKILL))
            if self.await_("an etcd that answers, or ends",
                           lambda: process.poll() is not None or self.answers(client), harness.RUN_S) and process.poll() is None:
                return client.removeprefix("http://")
        raise AssertionError("etcd does not start\n" + "\n".join(p.story() for p in self.processes))

    @staticmethod
    def answers(url):
        try:
            with urllib.request.urlopen(url + "/health", timeout=2) as answer:
                return b"true" in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def start_one(self, index, sets):
        return self.start_scheduler(harness.TINY, "--state", f"etcd://{self.etcd}", name=f"scheduler-{index}", sets=sets,
                                    bind=self.ports[index].endpoint)

    def start_job(self, sets):
        """The scheduler that leads, the one that waits, and the nodes."""
        first = self.start_one(0, sets)
        self.endpoint("scheduler-0")
        second = self.start_one(1, sets)
        self.await_("a second scheduler that waits", lambda: f":{first.pid} leads job '{JOB}'; waiting" in second.stderr())
        places = [port.endpoint for port in self.ports]
        nodes = []
        for index in range(2):
            nodes.append(self.start_node("server", f"server-{index}", ",".join(places), "--rank", index))
            # Workers look for it at the wrong place first.
            nodes.append(self.start_node("worker", f"worker-{index}", ",".join(reversed(places)), "--rank", index))
        return first, second, nodes

    def calm(self):
        if self.calm_hash is None:
            TwoSchedulers.calm_hash = self.run_to_end(name="calm", sets=SETS)["weights_sha256"]
        return self.calm_hash

    def steps(self):
        return max([m["step"] for m in self.metrics() if m["type"] == "progress"], default=0)

    def end_well(self, second, nodes):
        for process in nodes:
            self.assertEqual(process.wait(2 * harness.RUN_S), 0, process.story())
            self.assertEqual(process.stderr(), "", process.name)
        self.assertEqual(second.wait(harness.FAILURE_S), 0, second.story())
        summary = self.summary()
        self.assertEqual(summary["weights_sha256"], self.calm())
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        self.assertEqual((summary["restarts"], summary["failovers"], summary["workers_replaced"]), (0, 0, 0))
        for index in range(2):
            log = self.log_text(self.log(f"server-{index}"))
            self.assertIn(f"the scheduler is back at {self.ports[1].endpoint} after ", log)

    def test_the_one_that_leads_is_killed(self):
        first, second, nodes = self.start_job(SETS)
        self.await_training()
        first.signal(signal.SIGKILL)
        self.assertEqual(self.endpoint("scheduler-1"), self.ports[1].endpoint)
        self.end_well(second, nodes)

    def test_the_one_that_leads_stands_still_for_longer_than_its_lease(self):
        first, second, nodes = self.start_job(SETS)
        self.await_training()
        first.signal(signal.SIGSTOP)
        self.endpoint("scheduler-1")
        before = self.steps()
        self.await_("steps that the second sees", lambda: self.steps() > before, harness.RUN_S)
        first.signal(signal.SIGCONT)
        self.assert_fails(first, f"the lease of job '{JOB}' in etcd is lost: another scheduler may lead it now")
        self.end_well(second, nodes)
        # What it had to say before it stood still, and nothing since.
        self.assertNotIn("leads the job no more", self.log_text(self.log("scheduler-0")))
        # A line of progress may be its last word: it says how things stood, and goes behind what the other has written.
        times = [m["seconds"] for m in self.metrics() if m["type"] != "progress"]
        self.assertEqual(times, sorted(times), "nobody else writes the record any more")

    def test_the_one_that_waits_ends_with_the_job(self):
        first, second, nodes = self.start_job(["training.epochs=3"])
        for process in [first, *nodes]:
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())
        self.assertEqual(second.wait(harness.FAILURE_S), 0, second.story())
        self.assertIn(f"job '{JOB}' is over: ", second.stderr())
        self.assertFalse((self.dir / "scheduler-1.endpoint").exists(), "it has never led")
        self.assertTrue(self.summary()["ok"])


if __name__ == "__main__":
    harness.main()
