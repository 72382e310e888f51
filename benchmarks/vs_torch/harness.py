"""Runs one training of Parley or of PyTorch, each in processes of its own with a deadline, and says on what machine.

Shared by vs_torch.py and accuracy.py; standard library only. Every failure is a BenchmarkError of one line.
"""
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
EXPERIMENTS = {
    "convnet": os.path.join(REPOSITORY, "experiments", "fashion_convnet.textproto"),
    "mlp": os.path.join(REPOSITORY, "experiments", "fashion_mlp.textproto"),
}
DATA_FILES = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
              "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]

# PyTorch's allocator goes to the kernel for every large tensor and pays for fresh pages; with these it keeps them.
TUNED_MALLOC = ("glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:"
                "glibc.malloc.top_pad=268435456")
# The first halves OpenBLAS where it is preset; the others would change threads or the allocator behind our back.
CLEARED = ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX",
           "LD_PRELOAD")

# What the torch of `python` multiplies with: Debian's takes whatever library stands for libblas.so.3, and where no
# OpenBLAS is installed that is the reference BLAS, tens of times slower.
TORCH_PROBE = """
import json, time, numpy, torch
assert torch.distributed.is_gloo_available()
torch.set_num_threads(1)
a = torch.ones(1024, 1024)
a @ a
start = time.perf_counter()
a @ a
seconds = time.perf_counter() - start
with open('/proc/self/maps') as maps:
    files = {line.split(None, 5)[-1].strip() for line in maps if '/' in line}
names = ('openblas', 'blis', 'mkl', 'atlas')
print(json.dumps({'torch': torch.__version__, 'onednn': torch.backends.mkldnn.is_available(),
                  'gemm_gflops': round(2 * 1024**3 / seconds / 1e9, 1),
                  'blas': next((name for name in names for file in files if 'lib' + name in file), 'reference')}))
"""


class BenchmarkError(Exception):
    pass


def fail(error):
    """Ends the program with one line."""
    print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
    sys.exit(1)


def clean_environment(**extra):
    environment = {k: v for k, v in os.environ.items() if k not in CLEARED}
    environment.update(extra)
    return environment


def torch_environment(threads=1, tuned=True, blas_dir=None):
    # Two threads pay off only while OpenBLAS keeps to one: its own threads fight with OpenMP's.
    settings = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if tuned:
        settings["GLIBC_TUNABLES"] = TUNED_MALLOC
    if blas_dir:
        settings["LD_LIBRARY_PATH"] = blas_dir
    return settings


class Processes:
    """A few processes, each the head of a session of its own, so that none is left behind; and what they cost."""

    def __init__(self, commands, environment, directory):
        self.directory = directory
        self.children = []
        self.outputs = []
        self.cpu_seconds = 0.0
        self.context_switches = 0  # voluntary: somebody waited
        try:
            for number, command in enumerate(commands):
                out = open(os.path.join(directory, f"out-{number}"), "w+", encoding="utf-8", errors="replace")
                err = open(os.path.join(directory, f"err-{number}"), "w+", encoding="utf-8", errors="replace")
                self.outputs.append((out, err))
                self.children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                                      env=environment, start_new_session=True))
        except OSError as error:
            self.kill()
            raise BenchmarkError(f"cannot start {error.filename}: {error.strerror}") from error

    def wait(self, seconds):
        """Until all are done; what the first printed. The first failure stops the others."""
        deadline = time.monotonic() + seconds
        running = dict(enumerate(self.children))
        try:
            while running:
                for number, child in list(running.items()):
                    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                    if pid == 0:
                        continue
                    del running[number]
                    child.returncode = os.waitstatus_to_exitcode(status)
                    self.cpu_seconds += usage.ru_utime + usage.ru_stime
                    self.context_switches += usage.ru_nvcsw
                    if child.returncode != 0:
                        raise BenchmarkError(f"{self._name(child)} failed with exit code {child.returncode}: "
                                             f"{self._last_words(number)}")
                if running and time.monotonic() > deadline:
                    child = next(iter(running.values()))
                    raise BenchmarkError(f"{self._name(child)} was not done after {seconds:.0f} s")
                time.sleep(0.05)
        finally:
            self.kill()
        out = self.outputs[0][0]
        out.seek(0)
        return out.read()

    def kill(self):
        """Asks first: parley stops its own children then."""
        for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            for child in self.children:
                if child.returncode is None:
                    try:
                        os.killpg(child.pid, sign)
                    except ProcessLookupError:
                        pass
            for child in self.children:
                try:
                    child.wait(patience)
                except subprocess.TimeoutExpired:
                    continue

    @staticmethod
    def _name(child):
        return " ".join(os.path.basename(word) for word in child.args[:3])

    def _last_words(self, number):
        for stream in reversed(self.outputs[number]):
            stream.seek(0)
            lines = [line.strip() for line in stream if line.strip()]
            if lines:
                return lines[-1]
        return "it printed nothing"


def run_parley(bin_dir, model, epochs, overrides=(), servers=1, workers=2, deadline=600):
    """One `parley run`; its summary.json with `cpu_seconds` and `context_switches` of all its processes."""
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as scratch:
        run_dir = os.path.join(scratch, "run")
        command = [os.path.join(bin_dir, "parley"), "run", EXPERIMENTS[model], "--servers", str(servers),
                   "--workers", str(workers), "--quiet", "--run-dir", run_dir,
                   "--set", f"training.epochs={epochs}"]
        for override in overrides:
            command += ["--set", override]
        processes = Processes([command], clean_environment(), scratch)
        processes.wait(deadline)
        try:
            with open(os.path.join(run_dir, "summary.json"), encoding="utf-8") as file:
                summary = json.load(file)
            with open(os.path.join(run_dir, "experiment.resolved.textproto"), encoding="utf-8") as file:
                resolved = file.read()
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"parley left no readable run directory: {error}") from error
        if not summary["ok"]:
            raise BenchmarkError(f"parley run was not ok: {summary['reason']}")
        transport = re.search(r"\btransport: *(\w+)", resolved)
        summary["transport"] = transport.group(1).lower() if transport else "unknown"
        summary["cpu_seconds_all"] = processes.cpu_seconds
        summary["context_switches"] = processes.context_switches
        return summary


