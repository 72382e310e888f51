#!/usr/bin/env python3
"""Workers and servers on a GPU: a simulated one everywhere, and what is said where there is none."""

import pathlib
import signal
import unittest

import harness

SIMULATED = "compute.device=CUDA_SIMULATED"
ON_GPU = (SIMULATED, "compute.placement=GPU")


def gpu_is_there():
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*"))


class Gpu(harness.E2eTest):
    def hash_of(self, name, *sets, args=()):
        summary = self.run_to_end(harness.TINY, *args, name=name, sets=sets)
        self.assertEqual(summary["pushes_acknowledged"], summary["pushes_applied"])
        return summary["weights_sha256"]

    def device_lines(self, name, worker=0):
        log = self.log_text(self.dir / name / "logs" / f"worker-{worker}.log")
        return [line for line in log.splitlines() if "device: " in line]

    def test_same_weights_every_time_and_wherever_tables_are(self):
        first = self.hash_of("first", SIMULATED)
        self.assertIn("device: gpu (simulated GPU, TF32)", self.device_lines("first")[0])
        self.assertEqual(self.hash_of("second", SIMULATED), first)
        self.assertEqual(self.hash_of("graphs", SIMULATED, "compute.gpu_graphs=true"), first)
        for servers in (1, 2):
            for push_pull in ("true", "false"):
                with self.subTest(servers=servers, push_pull=push_pull):
                    name = f"gpu-{servers}-{push_pull}"
                    self.assertEqual(self.hash_of(name, *ON_GPU, f"cluster.servers={servers}",
                                                  f"cluster.push_pull={push_pull}"), first)
        # What decides the bits does.
        self.assertNotEqual(self.hash_of("bf16", SIMULATED, "compute.gpu_math=BF16"), first)
        self.assertNotEqual(self.hash_of("cpu", "compute.device=CPU"), first)

    def test_it_learns(self):
        cpu = self.run_to_end(name="cpu", sets=["compute.device=CPU"])
        for math in ("FP32", "TF32", "BF16"):
            gpu = self.run_to_end(name=math, sets=[*ON_GPU, f"compute.gpu_math={math}"])
            self.assertAlmostEqual(gpu["epochs"][-1]["test_accuracy"], cpu["epochs"][-1]["test_accuracy"], delta=0.05)
            self.assertAlmostEqual(gpu["epochs"][-1]["train_loss"], cpu["epochs"][-1]["train_loss"], delta=0.05)

    def test_optimizers_in_device_memory(self):
        for rule in ("adam={}", "adadelta={}", "rmsprop={momentum: 0.9 centered: true}"):
            sets = (f"optimizer.{rule}", "training.epochs=1", "optimizer.weight_decay=0.01", "optimizer.clip_value=0.5")
            name = rule.split("=", maxsplit=1)[0]
            self.assertEqual(self.hash_of(f"{name}-gpu", *ON_GPU, *sets), self.hash_of(f"{name}-host", SIMULATED, *sets))

    def test_a_checkpoint_goes_from_device_memory_to_the_host(self):
        whole = self.hash_of("whole", SIMULATED)
        half = ("checkpoints.at_end=true", f"checkpoints.directory={self.dir / 'checkpoints'}", "training.max_steps=24")
        self.hash_of("half", *ON_GPU, *half)
        resumed = self.start("resumed-cli", "parley", "run", "--resume", self.dir / "half", "--run-dir",
                             self.dir / "resumed", "--set", "compute.placement=HOST", "--set", "training.max_steps=0",
                             "--set", "checkpoints.at_end=false")
        self.assertEqual(resumed.wait(harness.RUN_S), 0, resumed.story())
        self.assertEqual(self.summary("resumed")["weights_sha256"], whole)

    def test_a_killed_worker_is_replaced(self):
        calm = self.hash_of("calm", *ON_GPU, "training.epochs=40")
        run = self.start_run(name="killed", sets=[*ON_GPU, "training.epochs=40"])
        self.await_training("killed")
        harness.os.kill(self.child("worker", 1, "killed"), signal.SIGKILL)
        self.assertEqual(run.wait(harness.RUN_S), 0, run.story())
        self.assertEqual(self.summary("killed")["weights_sha256"], calm)

    def test_explain_says_the_device(self):
        explain = self.start("explain", "parley", "explain", harness.TINY, "--set", SIMULATED)
        self.assertEqual(explain.wait(harness.FAILURE_S), 0, explain.story())
        self.assertIn("each on gpu (simulated GPU, TF32)", explain.stdout())


class NoGpu(harness.E2eTest):
    def setUp(self):
        super().setUp()
        # Hides those that there are.
        self.env["CUDA_VISIBLE_DEVICES"] = ""

    def test_auto_goes_on_with_the_cpu_and_says_so(self):
        self.run_to_end()
        log = self.log_text(self.dir / "run" / "logs" / "worker-0.log")
        self.assertIn("device: cpu", log)
        self.assertRegex(log, "no GPU: .+")

    def test_cuda_is_refused(self):
        run = self.start_run(sets=["compute.device=CUDA"])
        self.assert_fails(run, "device: ", "allowed without a GPU is compute.device AUTO or CPU, here it is CUDA")

    def test_a_gpu_by_number_is_refused(self):
        scheduler = self.start_scheduler(sets=["cluster.workers=1", "cluster.servers=1"])
        endpoint = self.endpoint()
        self.start_node("server", "server-0", endpoint)
        worker = self.start_node("worker", "worker-0", endpoint, "--gpu", "5")
        self.assert_fails(worker, "parley-worker: ", "device: ")
        scheduler.wait(harness.FAILURE_S)

    def test_tables_in_device_memory_are_refused(self):
        run = self.start_run(sets=["compute.placement=GPU"])
        self.assert_fails(run, "placement")

    def test_what_does_not_go_with_device_memory(self):
        for setting, name in (("cluster.replicas=1", "cluster.replicas"), ("compression.push=fp16", "compression.push"),
                              ("cluster.transport=TCP", "cluster.transport"), ("compute.device=CPU", "compute.device")):
            with self.subTest(setting=setting):
                run = self.start_run(name=f"run-{name}", sets=[*ON_GPU, setting])
                self.assertNotEqual(run.wait(harness.FAILURE_S), 0, run.story())
                self.assertIn(name, run.stderr())
                self.assertIn("placement", run.stderr())

    def test_explain_on_a_machine_without(self):
        explain = self.start("explain", "parley", "explain", harness.TINY, "--set", "compute.device=CUDA")
        self.assertEqual(explain.wait(harness.FAILURE_S), 0, explain.story())
        self.assertIn("here there is none", explain.stdout())


@unittest.skipUnless(gpu_is_there(), "no GPU: there is no /dev/nvidia*")
class RealGpu(harness.E2eTest):
    def test_same_weights_every_time_and_wherever_tables_are(self):
        sets = ["compute.device=CUDA"]
        first = self.run_to_end(name="first", sets=sets)["weights_sha256"]
        self.assertEqual(self.run_to_end(name="second", sets=sets)["weights_sha256"], first)
        graphs = self.run_to_end(name="graphs", sets=[*sets, "compute.gpu_graphs=true"])["weights_sha256"]
        self.assertEqual(graphs, first)
        for servers in (1, 2):
            placed = self.run_to_end(name=f"gpu-{servers}", sets=[*sets, "compute.placement=GPU", f"cluster.servers={servers}"])
            self.assertEqual(placed["weights_sha256"], first)


if __name__ == "__main__":
    harness.main()
