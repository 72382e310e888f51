#!/usr/bin/env python3
"""Runs the examples of README.md, so that what it promises is true.

An example is a ```sh block with the comment <!-- test --> on the line before it. Each runs in the root of the repository
with `bash -euo pipefail` and the release binaries first in PATH. Every line of the block's output is left to the reader;
what counts is the exit code.
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MARK = "<!-- test -->"
TIMEOUT_S = 600


def find_examples(text):
    """Returns [(line number, script)] of the marked blocks; raises ValueError for a mark without one."""
    lines = text.splitlines()
    examples = []
    i = 0
    while i < len(lines):
        if lines[i].strip() != MARK:
            i += 1
            continue
        start = i + 1
        if start >= len(lines) or lines[start].strip() != "```sh":
            raise ValueError(f"line {i + 1}: {MARK} is not followed by ```sh")
        end = start + 1
        while end < len(lines) and lines[end].strip() != "```":
            end += 1
        if end == len(lines):
            raise ValueError(f"line {start + 1}: the block does not end")
        examples.append((start + 2, "\n".join(lines[start + 1:end]) + "\n"))
        i = end + 1
    return examples


def run(script, directory):
    env = dict(os.environ)
    env["PATH"] = f"{directory / 'build' / 'release' / 'bin'}:{env.get('PATH', '')}"
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=directory, env=env, timeout=TIMEOUT_S,
                          check=False).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=str(ROOT / "README.md"), help="the document")
    parser.add_argument("--list", action="store_true", help="print the examples, run nothing")
    args = parser.parse_args()

    path = pathlib.Path(args.file)
    try:
        examples = find_examples(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    if not examples:
        print(f"{path}: no example is marked with {MARK}", file=sys.stderr)
        return 1
    failed = 0
    for line, script in examples:
        print(f"-- {path.name}:{line}\n{script}", end="", flush=True)
        if args.list:
            continue
        try:
            code = run(script, ROOT)
        except subprocess.TimeoutExpired:
            code = f"none within {TIMEOUT_S} s"
        if code != 0:
            failed += 1
            print(f"{path.name}:{line}: exit code {code}", file=sys.stderr)
    print(f"{len(examples)} examples, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