def run_torch(args, model, epochs, world=1, threads=1, tuned=True, seed=1, evaluate=False, deadline=600):
    """One training by torch_ddp.py; what its rank 0 printed, with the costs as above."""
    with tempfile.TemporaryDirectory(prefix="torch-bench-") as scratch:
        commands = []
        for rank in range(world):
            commands.append([args.python, os.path.join(HERE, "torch_ddp.py"), "--model", model, "--data", args.data,
                             "--epochs", str(epochs), "--threads", str(threads), "--world", str(world),
                             "--rank", str(rank), "--store", os.path.join(scratch, "store"), "--seed", str(seed),
                             "--train-limit", str(args.train_limit)] + (["--evaluate"] if evaluate else []))
        environment = clean_environment(**torch_environment(threads, tuned, args.blas_dir))
        processes = Processes(commands, environment, scratch)
        printed = processes.wait(deadline)
        try:
            result = json.loads(printed.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise BenchmarkError(f"torch_ddp.py printed no result: {error}") from error
        result["cpu_seconds_all"] = processes.cpu_seconds
        result["context_switches"] = processes.context_switches
        return result


def add_common_arguments(parser, default_out):
    parser.add_argument("--bin", default=os.path.join(REPOSITORY, "build", "release", "bin"), metavar="DIR",
                        help="where parley and parley-* are (default: build/release/bin)")
    parser.add_argument("--python", default="/usr/bin/python3", help="an interpreter that has torch")
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", metavar="DIR")
    parser.add_argument("--out", default=os.path.join(REPOSITORY, default_out), metavar="FILE",
                        help=f"the JSON goes here as well (default: {default_out}); - for nowhere else")
    parser.add_argument("--blas-dir", metavar="DIR",
                        help="a folder with another libblas.so.3 for torch, such as an unpacked libopenblas0-pthread")
    parser.add_argument("--train-limit", type=int, default=0, metavar="N",
                        help="first N training samples only: to try this program out, not to measure")


def probe_torch(args):
    environment = clean_environment(**torch_environment(blas_dir=args.blas_dir))
    probe = subprocess.run([args.python, "-c", TORCH_PROBE], env=environment, capture_output=True, text=True,
                           check=False)
    if probe.returncode != 0:
        raise BenchmarkError(f"{args.python} has no torch with Gloo, or no numpy: install python3-torch, or give "
                             "--python")
    return json.loads(probe.stdout)


def check_blas(args):
    """Timings only: against a torch without a real BLAS they would say nothing."""
    if args.torch["blas"] == "reference" and not args.allow_slow_blas:
        raise BenchmarkError(f"torch multiplies with the reference BLAS ({args.torch['gemm_gflops']} GFLOP/s), which "
                             "flatters Parley: install libopenblas0-pthread, or give --blas-dir or --allow-slow-blas")


def check_ready(args):
    """What is missing, in one line, before anything is started. Reads the data once, so that no run finds it cold."""
    for program in ("parley", "parley-scheduler", "parley-server", "parley-worker"):
        if not os.access(os.path.join(args.bin, program), os.X_OK):
            raise BenchmarkError(f"{program} is not in {args.bin}: build it with "
                                 "'cmake --preset release && cmake --build --preset release', or give --bin DIR")
    for name in DATA_FILES:
        path = os.path.join(args.data, name)
        try:
            with open(path, "rb") as file:
                file.read()
        except OSError as error:
            raise BenchmarkError(f"{path}: {error.strerror}: install dataset-fashion-mnist, or give --data DIR"
                                 ) from error
    if shutil.which(args.python) is None:
        raise BenchmarkError(f"{args.python} is not there: give --python an interpreter with torch")
    args.torch = probe_torch(args)
    if args.out != "-":
        os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)


def _cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _build_type(bin_dir):
    try:
        with open(os.path.join(bin_dir, os.pardir, "CMakeCache.txt"), encoding="utf-8") as file:
            for line in file:
                if line.startswith("CMAKE_BUILD_TYPE:"):
                    return line.split("=", 1)[1].strip()
    except OSError:
        pass
    return "unknown"


def _printed(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def conditions(args):
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "libc": " ".join(platform.libc_ver()),
        "load_at_start": round(os.getloadavg()[0], 2),
        # Of this script's checkout; the binaries are of the same only if they were built from it.
        "checkout": _printed(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"]) or "unknown",
        "parley": _printed([os.path.join(args.bin, "parley"), "version"]),
        "parley_build": _build_type(args.bin),
        "torch": args.torch["torch"],
        "torch_onednn": args.torch["onednn"],
        "torch_blas": args.torch["blas"],
        "torch_gemm_gflops_1_thread": args.torch["gemm_gflops"],
        "data": "Fashion-MNIST, 60000 training images, mean 0.2860, std 0.3530"
                if not args.train_limit else f"Fashion-MNIST, the first {args.train_limit} training images only",
        "environment_cleared": list(CLEARED),
    }


def publish(result, out):
    text = json.dumps(result, indent=2)
    print(text)
    if out == "-":
        return
    temporary = out + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    os.replace(temporary, out)
