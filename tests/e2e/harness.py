"""What the tests of real processes share: starting roles, waiting with deadlines, seeing that nobody is left behind.

    python3 tests/e2e/test_modes.py --bin build/release/bin [unittest's own arguments]

Every test has a directory of its own. Its path is in the environment of each process it starts, and so of all their
children: that is how a process that outlives its test is found, whatever became of its parents.
"""

import gzip
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / "experiments" / "tiny_synthetic.textproto"
CONVNET = ROOT / "experiments" / "fashion_convnet.textproto"
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
MARK = "PARLEY_E2E_DIRECTORY"

# The promise of the documentation for whatever goes wrong; a good run of these sizes takes a second.
FAILURE_S = 15
RUN_S = 60

# Steps enough for minutes; heartbeats so fast that progress is seen soon.
ENDLESS = ("data.synthetic.train_samples=20000", "training.epochs=100000", "training.evaluate=false",
           "cluster.heartbeat_ms=200")
QUICK_DEATH = ("cluster.node_timeout_ms=2000", "cluster.scheduler_timeout_ms=2000")
# The first death is the end of the job, with "--no-restart" of `parley run`.
FRAGILE = ("cluster.worker_loss=FAIL", "cluster.max_restarts=0")


class Process:
    """A process in a session of its own, with its output in files."""

    def __init__(self, name, argv, directory, env, stdout=None, preexec=None):
        self.name = name
        self.argv = [str(a) for a in argv]
        self._out = directory / f"{name}.stdout"
        self._err = directory / f"{name}.stderr"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self._popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=stdout or out, stderr=err,
                                           env=env, start_new_session=True, cwd=directory, preexec_fn=preexec)
        self.pid = self._popen.pid
        self.code = None

    def poll(self):
        if self.code is None:
            self.code = self._popen.poll()
        return self.code

    def wait(self, deadline_s):
        """The exit code; AssertionError with what it has said when it has not ended by then."""
        try:
            self.code = self._popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {deadline_s} s\n{self.story()}") from None
        return self.code

    def signal(self, number):
        self._popen.send_signal(number)

    def stdout(self):
        return self._out.read_text(encoding="utf-8", errors="replace")

    def stderr(self):
        return self._err.read_text(encoding="utf-8", errors="replace")

    def story(self):
        return f"$ {' '.join(self.argv)}\n--- exit code {self.code}, stdout:\n{self.stdout()[-3000:]}\n" \
               f"--- stderr:\n{self.stderr()[-3000:]}\n---"


def processes_with(mark):
    """{pid: command line as a list} of the living processes that carry the mark. Zombies show no environment."""
    found = {}
    needle = f"{MARK}={mark}\0".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as environ:
                if needle not in environ.read() + b"\0":
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as cmdline:
                found[int(entry)] = cmdline.read().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return found


