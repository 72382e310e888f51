#!/usr/bin/env python3
"""Whatever strangers send to the open ports, training goes on and ends with the same weights."""

import random
import re
import time

import harness
import zmtp

SETS = ("data.synthetic.train_samples=20000", "training.epochs=6", "training.evaluate=false")


class Strangers(harness.E2eTest):
    def setUp(self):
        super().setUp()
        self.random = random.Random(42)
        self.sent = 0

    def bytes(self, most):
        return self.random.randbytes(self.random.randint(1, most))

    def ports(self):
        """The scheduler's and both servers'."""
        found = []
        for log in ("scheduler-0", "server-0", "server-1"):
            path = self.dir / "run" / "logs" / f"{log}.log"
            match = self.await_(f"port of {log}",
                                lambda: re.search(r"listens on tcp://127\.0\.0\.1:(\d+)", self.log_text(path)))
            found.append(int(match.group(1)))
        return found

    def send(self, open_socket, data):
        """Sends and goes away; being thrown out is as good."""
        try:
            open_socket.sendall(data)
            self.sent += 1
            # Until it hangs up, or has read what there was to read.
            open_socket.settimeout(0.05)
            while open_socket.recv(65536):
                pass
        except OSError:
            pass
        finally:
            open_socket.close()

    def disturb(self, run, attack):
        """Attacks every port in turn while the run lasts, as many times as it takes, at least once each."""
        self.await_training()
        ports = self.ports()
        rounds = 0
        while run.poll() is None and rounds < 200:
            for port in ports:
                try:
                    attack(port)
                except OSError:
                    if run.poll() is None and rounds == 0:
                        raise
            rounds += 1
        return rounds

    def check(self, attack, refused):
        run = self.start_run(sets=SETS)
        self.assertGreater(self.disturb(run, attack), 0)
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertEqual(run.stderr(), "")
        self.assertGreater(self.sent, 0)
        summary = self.summary()
        self.assertEqual(summary["weights_sha256"], self.calm_hash())
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        self.assertEqual(summary["steps"], 6 * 20000 // 32)
        if refused:  # the nodes have seen them
            for log in ("scheduler-0", "server-0", "server-1"):
                self.assertIn("refused", self.log_text(self.dir / "run" / "logs" / f"{log}.log"), log)

    def calm_hash(self):
        return self.run_to_end(name="calm", sets=SETS)["weights_sha256"]

    def test_random_bytes(self):
        self.check(lambda port: self.send(zmtp.connect(port), self.bytes(20000)), refused=False)

    def test_a_greeting_and_then_random_bytes(self):
        def attack(port):
            self.send(zmtp.connect(port), zmtp.GREETING[:self.random.randint(1, 64)] + self.bytes(2000))
            self.send(zmtp.connect(port), zmtp.GREETING + zmtp.frame(self.bytes(300), command=True) + self.bytes(300))
            # A frame that says it is 2^62 bytes long.
            self.send(zmtp.connect(port), zmtp.GREETING + b"\x02\x40" + bytes(7) + self.bytes(100))
        self.check(attack, refused=False)

    def test_connections_that_say_nothing(self):
        held = []
        self.addCleanup(lambda: [s.close() for s in held])

        def attack(port):
            if len(held) < 100:
                held.append(zmtp.connect(port))
                self.sent += 1
            else:
                time.sleep(0.05)
        self.check(attack, refused=False)

    def test_zeromq_messages_of_random_bytes(self):
        def attack(port):
            a_node = zmtp.routing_id(self.random.getrandbits(64) | 1)
            identity = self.random.choice((a_node, b"x", zmtp.routing_id(0), b""))
            stranger = zmtp.dealer(port, identity)
            garbage = [zmtp.message(*(self.bytes(400) for _ in range(self.random.randint(1, 6)))) for _ in range(20)]
            garbage += [zmtp.message(b""), zmtp.message(b"", b""), zmtp.message(b"PRLY"), zmtp.message(b"x" * 100000)]
            self.send(stranger, b"".join(garbage))
        self.check(attack, refused=True)

    def test_frames_that_lie(self):
        """The envelope is right, what is in it is not."""
        def attack(port):
            me = self.random.getrandbits(64) | 1
            stranger = zmtp.dealer(port, zmtp.routing_id(me))
            good = zmtp.header(zmtp.PULL, 1, me)
            frames = [
                zmtp.envelope(self.bytes(200)),                                  # no Protobuf
                zmtp.envelope(zmtp.header(99, 1, me)),                           # no kind
                zmtp.envelope(zmtp.header(zmtp.PULL, 1, me ^ 2)),                # somebody else's name
                zmtp.envelope(zmtp.header(zmtp.HELLO, 0, me, protocol=77)),      # another protocol
                zmtp.envelope(good)[:-1], zmtp.envelope(good) + b"x",            # lengths
                zmtp.envelope(good)[:12] + b"\0\0\0\0" + good,                   # checksum
                zmtp.envelope(zmtp.header(zmtp.HELLO, 0, me, body=self.bytes(100))),
            ]
            self.send(stranger, b"".join(zmtp.message(f) for f in frames))
        self.check(attack, refused=True)

    def test_frames_of_another_job(self):
        def attack(port):
            me = self.random.getrandbits(64) | 1
            stranger = zmtp.dealer(port, zmtp.routing_id(me))
            kinds = (zmtp.STOP, zmtp.PUSH, zmtp.PULL, zmtp.LEAVE, zmtp.ASSIGN, zmtp.COUNT, zmtp.FAILED)
            frames = [zmtp.envelope(zmtp.header(kind, 0x1234, me, request_id=i + 1)) for i, kind in enumerate(kinds)]
            # Each request but FAILED, which is one-way, is answered with the reason.
            stranger.settimeout(2)
            answer = b""
            try:
                stranger.sendall(b"".join(zmtp.message(f) for f in frames))
                while answer.count(b"this node is of job") < len(kinds) - 1:
                    more = stranger.recv(65536)
                    if not more:
                        break
                    answer += more
            except TimeoutError:
                pass
            finally:
                stranger.close()
            self.answers = max(self.answers, answer.count(b"the frame is of job 0000000000001234"))
            self.sent += 1
        self.answers = 0
        self.check(attack, refused=False)
        self.assertGreaterEqual(self.answers, 6)

    def test_frames_of_this_job_from_nobody_who_is_in_it(self):
        """As from a node of an earlier run of the same name, which has not noticed that it is over."""
        kinds = (zmtp.REGISTER, zmtp.HEARTBEAT, zmtp.REPORT, zmtp.FINISHED, zmtp.FAILED, zmtp.ASSIGN, zmtp.STOP,
                 zmtp.PUSH, zmtp.PULL, zmtp.LEAVE, zmtp.NORM)
        job = zmtp.job_id("tiny_synthetic")

        def attack(port):
            me = self.random.getrandbits(64) | 1
            stranger = zmtp.dealer(port, zmtp.routing_id(me))
            # Bodies that parse: nothing, and a field 1 that is 1 ("ok", "after_tick", "data_epoch" ...).
            frames = [zmtp.header(kind, job, me, request_id=number + 1, body=body, incarnation=1, epoch=1, rank=rank)
                      for number, (kind, body, rank) in
                      enumerate((k, b, r) for k in kinds for b in (b"", b"\x08\x01") for r in (0, 1))]
            self.send(stranger, b"".join(zmtp.message(zmtp.envelope(f)) for f in frames))
        self.check(attack, refused=False)

    def test_before_anybody_has_joined(self):
        scheduler = self.start_scheduler()
        endpoint = self.endpoint()
        port = int(endpoint.rsplit(":", 1)[1])
        for _ in range(20):
            self.send(zmtp.connect(port), self.bytes(5000))
            self.send(zmtp.dealer(port, zmtp.routing_id(7)), zmtp.message(self.bytes(100)))
        nodes = [self.start_node("server", f"server-{i}", endpoint) for i in range(2)]
        nodes += [self.start_node("worker", f"worker-{i}", endpoint) for i in range(2)]
        for process in (scheduler, *nodes):
            self.assertEqual(process.wait(harness.RUN_S), 0, process.story())
        self.assertEqual(self.summary()["steps"], 48)


if __name__ == "__main__":
    harness.main()
