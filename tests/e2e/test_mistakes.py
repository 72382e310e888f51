#!/usr/bin/env python3
"""Wrong on purpose: one line that names the thing, the value and what is allowed, the right code, and nobody left."""

import signal

import harness


class Files(harness.E2eTest):
    """Data and experiment files."""

    def idx_experiment(self):
        text = harness.TINY.read_text()
        start = text.index("data {")
        end = text.index("\n}\n", start) + 3
        path = self.dir / "idx.textproto"
        path.write_text(f'{text[:start]}data {{ idx {{ directory: "{self.dir / "data"}" }} }}\n{text[end:]}')
        return path

    def test_good_idx_data(self):
        # What the others of this class break.
        harness.write_idx_data(self.dir / "data")
        self.assertEqual(self.run_to_end(self.idx_experiment())["steps"], 3 * 3)

    def test_missing_data_directory(self):
        run = self.start_run(self.idx_experiment())
        line = self.assert_fails(run, f"{self.dir / 'data'}/train-", "-ubyte.gz: cannot be opened", "log: ")
        self.assertRegex(line, r"^parley: worker [01] \([^)]*\d+\)")
        self.assertNotIn("is ending", line, "a victim of the failure, not its cause")
        summary = self.summary()
        self.assertFalse(summary["ok"])
        self.assertRegex(summary["reason"], r"worker [01] \(.*:\d+\) failed: data: .*cannot be opened")

    def test_missing_data_file(self):
        harness.write_idx_data(self.dir / "data")
        missing = self.dir / "data" / "t10k-labels-idx1-ubyte.gz"
        missing.unlink()
        self.assert_fails(self.start_run(self.idx_experiment()), missing, "cannot be opened", "worker")

    def test_missing_data_with_roles_by_hand(self):
        nodes = {"scheduler": self.start_scheduler(self.idx_experiment(), sets=["cluster.workers=1"])}
        endpoint = self.endpoint()
        for name in ("server-0", "server-1"):
            nodes[name] = self.start_node("server", name, endpoint)
            self.await_(f"place of {name}", lambda: "joined job" in self.log_text(self.log(name)))
        nodes["worker-0"] = self.start_node("worker", "worker-0", endpoint)
        for name, node in nodes.items():
            self.assert_fails(node, f"parley-{name.split('-')[0]}: ", f"{self.dir / 'data'}/train-", "cannot be opened")

    def test_truncated_gz(self):
        harness.write_idx_data(self.dir / "data")
        images = self.dir / "data" / "train-images-idx3-ubyte.gz"
        images.write_bytes(images.read_bytes()[:-20])
        self.assert_fails(self.start_run(self.idx_experiment()), images, "worker", "log: ")

    def test_gz_cut_within_its_header(self):
        harness.write_idx_data(self.dir / "data")
        labels = self.dir / "data" / "train-labels-idx1-ubyte.gz"
        labels.write_bytes(labels.read_bytes()[:5])
        self.assert_fails(self.start_run(self.idx_experiment()), labels)

    def test_a_file_that_is_no_idx(self):
        harness.write_idx_data(self.dir / "data")
        images = self.dir / "data" / "train-images-idx3-ubyte.gz"
        images.write_bytes(b"<html>404 not found</html>" * 10)
        self.assert_fails(self.start_run(self.idx_experiment()), images)

    def test_missing_data_in_one_process(self):
        run = self.start("train", "parley", "train", "--local", self.idx_experiment())
        self.assert_fails(run, f"{self.dir / 'data'}/train-", "cannot be opened")

    def test_typo_in_the_experiment(self):
        path = self.dir / "typo.textproto"
        lines = harness.TINY.read_text().replace("global_batch", "globl_batch").splitlines()
        path.write_text("\n".join(lines) + "\n")
        number = next(i for i, text in enumerate(lines, 1) if "globl_batch" in text)
        for process in (self.start_run(path), self.start("validate", "parley", "validate", path),
                        self.start_scheduler(path)):
            self.assert_fails(process, f"{path}:{number}:3: ", "'training.globl_batch'", "unknown field",
                              "did you mean 'global_batch'?", "allowed: epochs, global_batch", code=2)
        self.assertFalse((self.dir / "run").exists(), "nothing is made for an experiment that cannot run")

    def test_syntax_error_in_the_experiment(self):
        path = self.dir / "syntax.textproto"
        path.write_text(harness.TINY.read_text().replace("epochs: 3", "epochs: three"))
        self.assert_fails(self.start_run(path), f"{path}:", "training.epochs", "three", "allowed: ", code=2)

    def test_impossible_values(self):
        cases = {
            "cluster.servers=0": ("cluster.servers", "0 is out of range", "1..1024"),
            "cluster.partition_kib=6": ("cluster.partition_kib", "6 is no multiple of 4"),
            "cluster.node_timeout_ms=100": ("cluster.node_timeout_ms", "100", ">= 1500"),
            "consistency.mode=SSSP": ("consistency.mode", "SSSP", "BSP, SSP, ASP"),
            "consistency.backup_workers=2": ("consistency.backup_workers", "2 of 2 workers", "0..1"),
            "training.epochs=-1": ("training.epochs", "-1"),
            "optimizer.lr=fast": ("optimizer.lr", "fast"),
        }
        for change, parts in cases.items():
            with self.subTest(change):
                name = "run" + str(list(cases).index(change))
                run = self.start_run(name=name, sets=[change])
                self.assert_fails(run, f"--set {change}", *parts, "allowed: ", code=2)

    def test_an_experiment_that_is_not_there(self):
        self.assert_fails(self.start_run(self.dir / "none.textproto"), self.dir / "none.textproto", "cannot be opened",
                          code=2)

    def test_a_model_that_does_not_fit_its_data(self):
        # Only the workers see the data's shape: no 3 x 3 patch in an image of 1 x 16.
        path = self.dir / "conv.textproto"
        path.write_text(harness.TINY.read_text().replace('name: "flatten1" flatten {}',
                                                         'name: "conv1" conv2d { out_channels: 4 kernel: 3 }'))
        self.assert_fails(self.start_run(path), "worker", "conv1")

    def test_a_run_directory_with_something_in_it(self):
        (self.dir / "run").mkdir()
        (self.dir / "run" / "summary.json").write_text("precious")
        self.assert_fails(self.start_run(), f"--run-dir {self.dir / 'run'}", "exists", "allowed: a new or empty", code=2)
        self.assertEqual((self.dir / "run" / "summary.json").read_text(), "precious")


