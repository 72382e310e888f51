#!/usr/bin/env python3
"""Writes optimizers.txt beside this file: what PyTorch's optimizers make of given gradients.

Run with a Python that has torch (the committed file is from 1.13, CPU, one thread):
    /usr/bin/python3 tests/golden/make_optimizers.py

Weights and gradients come from one generator, so that the test need not store them:
    state = 1664525 * state + 1013904223 (mod 2^32), from state 2463534242
    value = (state >> 8) * 2^-23 - 1, in [-1, 1), exact in float32
First 37 initial weights, then for each step 37 gradients; the gradient of element i is scaled by
2^((i mod 5) - 3), exactly, so that clipping meets both large and small ones. Each case starts the
generator anew.

Lines: "case NAME", "config OPTIMIZER-IN-TEXT-FORMAT", "weights STEPS-DONE W0 ... W36".
"""

import math
import os

import torch

ELEMENTS = 37
STEPS = 100
SHOWN = (1, 2, 10, 50, 100)


class Lcg:
    def __init__(self):
        self.state = 2463534242

    def value(self):
        self.state = (1664525 * self.state + 1013904223) % 2**32
        return (self.state >> 8) * 2.0**-23 - 1.0

    def vector(self, scaled):
        return torch.tensor(
            [self.value() * (2.0 ** (i % 5 - 3) if scaled else 1.0) for i in range(ELEMENTS)],
            dtype=torch.float32)


def step_decay(every, gamma):
    return lambda course: gamma ** (course // every)


def cosine(steps, low):
    return lambda course: low + (1 - low) * (1 + math.cos(math.pi * min(course, steps) / steps)) / 2


def schedule(warmup, course):
    return lambda s: (s + 1) / warmup if s < warmup else course(s - warmup)


def run(make, clip_value=0, clip_norm=0, factor=None):
    lcg = Lcg()
    w = torch.nn.Parameter(lcg.vector(scaled=False))
    optimizer = make([w])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor) if factor else None
    shown = []
    for done in range(1, STEPS + 1):
        w.grad = lcg.vector(scaled=True)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([w], clip_norm)
        if clip_value:
            torch.nn.utils.clip_grad_value_([w], clip_value)
        optimizer.step()
        if scheduler:
            scheduler.step()
        if done in SHOWN:
            shown.append((done, w.detach().tolist()))
    return shown


