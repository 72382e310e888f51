#!/usr/bin/env python3
"""Keys: a cluster trains with them to the same weights, and nobody else gets in or listens to others."""

import os
import re
import stat

import harness
import zmtp

QUICK_JOIN = ("--join-timeout", "3")


class Security(harness.E2eTest):
    def keygen(self, name="keys", *args, code=0):
        process = self.start(f"keygen-{name}-{len(self.processes)}", "parley", "keygen", "--out", self.dir / name, *args)
        self.assertEqual(process.wait(harness.FAILURE_S), code, process.story())
        return self.dir / name

    def authorize(self, source, target):
        """Whoever `source` lets in and knows, `target` knows, too, and not the other way."""
        for path in (source / "authorized").iterdir():
            own = target / "authorized" / path.name
            if not own.exists():
                own.write_bytes(path.read_bytes())

    def start_secure_cluster(self, keys, sets=harness.ENDLESS):
        """A scheduler and a server; the worker is the test's to start."""
        scheduler = self.start_scheduler(harness.TINY, "--keys", keys,
                                         sets=[*sets, "cluster.servers=1", "cluster.workers=1"])
        endpoint = self.endpoint()
        self.start_node("server", "server-0", endpoint, "--keys", keys, "--transport", "tcp")
        return scheduler, endpoint

    def test_a_run_with_keys_ends_with_the_same_weights(self):
        sets = ("cluster.transport=TCP",)
        plain = self.run_to_end(name="plain", sets=sets)
        secure = self.run_to_end(harness.TINY, "--secure", name="secure", sets=sets)
        self.assertEqual(secure["weights_sha256"], plain["weights_sha256"])
        keys = self.dir / "secure" / "keys"
        self.assertEqual(stat.S_IMODE(keys.stat().st_mode), 0o700)
        for role in ("scheduler", "server", "worker"):
            self.assertEqual(stat.S_IMODE((keys / f"{role}.key").stat().st_mode), 0o600)
        # It was the network, and each server told its key.
        log = self.log_text(self.dir / "secure" / "logs" / "worker-0.log")
        self.assertRegex(log, r"over tcp://127\.0\.0\.1:\d+#.{40}")

    def test_a_cluster_by_hand_takes_members_with_keys_alone(self):
        keys = self.keygen()
        scheduler, endpoint = self.start_secure_cluster(keys)
        log = self.log("scheduler")
        # No key.
        bare = self.start_node("worker", "bare", endpoint, *QUICK_JOIN)
        self.assert_fails(bare, "did not answer within")
        self.assertRegex(self.log_text(log), "refused .*: a connection that (knows no|ended before)")
        # A key that is not authorized; the scheduler's is the right one, so that it is heard.
        others = self.keygen("others", "--roles", "worker", "--name", "other")
        self.authorize(keys, others)
        stranger = self.start_node("worker", "stranger", endpoint, "--keys", others, *QUICK_JOIN)
        self.assert_fails(stranger, "did not answer within", "do not have each other's keys")
        self.await_("refusal of a key", lambda: "nobody's in authorized/" in self.log_text(log))
        # A worker's key in a server's file is no server's.
        posing = self.keygen("posing", "--roles", "server", "--name", "posing")
        text = (keys / "worker.key").read_text().replace("role worker", "role server")
        (posing / "server.key").write_text(text)
        self.authorize(keys, posing)
        server = self.start_node("server", "posing-server", endpoint, "--keys", posing, *QUICK_JOIN)
        self.assert_fails(server, "HELLO", "whose key is a worker's")
        self.assertIn("whose key is a worker's", self.log_text(log))
        # One of its own.
        self.start_node("worker", "worker-0", endpoint, "--keys", keys)
        self.await_training()
        scheduler.signal(15)

    def test_secrets_that_others_can_read_are_refused(self):
        keys = self.keygen()
        os.chmod(keys / "server.key", 0o644)
        server = self.start_node("server", "server", "tcp://127.0.0.1:9", "--keys", keys)
        self.assert_fails(server, "server.key", "mode 0644", "chmod 600")
        missing = self.start_node("worker", "worker", "tcp://127.0.0.1:9", "--keys", self.dir / "nowhere")
        self.assert_fails(missing, "nowhere/worker.key", "parley keygen")

    def test_keygen_overwrites_nothing_and_knows_its_roles(self):
        keys = self.keygen("keys", "--roles", "server,worker", "--name", "rack-1")
        self.assertEqual(sorted(os.listdir(keys / "authorized")), ["server-rack-1.pub", "worker-rack-1.pub"])
        before = (keys / "server.key").read_bytes()
        self.keygen("keys", "--roles", "server", code=2)
        self.assertEqual((keys / "server.key").read_bytes(), before)
        self.keygen("keys", "--roles", "baker", code=2)

    def test_keygen_makes_no_keys_where_others_may_replace_them(self):
        shared = self.dir / "shared"
        shared.mkdir()
        os.chmod(shared, 0o777)
        refused = self.start("refused", "parley", "keygen", "--out", shared)
        self.assert_fails(refused, shared, "mode 0777", "chmod go-w", code=2)
        self.assertEqual(os.listdir(shared), [])

    def test_a_run_that_goes_on_keeps_its_keys(self):
        sets = ("cluster.transport=TCP", "checkpoints.at_end=true")
        both = self.start_run(harness.TINY, "--secure", "--keys", self.dir, sets=sets)
        self.assert_fails(both, "--keys", "--secure", "allowed: one", code=2)
        self.assertFalse((self.dir / "run").exists(), "so that the command can be put right")
        self.run_to_end(harness.TINY, "--secure", sets=sets)
        public = (self.dir / "run" / "keys" / "authorized" / "server-main.pub").read_text()
        (self.dir / "run" / "logs" / "worker-0.log").unlink()
        again = self.start("again", "parley", "run", "--resume", self.dir / "run", "--run-dir", self.dir / "run", "--set",
                           "training.epochs=4")
        self.assertEqual(again.wait(harness.RUN_S), 0, again.story())
        self.assertIn(f"uses the keys of the run so far, {self.dir}/run/keys", again.stdout())
        key = re.search(r"public (.{40})", public)[1]
        self.assertRegex(self.log_text(self.dir / "run" / "logs" / "worker-0.log"),
                         r"over tcp://127\.0\.0\.1:\d+#" + re.escape(key))

    def test_connections_past_the_limit_wait_and_the_job_goes_on(self):
        scheduler = self.start_scheduler(harness.TINY, "--max-connections", "3",
                                         sets=["cluster.servers=1", "cluster.workers=1"])
        port = int(self.endpoint().rsplit(":", 1)[1])
        # Each is greeted before the next comes: what is let in is what the scheduler has.
        held = [zmtp.connect(port) for _ in range(3)]
        self.addCleanup(lambda: [s.close() for s in held])
        self.await_("the limit", lambda: "3 connections are open, allowed are 3" in self.log_text(self.log("scheduler")))
        # They never say who they are, so that there is room for members soon.
        nodes = [self.start_node(role, role, f"tcp://127.0.0.1:{port}") for role in ("server", "worker")]
        for process in (scheduler, *nodes):
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())

    def test_other_machines_are_listened_to_with_keys_or_on_request(self):
        refused = self.start_scheduler(bind="tcp://0.0.0.0:0")
        self.assert_fails(refused, "cannot listen on tcp://0.0.0.0:0", "--keys", "--insecure")
        server = self.start_node("server", "server", "tcp://127.0.0.1:9", "--bind", "tcp://0.0.0.0:0")
        self.assert_fails(server, "cannot listen on tcp://0.0.0.0:0", "--keys", "--insecure")
        self.start_scheduler(name="asked", run="asked", bind="tcp://0.0.0.0:0", sets=["cluster.insecure=true"])
        self.endpoint("asked")
        self.assertIn("warning: tcp://", self.log_text(self.log("asked")))
        self.start_scheduler(harness.TINY, "--insecure", name="flag", run="flag", bind="tcp://0.0.0.0:0")
        self.endpoint("flag")
        self.start_scheduler(harness.TINY, "--keys", self.keygen(), name="keyed", run="keyed", bind="tcp://0.0.0.0:0")
        self.endpoint("keyed")
        self.assertNotIn("warning", self.log_text(self.log("keyed")))
        for process in self.processes:
            if process.poll() is None:
                process.signal(15)

    def test_a_job_is_ordered_about_with_its_schedulers_key(self):
        run = self.start_run(harness.TINY, "--secure", sets=harness.ENDLESS)
        self.await_training()
        saved = self.start("save", "parley", "save", self.dir / "run")
        self.assertEqual(saved.wait(harness.RUN_S), 0, saved.story())
        again = self.start("again", "parley", "checkpoint", "now", self.dir / "run")
        self.assertEqual(again.wait(harness.RUN_S), 0, again.story())
        self.assertRegex(again.stdout(), "checkpoint")
        mine = self.keygen("mine", "--roles", "scheduler", "--name", "mine")
        (mine / "authorized" / "scheduler-mine.pub").unlink()
        endpoint = (self.dir / "run" / "scheduler.endpoint").read_text().strip()
        self.authorize(self.dir / "run" / "keys", mine)
        other = self.start("other", "parley", "save", endpoint, "--keys", mine)
        self.assert_fails(other, "did not answer within", f"with the scheduler's key in '{mine}' (of --keys)", "allowed: ")
        bare = self.start("bare", "parley", "save", endpoint)
        self.assert_fails(bare, "did not answer within", "without keys", "--keys DIR")
        run.signal(2)
        run.wait(harness.FAILURE_S)


if __name__ == "__main__":
    harness.main()
