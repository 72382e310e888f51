#!/usr/bin/env python3
"""Checks what the compiler does not: who may include whom, who may own threads, where time and chance may come from.

    check_tree.py               checks the repository; a line for each violation, exit code 1 if there is one
    check_tree.py --self-test   plants violations in a tree of its own and sees that each is found
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_LINES = 500

# Folder -> folders it may include besides itself. The longest matching name is a file's folder; "*" is everything.
GRAPH = {
    "proto": set(),
    "ps/base": {"proto"},
    "ps/gpu": {"ps/base"},
    "ps/checkpoint": {"ps/base", "proto"},
    "ps/codec": {"ps/base", "proto"},
    "ps/config": {"ps/codec", "ps/base", "proto"},
    "ps/wire": {"ps/base", "proto"},
    "ps/net": {"ps/wire", "ps/base", "proto"},
    "ps/table": {"ps/gpu", "ps/base", "proto"},
    "ps/sync": {"ps/base", "proto"},
    "ps/server": {"ps/checkpoint", "ps/table", "ps/gpu", "ps/sync", "ps/codec", "ps/net", "ps/wire", "ps/config", "ps/base", "proto"},
    "scheduler/report": {"ps/base", "proto"},
    "scheduler": {"ps/checkpoint", "scheduler/report", "ps/net", "ps/wire", "ps/config", "ps/base", "proto"},
    "models": {"ps/gpu", "ps/base", "proto"},
    "worker": {"models", "ps/gpu", "ps/codec", "ps/net", "ps/wire", "ps/config", "ps/base", "proto"},
    "tools": {"*"},
    "tests": {"*"},
    "benchmarks": {"*"},
}

# Files that own threads, or memory that threads share, and why. Everything else runs on one event loop.
THREAD_HEADERS = {"thread", "mutex", "condition_variable", "shared_mutex", "future", "semaphore"}
THREAD_FILES = {
    "ps/base/buffer.cc": "the pool takes blocks back on whichever thread drops the last reference",
    "ps/base/arenas.h": "blocks come back on whichever thread drops the last reference",
    "ps/gpu/device_arenas.h": "as arenas.h; and a process has one GPU for the loops of all its nodes",
    "ps/gpu/simulated_gpu.cc": "a GPU is for any thread: one lock for all of it",
    "ps/net/shm/loans.h": "what is borrowed is returned on whichever thread drops the last reference",
    "ps/base/loop_env.h": "Post is the door into a loop from other threads",
    "ps/base/loop_env.cc": "the same",
    "ps/base/thread_pool.h": "owns the threads that compute",
    "ps/base/thread_pool.cc": "the same",
    "benchmarks/transport_bench.cc": "both ends of a link in one process, a loop on a thread each",
    "ps/net/process.cc": "one thread for each node's loop in a process",
    "ps/net/process.h": "the same",
}

# What training must not depend on: (name, pattern). Code only; comments and texts in quotes are not looked at.
BANNED = [
    ("getenv", re.compile(r"\bgetenv\s*\(")),
    ("wall clock", re.compile(r"\bsystem_clock\b|\babsl::Now\s*\(|\bgettimeofday\s*\(|\bCLOCK_REALTIME\b")),
    ("wall clock", re.compile(r"(?<![\w.>:])(?:std::)?time\s*\(\s*(?:nullptr|NULL|0|&)")),
    ("sleep", re.compile(r"\b(?:sleep_for|sleep_until|SleepFor|usleep|nanosleep)\s*\(|(?<![\w.>:])sleep\s*\(")),
    ("unseeded randomness", re.compile(r"\brandom_device\b|(?<![\w.>:])(?:std::)?s?rand\s*\(|\bgetrandom\s*\(")),
]
# (file, name) -> why it may.
BANNED_ALLOWED = {
    ("ps/base/loop_env.cc", "unseeded randomness"): "Env::Random of a real node: ids and jitter, never training",
    ("ps/checkpoint/checkpoint_files.cc", "wall clock"): "when a checkpoint was written, for people",
    ("ps/net/process.cc", "wall clock"): "the time in front of a log line",
    ("ps/server/main.cc", "unseeded randomness"): "names the process, before it has an Env",
    ("tools/bench/bench_report.cc", "wall clock"): "the date in a benchmark's conditions",
    ("tools/parley/checkpoint_command.cc", "wall clock"): "how old a checkpoint is",
    ("tools/parley/run_command.cc", "wall clock"): "the time in a run directory's name",
}

# Where copies of payload are counted (ps/base/payload_copy.h), and the files that copy other bytes only.
COPY_FOLDERS = ("ps/net/", "ps/server/", "worker/client/")
COPY = re.compile(r"\b(?:mem(?:cpy|move)|copy_n|std::copy(?:_backward)?)\s*\(")
COPY_FILES = {
    "ps/net/zmq_bind.cc": "the path of a socket",
    "ps/net/zmq_socket.cc": "encoded headers and routing ids",
    "worker/client/sparse_codecs.cc": "residuals row by row; NoteCopied counts them together",
    "worker/client/sparse_rows.cc": "rows one by one, in the pass that sums those of one key; its callers count",
    "worker/client/sparse_updates.cc": "keys and rows one by one; NoteCopied counts a batch",
    "ps/net/shm/connection_receive.cc": "encoded headers",
    "ps/net/shm/connection_send.cc": "encoded headers",
    "ps/net/shm/ring.cc": "words of records",
    "ps/net/shm/socket.cc": "greetings and descriptors",
}

SOURCE = {".h", ".cc", ".cu"}
COUNTED = SOURCE | {".py", ".proto", ".cmake"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.MULTILINE)
COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def folder_of(path):
    """The folder of GRAPH that `path` is in; None if it is in none."""
    matching = [name for name in GRAPH if path == name or path.startswith(name + "/")]
    return max(matching, key=len, default=None)


def strip_code(text):
    """The code without comments and texts; every line keeps its number."""
    # A digit separator (1'000) is no quote.
    text = re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "", text)
    return COMMENT_OR_TEXT.sub(lambda match: "\n" * match.group(0).count("\n") or " ", text)


def check_includes(path, text):
    folder = folder_of(path)
    if folder is None:
        yield 1, "is in no folder of the include graph (tests/tidy/check_tree.py)"
        return
    allowed = GRAPH[folder]
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        quote, target = match.groups()
        if quote == "<":
            if target in THREAD_HEADERS and path not in THREAD_FILES and not path.startswith(("tests/", "benchmarks/")):
                yield line, f"<{target}> in a file that is not listed as owning threads"
            continue
        other = folder_of(target)
        if other is None:
            # Quoted names of other libraries ("absl/...") have no folder here; a bare name would hide one.
            if "/" not in target:
                yield line, f'include "{target}" does not start at the root of the repository'
        elif other != folder and other not in allowed and "*" not in allowed:
            names = ", ".join(sorted(allowed)) or "nothing"
            yield line, f"{folder} includes {target}; allowed: {names}"


def check_bans(path, text):
    code = strip_code(text)
    for name, pattern in BANNED:
        if (path, name) in BANNED_ALLOWED:
            continue
        for match in pattern.finditer(code):
            yield code.count("\n", 0, match.start()) + 1, f"{name}: {match.group(0).strip()}"


def check_copies(path, text):
    if not path.startswith(COPY_FOLDERS) or path in COPY_FILES:
        return
    code = strip_code(text)
    for match in COPY.finditer(code):
        yield code.count("\n", 0, match.start()) + 1, f"uncounted copy: {match.group(0).strip()}: CopyPayload counts payload"


def check_file(path, text):
    suffix = pathlib.PurePosixPath(path).suffix
    if suffix in COUNTED and text.count("\n") > MAX_LINES:
        yield MAX_LINES, f"has {text.count(chr(10))} lines; allowed: {MAX_LINES}"
    if suffix in SOURCE:
        yield from check_includes(path, text)
        yield from check_bans(path, text)
        yield from check_copies(path, text)


def check_lists(root):
    """Entries for files that are gone would excuse whoever takes the name next."""
    for path in sorted(set(THREAD_FILES) | set(COPY_FILES) | {path for path, _ in BANNED_ALLOWED}):
        if not (root / path).is_file():
            yield f"tests/tidy/check_tree.py: lists {path}, which does not exist"


def check_tree(root, paths):
    problems = []
    for path in sorted(paths):
        text = (root / path).read_text(encoding="utf-8", errors="replace")
        problems += [f"{path}:{line}: {what}" for line, what in check_file(path, text)]
    return problems


def repository_files():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True).stdout.decode().split("\0")
    return [path for path in listed if pathlib.PurePosixPath(path).suffix in COUNTED and (ROOT / path).is_file()]


# Path, text, and what the complaint must contain; "" for files that must pass.
PLANTED = [
    ("ps/table/a.cc", '#include "ps/net/rpc.h"\n', "ps/table includes ps/net/rpc.h"),
    ("ps/sync/a.cc", '#include "ps/net/rpc.h"\n', "ps/sync includes ps/net/rpc.h"),
    ("models/a.cc", '#include "ps/net/rpc.h"\n', "models includes ps/net/rpc.h"),
    ("ps/checkpoint/a.cc", '#include "ps/table/table_partition.h"\n', "ps/checkpoint includes ps/table"),
    ("ps/base/a.h", '#include "ps/wire/frame.h"\n', "ps/base includes ps/wire/frame.h"),
    ("ps/config/a.h", '#include "ps/net/rpc.h"\n', "ps/config includes ps/net/rpc.h"),
    ("ps/codec/a.h", '#include "ps/wire/frame.h"\n', "ps/codec includes ps/wire/frame.h"),
    ("ps/server/a.cc", '#include "worker/trainer.h"\n', "ps/server includes worker/trainer.h"),
    ("worker/data/a.cc", '#include "ps/server/server_node.h"\n', "worker includes ps/server/server_node.h"),
    ("scheduler/a.cc", '#include "worker/trainer.h"\n', "scheduler includes worker/trainer.h"),
    ("scheduler/report/a.cc", '#include "ps/net/rpc.h"\n', "scheduler/report includes ps/net/rpc.h"),
    ("worker/b.cc", '# include  "tools/parley/commands.h"\n', "worker includes tools/parley/commands.h"),
    ("worker/c.cc", '#include "trainer.h"\n', "does not start at the root"),
    ("elsewhere/a.cc", "\n", "in no folder"),
    ("worker/d.cc", "#include <thread>\n", "<thread> in a file"),
    ("models/b.h", "#include <mutex>\n", "<mutex> in a file"),
    ("ps/sync/b.cc", "#include <condition_variable>\n", "<condition_variable> in a file"),
    ("ps/net/b.cc", "#include <shared_mutex>\n", "<shared_mutex> in a file"),
    ("worker/e.cc", 'const char* home = getenv("HOME");\n', "getenv"),
    ("worker/f.cc", "auto t = std::chrono::system_clock::now();\n", "wall clock"),
    ("worker/g.cc", "\n\nlong t = time(nullptr);\n", "g.cc:3: wall clock"),
    ("worker/h.cc", "auto t = absl::Now();\n", "wall clock"),
    ("worker/i.cc", "std::this_thread::sleep_for(d);\n", "sleep"),
    ("worker/j.cc", "usleep(5);\n", "sleep"),
    ("worker/k.cc", "sleep(5);\n", "sleep"),
    ("tests/unit/a.cc", "absl::SleepFor(d);\n", "sleep"),
    ("models/c.cc", "std::random_device device;\n", "unseeded randomness"),
    ("models/d.cc", "int x = rand();\n", "unseeded randomness"),
    ("models/e.cc", "// a comment\n" * (MAX_LINES + 1), f"has {MAX_LINES + 1} lines"),
    ("ps/net/c.cc", "std::memcpy(to, from, size);\n", "uncounted copy"),
    ("worker/client/a.cc", "memmove (to, from, size);\n", "uncounted copy"),
    ("worker/client/b.cc", "std::copy_n(from, size, to);\n", "uncounted copy"),
    ("ps/server/d.cc", "std::copy(from, from + size, to);\n", "uncounted copy"),
    ("ps/net/d.cc", "x = Buffer::Copy(text); copy(text);\n", ""),
    ("ps/server/c.cc", "CopyPayload(to, from, size);  // memcpy(\n", ""),
    ("models/f.cc", "/* sleep(1) */ int x = 1'000; // rand()\n", ""),
    ("models/g.cc", 'const char* text = "sleep(1) \\" rand()"; char c = \'"\'; env.time(0); Brand(1);\n', ""),
    ("ps/server/b.cc", '#include <vector>\n#include "ps/checkpoint/checkpoint_files.h"\n#include "absl/time/time.h"\n#include "ps/sync/aggregator.h"\n', ""),
    ("tools/parley/a.cc", '#include "worker/trainer.h"\n#include "ps/server/server_node.h"\n', ""),
    ("tests/sim/a.cc", '#include <thread>\n#include "scheduler/scheduler_node.h"\n', ""),
    ("worker/l.cc", "runs.time(5); sim_time(0); spin_sleep (2);\n", ""),
]


def self_test():
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for path, text, expected in PLANTED:
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            problems = check_tree(root, [path])
            good = any(expected in problem for problem in problems) if expected else not problems
            if not good:
                failures.append(f"{path}: {text.strip()[:60]!r}: expected {expected or 'nothing'!r}, found {problems}")
        if not list(check_lists(root)):
            failures.append("lists of files that do not exist went unnoticed")
    print("\n".join(failures) or f"{len(PLANTED) + 1} planted cases, all as they must be")
    return 1 if failures else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--self-test", action="store_true", help="check the checker")
    if parser.parse_args().self_test:
        return self_test()
    files = repository_files()
    problems = check_tree(ROOT, files) + list(check_lists(ROOT))
    print("\n".join(problems) or f"{len(files)} files, no violation")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
