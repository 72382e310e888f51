#!/usr/bin/python3
"""PyTorch's side of the comparison: trains Fashion-MNIST in one process, or as one rank of DistributedDataParallel.

    torch_ddp.py --model convnet --epochs 2                                         one process
    torch_ddp.py --model mlp --world 2 --rank R --store FILE --epochs 2             rank R of 2, over Gloo

Rank 0 prints one JSON line. An epoch's seconds run from one barrier to the next, like Parley's train_seconds: reading
the files, building the model and evaluation are outside.

Written for speed as far as plain PyTorch goes: the data is one float tensor in memory, so there are no loader
processes; gradients are views into DDP's buckets; nothing in the loop asks for a Python number. Data order is
DistributedSampler's: a permutation an epoch, dealt out round robin.
"""
import argparse
import datetime
import gzip
import json
import os
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

GLOBAL_BATCH = 128
MEAN, STD = 0.2860, 0.3530  # of the training pixels, divided by 255
EVAL_BATCH = 500


def convnet():
    """experiments/fashion_convnet.textproto."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.10),
        nn.Flatten(), nn.Linear(4608, 64), nn.ReLU(), nn.Dropout(0.25), nn.Linear(64, 10), nn.LogSoftmax(dim=1))


def mlp():
    """experiments/fashion_mlp.textproto."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10),
        nn.LogSoftmax(dim=1))


MODELS = {
    "convnet": (convnet, lambda p: torch.optim.Adadelta(p, lr=0.5, rho=0.9, eps=1e-6)),
    "mlp": (mlp, lambda p: torch.optim.SGD(p, lr=0.1)),
}


def read_idx(path, header_bytes):
    with gzip.open(path, "rb") as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header_bytes)


def load(directory, prefix, limit):
    """Images as float [n, 1, 28, 28], normalised, and labels [n]."""
    pixels = read_idx(os.path.join(directory, prefix + "-images-idx3-ubyte.gz"), 16).reshape(-1, 1, 28, 28)
    labels = read_idx(os.path.join(directory, prefix + "-labels-idx1-ubyte.gz"), 8)
    if limit:
        pixels, labels = pixels[:limit], labels[:limit]
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255).sub_(MEAN).div_(STD)
    return x, torch.from_numpy(labels.astype(np.int64))


def epoch_order(samples, seed, epoch, rank, world):
    """This rank's samples, as DistributedSampler deals them; the last few ranks repeat one if they do not divide."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed + epoch))
    missing = -samples % world
    if missing:
        order = torch.cat([order, order[:missing]])
    return order[rank::world]


def train_epoch(model, optimizer, x, y, order, batch):
    model.train()
    loss_sum = torch.zeros(())
    for begin in range(0, len(order), batch):
        rows = order[begin:begin + batch]
        optimizer.zero_grad(set_to_none=True)
        loss = F.nll_loss(model(x.index_select(0, rows)), y.index_select(0, rows))
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(rows)
    return loss_sum / max(1, len(order))


def accuracy(model, x, y):
    model.eval()
    correct = 0
    with torch.no_grad():
        for begin in range(0, len(y), EVAL_BATCH):
            correct += int((model(x[begin:begin + EVAL_BATCH]).argmax(1) == y[begin:begin + EVAL_BATCH]).sum())
    return correct / len(y)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument("--world", type=int, default=1, help="1: no DistributedDataParallel")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--store", help="a file that does not exist yet, by which the ranks find each other")
    parser.add_argument("--train-limit", type=int, default=0, help="use the first N samples only; 0 = all")
    parser.add_argument("--evaluate", action="store_true", help="test accuracy after the last epoch")
    args = parser.parse_args()
    if args.world > 1 and not args.store:
        parser.error("--world above 1 needs --store FILE")
    if not 0 <= args.rank < args.world:
        parser.error(f"--rank is {args.rank}, allowed is 0..{args.world - 1}")
    return args


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    distributed = args.world > 1
    if distributed:
        dist.init_process_group("gloo", init_method=f"file://{os.path.abspath(args.store)}", rank=args.rank,
                                world_size=args.world, timeout=datetime.timedelta(seconds=120))
    x, y = load(args.data, "train", args.train_limit)

    make_model, make_optimizer = MODELS[args.model]
    torch.manual_seed(args.seed)
    model = make_model()
    trained = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True) if distributed else model
    optimizer = make_optimizer(model.parameters())
    torch.manual_seed(args.seed * 1000 + args.rank)  # ranks drop different units

    seconds, losses = [], []
    for epoch in range(args.epochs):
        if distributed:
            dist.barrier()
        start = time.perf_counter()
        order = epoch_order(len(y), args.seed, epoch, args.rank, args.world)
        loss = train_epoch(trained, optimizer, x, y, order, GLOBAL_BATCH // args.world)
        if distributed:
            dist.barrier()
        seconds.append(time.perf_counter() - start)
        losses.append(float(loss))
    result = {"epoch_seconds": seconds, "train_loss": losses, "torch": torch.__version__,
              "mkldnn": torch.backends.mkldnn.is_available()}
    if args.rank == 0:
        if args.evaluate:
            result["test_accuracy"] = accuracy(model, *load(args.data, "t10k", 0))
        print(json.dumps(result), flush=True)
    if distributed:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