class E2eTest(unittest.TestCase):
    bin = None  # set by main()
    longMessage = True
    maxDiff = None

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="parley-e2e-"))
        self.env = dict(os.environ, **{MARK: str(self.dir)})
        self.processes = []
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.addCleanup(self._check_nobody_is_left)

    def _check_nobody_is_left(self):
        left = self.await_gone(5)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process in self.processes:
            if process.poll() is None:
                process.wait(FAILURE_S)
        self.assertEqual(left, {}, "processes outlived the test")

    def await_gone(self, deadline_s):
        """Those still alive at the deadline."""
        end = time.monotonic() + deadline_s
        while True:
            for process in self.processes:
                process.poll()  # reaps
            left = processes_with(self.dir)
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)

    def await_(self, what, predicate, deadline_s=FAILURE_S):
        """The first true value of predicate()."""
        end = time.monotonic() + deadline_s
        while True:
            value = predicate()
            if value:
                return value
            if time.monotonic() > end:
                stories = "\n".join(p.story() for p in self.processes)
                raise AssertionError(f"no {what} within {deadline_s} s\n{stories}")
            time.sleep(0.02)

    # --- starting ---

    def start(self, name, program, *args, **more):
        process = Process(name, [self.bin / program, *args], self.dir, self.env, **more)
        self.processes.append(process)
        return process

    def start_run(self, experiment=TINY, *args, name="run", sets=(), **more):
        """`parley run` into the directory self.dir / name."""
        for change in sets:
            args += ("--set", change)
        return self.start(f"{name}-cli", "parley", "run", experiment, "--run-dir", self.dir / name, *args, **more)

    def run_to_end(self, experiment=TINY, *args, name="run", sets=(), deadline_s=RUN_S):
        """A run that must go well; its summary."""
        process = self.start_run(experiment, *args, name=name, sets=sets)
        self.assertEqual(process.wait(deadline_s), 0, process.story())
        self.assertEqual(process.stderr(), "", "a good run says nothing on stderr")
        return self.summary(name)

    def start_scheduler(self, experiment=TINY, *args, name="scheduler", run="run", sets=(), bind=None):
        for change in sets:
            args += ("--set", change)
        return self.start(name, "parley-scheduler", "--experiment", experiment, "--run-dir", self.dir / run, "--bind",
                          bind or "tcp://127.0.0.1:0", "--endpoint-file", self.dir / f"{name}.endpoint", "--log",
                          self.log(name), *args)

    def start_node(self, role, name, endpoint, *args):
        return self.start(name, f"parley-{role}", "--scheduler", endpoint, "--log", self.log(name), *args)

    def endpoint(self, name="scheduler"):
        path = self.dir / f"{name}.endpoint"
        return self.await_("endpoint file", lambda: path.exists() and path.read_text().strip())

    def start_cluster(self, servers=2, workers=2, **scheduler):
        """The roles by hand; {name: Process}, with the scheduler under "scheduler"."""
        nodes = {"scheduler": self.start_scheduler(**scheduler)}
        endpoint = self.endpoint()
        for rank in range(servers):
            nodes[f"server-{rank}"] = self.start_node("server", f"server-{rank}", endpoint)
        for rank in range(workers):
            nodes[f"worker-{rank}"] = self.start_node("worker", f"worker-{rank}", endpoint)
        return nodes

    # --- looking ---

    def log(self, name):
        return self.dir / f"{name}.log"

    def log_text(self, path):
        return path.read_text(errors="replace") if path.exists() else ""

    def summary(self, run="run"):
        return json.loads((self.dir / run / "summary.json").read_text())

    def metrics(self, run="run"):
        """The metrics so far; the last line may be on its way."""
        path = self.dir / run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def await_training(self, run="run"):
        """Until steps have been done, and some more are under way."""
        self.await_("progress of training",
                    lambda: any(m["type"] in ("progress", "epoch") and m["step"] > 0 for m in self.metrics(run)))

    def child(self, role, rank, run="run"):
        """The pid of a child of `parley run`, by the log it writes."""
        log = str(self.dir / run / "logs" / f"{role}-{rank}.log")
        found = [pid for pid, argv in processes_with(self.dir).items()
                 if argv[0].endswith(f"/parley-{role}") and log in argv]
        self.assertEqual(len(found), 1, f"{role} {rank}: {processes_with(self.dir)}")
        return found[0]

    def assert_fails(self, process, *parts, code=1, deadline_s=FAILURE_S):
        """Ends in time with the code and one line on stderr that has the parts; the line."""
        self.assertEqual(process.wait(deadline_s), code, process.story())
        lines = process.stderr().splitlines()
        self.assertEqual(len(lines), 1, f"{process.name}: stderr is one line\n{process.story()}")
        for part in parts:
            self.assertIn(str(part), lines[0])
        # A message, not a dump.
        self.assertTrue(all(c.isprintable() for c in lines[0]), lines[0])
        return lines[0]


class Port:
    """A port of loopback that somebody listens on."""

    def __init__(self, test):
        self._socket = socket.socket()
        test.addCleanup(self._socket.close)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.number = self._socket.getsockname()[1]
        self.endpoint = f"tcp://127.0.0.1:{self.number}"

    def close(self):
        self._socket.close()


def idx_bytes(shape, data):
    return struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + bytes(data)


def write_idx_data(directory, train=96, test=32, side=4, classes=4):
    """A small data set in the format of MNIST: the class is the row that is bright."""
    directory.mkdir()
    for prefix, count in (("train", train), ("t10k", test)):
        labels = [i % classes for i in range(count)]
        pixels = [200 + i % 50 if row == labels[i] else (i * 7 + row) % 40
                  for i in range(count) for row in range(side) for _ in range(side)]
        for kind, content in (("images-idx3", idx_bytes((count, side, side), pixels)),
                              ("labels-idx1", idx_bytes((count,), labels))):
            (directory / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))


def take(flag, default):
    """The value of a flag of the script's own, out of the way of unittest's."""
    if flag not in sys.argv:
        return default
    at = sys.argv.index(flag)
    value = sys.argv[at + 1]
    del sys.argv[at:at + 2]
    return value


def main():
    if "--bin" not in sys.argv:
        sys.exit(f"usage: {sys.argv[0]} --bin DIR [unittest's arguments]")
    at = sys.argv.index("--bin")
    E2eTest.bin = pathlib.Path(sys.argv[at + 1]).resolve()
    del sys.argv[at:at + 2]
    unittest.main(verbosity=2)
