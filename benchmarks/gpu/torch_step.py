#!/usr/bin/env python3
"""PyTorch's side of the GPU benchmarks: the same training steps in one process, without a parameter server.

    torch_step.py                                  the perceptron with batch 4096 and the ConvNet with batch 1024, TF32
    torch_step.py --models mlp_4096 --math BF16    or FP32; several with commas
    torch_step.py --quick                          fewer repeats: does it work?

Prints one JSON; progress goes to stderr. A step is forward, backward and the optimizer's update. Batches come from
pinned memory, copied beside the step before ("step"), or lie on the GPU ("resident_step"). Written for speed as far as
eager PyTorch goes: gradients are set to none, the optimizer is fused or by foreach where there is one, cuDNN chooses
by measuring, nothing in the loop asks for a number. Needs torch 1.13 or later with CUDA; without: one line, exit code 3.
"""
import argparse
import json
import platform
import statistics
import sys
import warnings

MATHS = ("TF32", "FP32", "BF16")


def refuse(why):
    print(f"torch_step.py: {why}: nothing to compare with", file=sys.stderr)
    sys.exit(3)


try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except (ImportError, OSError) as error:
    refuse(f"{sys.executable} has no usable torch ({str(error).splitlines()[0]})")


def mlp_4096():
    """experiments/mlp_4096.textproto."""
    layers = [nn.Flatten()]
    for _ in range(4):
        layers += [nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 10), nn.LogSoftmax(dim=1))


def convnet():
    """experiments/fashion_convnet.textproto."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.10),
        nn.Flatten(), nn.Linear(4608, 64), nn.ReLU(), nn.Dropout(0.25), nn.Linear(64, 10), nn.LogSoftmax(dim=1))


# Model, shape of a sample, batch, optimizer and its arguments.
MODELS = {
    "mlp_4096": (mlp_4096, (1, 1, 4096), 4096, torch.optim.SGD, {"lr": 0.01}),
    "convnet": (convnet, (1, 28, 28), 1024, torch.optim.Adadelta, {"lr": 0.5, "rho": 0.9, "eps": 1e-6}),
}


def make_optimizer(kind, parameters, arguments):
    """The fastest that this torch has, and its name."""
    parameters = list(parameters)
    for way in ({"fused": True}, {"foreach": True}, {}):
        try:
            optimizer = kind(parameters, **arguments, **way)
        except (TypeError, RuntimeError, ValueError):
            continue
        return optimizer, f"{kind.__name__} {' '.join(way) or 'plain'}"
    raise AssertionError("no optimizer")


class Batches:
    """Pinned batches, copied to one of two places on the GPU beside the step that uses the other."""

    def __init__(self, shape, batch):
        generator = torch.Generator().manual_seed(1)
        self.host = []
        for _ in range(2):
            x = torch.empty(batch, *shape).uniform_(-1, 1, generator=generator).pin_memory()
            y = torch.randint(0, 10, (batch,), generator=generator).pin_memory()
            self.host.append((x, y))
        self.device = [(x.cuda(), y.cuda()) for x, y in self.host]
        self.stream = torch.cuda.Stream()
        self.copied = [torch.cuda.Event() for _ in self.host]
        self.used = [torch.cuda.Event() for _ in self.host]
        for event in self.used:
            event.record()
        self.step = 0
        self.copy(0)

    def copy(self, step):
        place = step % 2
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.used[place])
            for to, source in zip(self.device[place], self.host[place]):
                to.copy_(source, non_blocking=True)
            self.copied[place].record()

    def take(self):
        """The batch of this step; that of the next is on its way."""
        self.copy(self.step + 1)
        torch.cuda.current_stream().wait_event(self.copied[self.step % 2])
        return self.device[self.step % 2]

    def give_back(self):
        self.used[self.step % 2].record()
        self.step += 1


class Step:
    def __init__(self, name, math):
        make_model, shape, self.batch, kind, arguments = MODELS[name]
        torch.manual_seed(1)
        self.model = make_model().cuda()
        self.optimizer, self.optimizer_name = make_optimizer(kind, self.model.parameters(), arguments)
        self.batches = Batches(shape, self.batch)
        self.bf16 = math == "BF16"

    def train(self, x, y):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.bf16):
            scores = self.model(x)
        F.nll_loss(scores.float(), y).backward()
        self.optimizer.step()

    def run(self):
        self.train(*self.batches.take())
        self.batches.give_back()

    def run_resident(self):
        self.train(*self.batches.device[0])


def time_steps(work, quick):
    """Milliseconds of a step when several follow each other."""
    warm_up, repeats, steps = (3, 3, 5) if quick else (20, 15, 20)
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(steps):
            work()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / steps)
    return {"median_ms": statistics.median(samples), "min_ms": min(samples), "repeats": repeats,
            "steps_a_repeat": steps}


def set_math(math):
    # The names of before 2.9 work in all versions as long as the new ones are not used beside them.
    torch.backends.cuda.matmul.allow_tf32 = math == "TF32"
    torch.backends.cudnn.allow_tf32 = math == "TF32"


def measure(name, math, quick):
    set_math(math)
    step = Step(name, math)
    result = {"model": name, "math": math, "batch": step.batch, "optimizer": step.optimizer_name,
              "step": time_steps(step.run, quick), "resident_step": time_steps(step.run_resident, quick)}
    print(f"torch {name}, batch {step.batch}, {math}: {result['step']['median_ms']:.3f} ms, batch on the GPU "
          f"{result['resident_step']['median_ms']:.3f} ms", file=sys.stderr, flush=True)
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"comma-separated (default: {','.join(MODELS)})")
    parser.add_argument("--math", default="TF32", help=f"comma-separated, of {', '.join(MATHS)} (default: TF32)")
    parser.add_argument("--gpu", type=int, default=0, metavar="INDEX")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: does it work?")
    args = parser.parse_args()
    args.models, args.math = args.models.split(","), args.math.split(",")
    for given, known, flag in ((args.models, MODELS, "--models"), (args.math, MATHS, "--math")):
        for word in given:
            if word not in known:
                parser.error(f"{flag} has '{word}', allowed is {', '.join(known)}")
    return args


def main():
    args = parse_arguments()
    if not torch.cuda.is_available():
        refuse(f"torch {torch.__version__} sees no GPU")
    warnings.filterwarnings("ignore", message=".*TF32.*")
    torch.cuda.set_device(args.gpu)
    torch.backends.cudnn.benchmark = True
    cases = [measure(name, math, args.quick) for math in args.math for name in args.models]
    print(json.dumps({
        "benchmark": "torch_step",
        "conditions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
                       "cudnn": torch.backends.cudnn.version(), "gpu": torch.cuda.get_device_name(args.gpu),
                       "quick": args.quick},
        "cases": cases,
    }, indent=2))


if __name__ == "__main__":
    main()