class Flags(harness.E2eTest):
    """Command lines."""

    def test_unknown_flags(self):
        cases = (("parley", "run", harness.TINY, "--servrs", "3"), ("parley-scheduler", "--experimnt", "x"),
                 ("parley-server", "--schedular", "x"), ("parley-worker", "--schedular", "x"),
                 ("parley", "train", "--locl", "x"))
        expected = ("--servers", "--experiment", "--scheduler", "--scheduler", "--local")
        for number, (command, right) in enumerate(zip(cases, expected)):
            process = self.start(f"p{number}", *command)
            wrong = next(str(a) for a in command if str(a).startswith("--"))
            line = self.assert_fails(process, f"unknown flag '{wrong}'", f"did you mean '{right}'?", "allowed: ",
                                     code=2)
            self.assertEqual(line.count(command[0] + ":") + line.count(command[0] + " "), 1, line)

    def test_values_that_do_not_fit(self):
        at = ("--scheduler", "tcp://127.0.0.1:9")
        cases = {("parley-server", *at, "--shards", "65"): ("--shards", "'65'", "1..64"),
                 ("parley-worker", *at, "--join-timeout", "x"): ("--join-timeout", "'x'"),
                 ("parley", "run", harness.TINY, "--transport", "udp"): ("--transport", "'udp'", "tcp, ipc"),
                 ("parley-scheduler", "--run-dir", "x"): ("--experiment is missing",),
                 ("parley", "runn", "x"): ("unknown command 'runn'", "did you mean 'run'?")}
        for number, (command, parts) in enumerate(cases.items()):
            with self.subTest(command):
                self.assert_fails(self.start(f"p{number}", *command), *parts, code=2)

    def test_an_endpoint_that_is_none(self):
        for role in ("server", "worker"):
            node = self.start_node(role, role, "127.0.0.1")
            self.assert_fails(node, '"127.0.0.1"', "allowed", "tcp://host:port")

    def test_help_is_no_error(self):
        for program in ("parley", "parley-scheduler", "parley-server", "parley-worker"):
            process = self.start(program, program, "--help")
            self.assertEqual(process.wait(harness.FAILURE_S), 0)
            self.assertIn("usage: " + program, process.stdout())
            self.assertEqual(process.stderr(), "")


