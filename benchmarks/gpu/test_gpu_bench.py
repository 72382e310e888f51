#!/usr/bin/env python3
"""gpu_bench on the simulated GPU prints what the scripts beside it read. --bin DIR says where it is."""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
CASE_KEYS = {"model", "math", "batch", "parameter_bytes", "flops", "product_tflop_per_s", "floor_products_ms",
             "floor_memory_ms", "floor_ms", "step", "ratio_to_floor", "tflop_per_s", "host_step", "host_floor_ms",
             "host_ratio_to_floor", "copies_alone", "copies_hidden", "stage_ms_forward_backward", "products"}
BIN = None


def run(*arguments):
    return subprocess.run([BIN / "gpu_bench", *arguments], capture_output=True, text=True, timeout=100, check=False,
                          cwd=HERE.parents[1])


class GpuBench(unittest.TestCase):
    def check_numbers(self, value, place):
        """null is what a number that is none is written as."""
        if isinstance(value, dict):
            for key, below in value.items():
                self.check_numbers(below, f"{place}.{key}")
        elif isinstance(value, list):
            for below in value:
                self.check_numbers(below, place)
        else:
            self.assertIsNotNone(value, place)
            if isinstance(value, float):
                self.assertTrue(math.isfinite(value), place)

    def test_simulated(self):
        done = run("--device", "simulated", "--quick", "--math", "all")
        self.assertEqual(done.returncode, 0, done.stderr)
        result = json.loads(done.stdout)
        self.check_numbers(result, "result")
        self.assertTrue(result["simulated"] and result["conditions"]["simulated"])
        for key in ("in", "out", "both", "within"):
            self.assertGreater(result["copies"][f"{key}_gb_per_s"], 0)
        self.assertEqual(set(result["large_product_tflop_per_s"]), {"TF32", "FP32", "BF16"})
        cases = [(case["model"], case["math"], case["batch"]) for case in result["cases"]]
        self.assertEqual(len(set(cases)), 9, cases)  # two models, one of them with one sample, too
        for case in result["cases"]:
            self.assertEqual(set(case), CASE_KEYS)
            self.assertGreater(case["step"]["median_ms"], 0)
            self.assertGreaterEqual(case["step"]["median_ms"], case["step"]["min_ms"])
        mlp = result["cases"][0]
        self.assertEqual([product["layer"] for product in mlp["products"] if product["pass"] == "forward"],
                         ["fc1", "fc2", "fc3", "fc4", "fc5"])
        self.assertEqual(len(mlp["products"]), 3 * 5 - 1)  # nobody needs the gradient of the input
        self.assertEqual({update["rule"] for update in result["updates"]}, {"sgd", "momentum", "adadelta", "adam"})

        with tempfile.TemporaryDirectory() as place:
            parts, out = pathlib.Path(place), pathlib.Path(place) / "gpu-test.json"
            (parts / "step.json").write_text(done.stdout)
            merged = subprocess.run([sys.executable, HERE / "merge_results.py", parts, out, "--name", "test"],
                                    capture_output=True, text=True, check=False)
            self.assertEqual(merged.returncode, 0, merged.stderr)
            result = json.loads(out.read_text())
            self.assertTrue(result["simulated"])
            self.assertEqual({verdict["ok"] for verdict in result["verdicts"]}, {None})

    def test_says_that_there_is_no_gpu(self):
        done = run("--gpu", "1023")  # nobody has so many
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Agpu_bench: no GPU: [^\n]+; --device simulated tries the program\n\Z")
        self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    arguments, rest = parser.parse_known_args()
    BIN = arguments.bin.resolve()
    unittest.main(argv=[sys.argv[0], *rest])