def cases():
    o = torch.optim
    sgd = lambda **k: lambda p: o.SGD(p, lr=0.1, **k)
    yield "sgd", "lr: 0.1 sgd {}", dict(make=sgd())
    yield "sgd_decay", "lr: 0.1 weight_decay: 0.01 sgd {}", dict(make=sgd(weight_decay=0.01))
    yield "sgd_momentum", "lr: 0.1 sgd { momentum: 0.9 }", dict(make=sgd(momentum=0.9))
    yield ("sgd_dampening", "lr: 0.1 weight_decay: 0.01 sgd { momentum: 0.9 dampening: 0.3 }",
           dict(make=sgd(momentum=0.9, dampening=0.3, weight_decay=0.01)))
    yield ("sgd_nesterov", "lr: 0.1 weight_decay: 0.01 sgd { momentum: 0.9 nesterov: true }",
           dict(make=sgd(momentum=0.9, nesterov=True, weight_decay=0.01)))
    yield ("sgd_clip_value", "lr: 0.1 clip_value: 0.3 sgd { momentum: 0.9 }",
           dict(make=sgd(momentum=0.9), clip_value=0.3))
    yield ("sgd_clip_norm", "lr: 0.1 clip_norm: 3.3 weight_decay: 0.01 sgd {}",
           dict(make=sgd(weight_decay=0.01), clip_norm=3.3))
    yield ("sgd_clip_both", "lr: 0.1 clip_norm: 3.3 clip_value: 0.5 sgd {}",
           dict(make=sgd(), clip_norm=3.3, clip_value=0.5))

    adagrad = lambda **k: lambda p: o.Adagrad(p, lr=0.05, **k)
    yield "adagrad", "lr: 0.05 adagrad {}", dict(make=adagrad())
    yield ("adagrad_all",
           "lr: 0.05 weight_decay: 0.01 adagrad { lr_decay: 0.02 initial_accumulator: 0.1 eps: 1e-6 }",
           dict(make=adagrad(weight_decay=0.01, lr_decay=0.02, initial_accumulator_value=0.1,
                             eps=1e-6)))

    adadelta = lambda **k: lambda p: o.Adadelta(p, lr=0.5, **k)
    yield "adadelta", "lr: 0.5 adadelta {}", dict(make=adadelta())
    yield ("adadelta_all", "lr: 0.5 weight_decay: 0.01 clip_value: 0.4 adadelta { rho: 0.95 eps: 1e-5 }",
           dict(make=adadelta(weight_decay=0.01, rho=0.95, eps=1e-5), clip_value=0.4))

    rms = lambda **k: lambda p: o.RMSprop(p, lr=0.01, **k)
    yield "rmsprop", "lr: 0.01 rmsprop {}", dict(make=rms())
    yield "rmsprop_momentum", "lr: 0.01 rmsprop { momentum: 0.9 }", dict(make=rms(momentum=0.9))
    yield ("rmsprop_centered", "lr: 0.01 weight_decay: 0.01 rmsprop { centered: true alpha: 0.9 }",
           dict(make=rms(centered=True, alpha=0.9, weight_decay=0.01)))
    yield ("rmsprop_all",
           "lr: 0.01 weight_decay: 0.01 rmsprop { centered: true momentum: 0.5 eps: 1e-6 }",
           dict(make=rms(centered=True, momentum=0.5, eps=1e-6, weight_decay=0.01)))

    adam = lambda **k: lambda p: o.Adam(p, lr=0.01, **k)
    yield "adam", "lr: 0.01 adam {}", dict(make=adam())
    yield ("adam_decay", "lr: 0.01 weight_decay: 0.01 adam { beta1: 0.8 beta2: 0.99 eps: 1e-6 }",
           dict(make=adam(weight_decay=0.01, betas=(0.8, 0.99), eps=1e-6)))
    yield "adam_amsgrad", "lr: 0.01 adam { amsgrad: true beta2: 0.9 }", dict(
        make=adam(amsgrad=True, betas=(0.9, 0.9)))
    yield ("adam_clip_norm", "lr: 0.01 clip_norm: 1 adam {}", dict(make=adam(), clip_norm=1))

    adamw = lambda **k: lambda p: o.AdamW(p, lr=0.01, **k)
    yield "adamw", "lr: 0.01 adamw {}", dict(make=adamw(weight_decay=0))
    yield ("adamw_decay", "lr: 0.01 weight_decay: 0.1 adamw { beta1: 0.85 }",
           dict(make=adamw(weight_decay=0.1, betas=(0.85, 0.999))))

    one = lambda course: 1.0
    yield ("schedule_constant", "lr: 0.1 sgd {} schedule { constant {} }",
           dict(make=sgd(), factor=schedule(0, one)))
    yield ("schedule_warmup", "lr: 0.1 sgd { momentum: 0.9 } schedule { warmup_steps: 7 }",
           dict(make=sgd(momentum=0.9), factor=schedule(7, one)))
    yield ("schedule_step", "lr: 0.1 sgd {} schedule { step { every: 15 gamma: 0.5 } }",
           dict(make=sgd(), factor=schedule(0, step_decay(15, 0.5))))
    yield ("schedule_cosine", "lr: 0.01 adam {} schedule { cosine { steps: 60 min_factor: 0.1 } }",
           dict(make=adam(), factor=schedule(0, cosine(60, 0.1))))
    yield ("schedule_warmup_cosine",
           "lr: 0.01 weight_decay: 0.1 adamw {} schedule { warmup_steps: 20 cosine { steps: 75 } }",
           dict(make=adamw(weight_decay=0.1), factor=schedule(20, cosine(75, 0.0))))


def main():
    torch.set_num_threads(1)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "optimizers.txt")
    with open(path, "w") as out:
        out.write("# Written by make_optimizers.py with torch %s; see there for the format.\n" %
                  torch.__version__)
        for name, config, arguments in cases():
            out.write("case %s\nconfig %s\n" % (name, config))
            for done, weights in run(**arguments):
                out.write("weights %d %s\n" % (done, " ".join("%.9g" % w for w in weights)))


if __name__ == "__main__":
    main()
