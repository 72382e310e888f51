#!/usr/bin/env python3
"""Roles that are started one by one, as on several hosts."""

import signal

import harness


class ByHand(harness.E2eTest):
    def end_well(self, nodes):
        for process in nodes:
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())
            self.assertEqual(process.stderr(), "", process.name)

    def test_two_servers_two_workers(self):
        nodes = self.start_cluster()
        self.end_well(nodes.values())
        summary = self.summary()
        self.assertTrue(summary["ok"])
        self.assertEqual(summary["steps"], 48)
        # Placed by somebody else, the same weights.
        self.assertEqual(summary["weights_sha256"], self.run_to_end(name="by-parley")["weights_sha256"])

    def test_a_server_with_two_shards(self):
        scheduler = self.start_scheduler(sets=["cluster.servers=1", "cluster.shards_per_server=2"])
        endpoint = self.endpoint()
        server = self.start_node("server", "server", endpoint, "--shards", "2")
        workers = [self.start_node("worker", f"worker-{i}", endpoint) for i in range(2)]
        self.end_well([scheduler, server, *workers])
        log = self.log_text(self.log("server"))
        for shard in (0, 1):
            self.assertIn(f"server 0 shard {shard}, listening on tcp://127.0.0.1:", log)

    def test_a_server_with_a_shard_too_many(self):
        scheduler = self.start_scheduler(sets=["cluster.servers=1"])
        server = self.start_node("server", "server", self.endpoint(), "--shards", "2")
        self.assert_fails(server, "shard 1", "one too many", "shards_per_server 1")
        scheduler.signal(signal.SIGTERM)
        scheduler.wait(harness.FAILURE_S)

    def test_workers_and_servers_ahead_of_the_scheduler(self):
        # Its port, known before it is there.
        port = harness.Port(self)
        endpoint = port.endpoint
        port.close()
        nodes = [self.start_node("worker", f"worker-{i}", endpoint) for i in range(2)]
        nodes += [self.start_node("server", f"server-{i}", endpoint) for i in range(2)]
        self.await_("nodes that try",
                    lambda: all("joining" in self.log_text(self.log(f"worker-{i}")) for i in range(2)))
        nodes.append(self.start_scheduler(bind=endpoint))
        self.end_well(nodes)

    def test_over_unix_sockets(self):
        bind = f"ipc://{self.dir}/scheduler.sock"
        nodes = [self.start_scheduler(bind=bind, sets=["cluster.transport=IPC"])]
        self.assertEqual(self.endpoint(), bind)
        nodes += [self.start_node("server", f"server-{i}", bind, "--bind", f"ipc://{self.dir}/server-{i}.sock")
                  for i in range(2)]
        nodes += [self.start_node("worker", f"worker-{i}", bind) for i in range(2)]
        self.end_well(nodes)
        self.assertEqual(list(self.dir.glob("*.sock*")), [], "sockets are taken away")

    def test_surplus_nodes_wait_as_spares(self):
        sets = ["cluster.servers=1", "cluster.workers=1", "data.synthetic.train_samples=20000", "training.epochs=3"]
        scheduler = self.start_scheduler(sets=sets)
        endpoint = self.endpoint()
        nodes = [self.start_node("server", "server", endpoint), self.start_node("worker", "worker", endpoint)]
        self.await_("a worker with a place", lambda: "as worker 0" in self.log_text(self.log("worker")))
        self.await_("a server with a place", lambda: "as server 0" in self.log_text(self.log("server")))
        spare = self.start_node("worker", "spare", endpoint)
        spare_server = self.start_node("server", "spare-server", endpoint)
        self.await_("a spare worker", lambda: "as a spare" in self.log_text(self.log("spare")))
        self.await_("a spare server", lambda: "spare server" in self.log_text(self.log("spare-server")))
        self.end_well([scheduler, spare, spare_server, *nodes])
        self.assertEqual(self.summary()["steps"], 3 * 20000 // 32)

    def test_a_spare_that_dies_does_not_matter(self):
        sets = ["cluster.servers=1", "cluster.workers=1", "data.synthetic.train_samples=20000", "training.epochs=4",
                *harness.QUICK_DEATH]
        scheduler = self.start_scheduler(sets=sets)
        endpoint = self.endpoint()
        nodes = [self.start_node("server", "server", endpoint), self.start_node("worker", "worker", endpoint)]
        self.await_("a worker with a place", lambda: "as worker 0" in self.log_text(self.log("worker")))
        spare = self.start_node("worker", "spare", endpoint)
        self.await_("a spare worker", lambda: "as a spare" in self.log_text(self.log("spare")))
        spare.signal(signal.SIGKILL)
        self.end_well([scheduler, *nodes])
        self.assertTrue(self.summary()["ok"])

    def test_it_says_whom_it_waits_for(self):
        # One worker never comes.
        scheduler = self.start_scheduler(sets=["cluster.start_timeout_ms=1500"])
        endpoint = self.endpoint()
        nodes = [self.start_node("server", f"server-{i}", endpoint) for i in range(2)]
        nodes.append(self.start_node("worker", "worker", endpoint))
        self.assert_fails(scheduler, "did not start within start_timeout_ms 1500", "missing: worker 1")
        for node in nodes:
            self.assert_fails(node, "missing: worker 1")
        self.assertIn("missing: worker 1", self.summary()["reason"])


if __name__ == "__main__":
    harness.main()