class Places(harness.E2eTest):
    """Ports, schedulers and jobs that are not what they should be."""

    def test_port_in_use_by_a_stranger(self):
        port = harness.Port(self)
        parts = (f"cannot listen on {port.endpoint}", f"port {port.number} on 127.0.0.1 is in use", "--bind")
        self.assert_fails(self.start_scheduler(bind=port.endpoint), "parley-scheduler: ", *parts)
        server = self.start_node("server", "server", "tcp://127.0.0.1:9", "--bind", port.endpoint)
        self.assert_fails(server, "parley-server: ", *parts)
        self.assertFalse((self.dir / "run").exists(), "a scheduler that cannot listen leaves no record")

    def test_port_of_the_second_shard_in_use(self):
        port = harness.Port(self)
        server = self.start_node("server", "server", "tcp://127.0.0.1:9", "--shards", "2", "--bind",
                                 f"tcp://127.0.0.1:{port.number - 1}")
        # The first shard's port may be somebody's as well.
        self.assert_fails(server, "cannot listen on tcp://127.0.0.1:", "is in use")

    def test_a_torn_state_of_the_scheduler(self):
        directory = self.dir / "state"
        directory.mkdir()
        state = directory / "state"
        state.write_bytes(b"parley-scheduler-state 1 0123")
        self.assert_fails(self.start_scheduler(harness.TINY, "--state", directory), f"'{state}' is torn", "allowed: ")
        anew = self.start_scheduler(harness.TINY, "--state", directory, "--anew", name="anew")
        self.endpoint("anew")
        self.assertFalse(state.exists(), "nothing is saved before all have joined")
        anew.signal(signal.SIGTERM)
        self.assert_fails(anew, "SIGTERM")

    def test_a_file_that_is_no_state(self):
        directory = self.dir / "state"
        directory.mkdir()
        state = directory / "state"
        state.write_text("my diary\n")
        for name, *args in (("plain",), ("anew", "--anew")):
            self.assert_fails(self.start_scheduler(harness.TINY, "--state", directory, *args, name=name),
                              f"'{state}' is no state of a scheduler", "allowed: ")
        self.assertEqual(state.read_text(), "my diary\n")

    def test_addresses_that_are_not_here(self):
        self.assert_fails(self.start_scheduler(bind="tcp://192.0.2.1:0"), "192.0.2.1", "interfaces here")
        self.assert_fails(self.start_scheduler(name="second", bind="tcp://nosuchif0:0"), "nosuchif0")

    def test_a_second_scheduler_on_the_port(self):
        first = self.start_scheduler()
        endpoint = self.endpoint()
        second = self.start_scheduler(name="second", bind=endpoint)  # and in the same run directory
        self.assert_fails(second, f"cannot listen on {endpoint}", "in use")
        # The first does not mind.
        nodes = [self.start_node("server", f"server-{i}", endpoint) for i in range(2)]
        nodes += [self.start_node("worker", f"worker-{i}", endpoint) for i in range(2)]
        for process in (first, *nodes):
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())
        self.assertTrue(self.summary()["ok"])

    def test_a_second_scheduler_on_the_unix_socket(self):
        bind = f"ipc://{self.dir}/scheduler.sock"
        first = self.start_scheduler(bind=bind)
        self.endpoint()
        second = self.start_scheduler(name="second", run="other", bind=bind)
        self.assert_fails(second, bind, "in use")
        first.signal(signal.SIGTERM)
        self.assertNotEqual(first.wait(harness.FAILURE_S), 0)

    def test_nodes_of_another_job(self):
        scheduler = self.start_scheduler()
        endpoint = self.endpoint()
        for role in ("server", "worker"):
            stranger = self.start_node(role, f"other-{role}", endpoint, "--job", "other")
            self.assert_fails(stranger, f"parley-{role}: ", "'tiny_synthetic'", "'other'")
        nodes = [self.start_node("server", f"server-{i}", endpoint, "--job", "tiny_synthetic") for i in range(2)]
        nodes += [self.start_node("worker", f"worker-{i}", endpoint) for i in range(2)]
        for process in (scheduler, *nodes):
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())

    def test_a_scheduler_that_is_not_there(self):
        port = harness.Port(self)
        port.close()
        for role in ("server", "worker"):
            node = self.start_node(role, role, port.endpoint, "--join-timeout", "2")
            self.assert_fails(node, f"parley-{role}: ", f"the scheduler at {port.endpoint}", "did not answer within 2s",
                              "is it running there?", "--join-timeout")

    def test_something_else_where_the_scheduler_should_be(self):
        port = harness.Port(self)  # takes connections and says nothing
        node = self.start_node("worker", "worker", port.endpoint, "--join-timeout", "2")
        self.assert_fails(node, f"the scheduler at {port.endpoint}", "did not answer within 2s",
                              "is it running there?", "--join-timeout")


if __name__ == "__main__":
    harness.main()
