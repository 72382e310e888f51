#!/usr/bin/env python3
"""Draws the results of the benchmarks: a table on the terminal and a picture of bars for each.

    benchmarks/plot.py [--results DIR] [--images DIR] [--document FILE]

Reads every *.json in benchmarks/results and writes docs/images/NAME.svg, NAME being the result's "benchmark" field,
and the tables of docs/benchmarks.md. A result it does not know is named and skipped. Standard library only.
"""
import argparse
import glob
import json
import os
import sys
from xml.sax.saxutils import escape

import plot_bench

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# As in the run's curves: blue and orange differ in lightness too, so they stay apart in grey and for all eyes.
OURS, RIVAL, OTHER, INK, FAINT = "#1f6fb4", "#e1701a", "#9aa3ad", "#222222", "#667078"
WIDTH, LABEL_WIDTH, VALUE_WIDTH = 880, 300, 170
BAR, GAP, PANEL_HEAD, PANEL_GAP = 20, 8, 44, 26

PEER_NAMES = {
    "parley": "Parley, 2 workers + 1 server", "ddp_tuned": "PyTorch DDP x 2, tuned allocator",
    "ddp_plain": "PyTorch DDP x 2", "torch_1t": "PyTorch, 1 process, 1 thread",
    "torch_2t": "PyTorch, 1 process, 2 threads",
}
MODEL_NAMES = {"convnet": "ConvNet", "mlp": "MLP 784-256-128-10", "softmax": "softmax regression", "mlp_4096": "MLP 4096x4"}


class Bar:
    def __init__(self, label, value, note, low=None, high=None, color=OTHER):
        self.label, self.value, self.note, self.color = label, value, note, color
        self.low, self.high = low, high  # the range over the runs, drawn as a line


class Panel:
    def __init__(self, title, bars, mark=None, mark_label=""):
        self.title, self.bars = title, bars
        self.mark, self.mark_label = mark, mark_label  # a value to compare with: an aim, a limit


def draw(title, subtitle, panels):
    def text(x, y, words, anchor="start", color=INK, size=13, weight="normal"):
        return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
                f'font-weight="{weight}">{escape(words)}</text>')

    parts, y = [text(20, 30, title, size=17, weight="bold"), text(20, 50, subtitle, color=FAINT, size=12)], 66.0
    plot_width = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    for panel in panels:
        # Every panel has a scale of its own, from zero: bars of two panels are not to be compared.
        longest = max([bar.high or bar.value for bar in panel.bars] + [panel.mark or 0]) or 1
        parts.append(text(20, y + 20, panel.title, weight="bold"))
        top, notes = y + PANEL_HEAD, []  # notes come last: the mark may run through them
        for number, bar in enumerate(panel.bars):
            row = top + number * (BAR + GAP)
            middle, length = row + BAR / 2, plot_width * bar.value / longest
            parts.append(text(LABEL_WIDTH - 10, middle + 4.5, bar.label, "end"))
            parts.append(f'<rect x="{LABEL_WIDTH}" y="{row:.1f}" width="{max(length, 1):.1f}" height="{BAR}" rx="2" '
                         f'fill="{bar.color}"/>')
            end = length
            if bar.low is not None and bar.high > bar.low:
                low, high = (LABEL_WIDTH + plot_width * value / longest for value in (bar.low, bar.high))
                parts.append(f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8'
                             f'M{high:.1f} {middle - 4:.1f}v8" stroke="{INK}" stroke-width="1.2"/>')
                end = max(length, high - LABEL_WIDTH)
            note = text(LABEL_WIDTH + end + 8, middle + 4.5, bar.note)
            notes.append(note.replace("<text", '<text paint-order="stroke" stroke="#ffffff" stroke-width="5"', 1))
        bottom = top + len(panel.bars) * (BAR + GAP) - GAP
        if panel.mark:
            x = LABEL_WIDTH + plot_width * panel.mark / longest
            parts.append(f'<path d="M{x:.1f} {top - 6:.1f}V{bottom + 4:.1f}" stroke="{INK}" stroke-dasharray="4 3"/>')
            parts.append(text(x, top - 10, panel.mark_label, "middle", FAINT, 12))
        parts += notes
        y = bottom + PANEL_GAP
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" '
                      f'height="{y:.0f}" font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
                      f"<title>{escape(title)}</title>",
                      f'<rect width="{WIDTH}" height="{y:.0f}" fill="#ffffff"/>', *parts, "</svg>", ""])


def print_table(title, head, rows, notes=()):
    cells = [head] + rows
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  " + "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths))))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    for note in notes:
        print("  " + note)


def conditions_line(result):
    conditions = result["conditions"]
    return (f"{conditions['cpu']}, {conditions['cores']} cores; torch {conditions['torch']} on "
            f"{conditions['torch_blas']}; {conditions['date']}; {conditions['checkout']}")


def show_vs_torch(result):
    panels, rows, notes = [], [], []
    for model, report in result["models"].items():
        # The second epoch if there is one: the first has start-up costs of both sides.
        which = "warm" if "warm_epoch_ratios" in report else "first"
        times = {peer: entry[f"{which}_epoch_seconds"] for peer, entry in report["peers"].items()}
        rival = times.get("ddp_tuned")
        bars = []
        for peer, seconds in times.items():
            ratio = f"{seconds['median'] / rival['median']:.2f}" if rival else "-"
            color = {"parley": OURS, "ddp_tuned": RIVAL}.get(peer, OTHER)
            bars.append(Bar(PEER_NAMES.get(peer, peer), seconds["median"],
                            f"{seconds['median']:.2f} s" + (f"  ({ratio})" if rival else ""),
                            seconds["min"], seconds["max"], color))
            rows.append([f"{MODEL_NAMES.get(model, model)}: {PEER_NAMES.get(peer, peer)}",
                         f"{report['peers'][peer]['first_epoch_seconds']['median']:.3f}",
                         f"{seconds['median']:.3f}" if which == "warm" else "-", ratio])
        aim = report.get("aim", {}).get("parley/ddp_tuned")
        mark = aim * rival["median"] if aim and rival else None
        panels.append(Panel(f"{MODEL_NAMES.get(model, model)}, {report['optimizer']}: seconds of "
                            f"{'a warm' if which == 'warm' else 'the first'} epoch", bars, mark,
                            f"aim {aim} of tuned DDP" if mark else ""))
        limit = report["parley_limits"]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in limit["shares"].items())
        notes.append(f"{MODEL_NAMES.get(model, model)}: Parley is limited by {limit['largest']} ({shares})")
    print_table("vs_torch: " + conditions_line(result),
                ["median seconds", "first epoch", "warm epoch", "of tuned DDP"], rows, notes)
    title = "An epoch of Fashion-MNIST, global batch 128"
    conditions = result["conditions"]
    if "60000" not in conditions["data"] or conditions["quick"] or conditions["torch_blas"] == "reference":
        title += " - a trial, not a measurement"
    return draw(title, f"median of {conditions['runs']}, line from least to most; {conditions_line(result)}", panels)


def show_accuracy(result):
    rows = []
    for model, report in result["models"].items():
        rows.append([f"{MODEL_NAMES.get(model, model)}, {report['epochs']} epochs",
                     f"{report['parley']['median']:.4f}", f"{report['torch']['median']:.4f}",
                     f"{report['difference']:+.4f}", "yes" if report["ok"] else "NO"])
    print_table("accuracy: " + conditions_line(result),
                ["median test accuracy", "Parley", "PyTorch", "difference", "within a point"], rows)
    return None  # two numbers that should be equal make no picture


def show_model(result):
    bars, rows = [], []
    for case in result["cases"]:
        name = f"{MODEL_NAMES.get(case['model'], case['model'])}, batch {case['batch']}"
        bars.append(Bar(name, case["ms_per_step"], f"{case['ms_per_step']:.2f} ms", color=OURS))
        rows.append([name, f"{case['ms_per_step']:.3f}", f"{case['gflops']:.1f}", f"{case['ratio_to_sgemm']:.2f}"])
    print_table(f"model: {result['device']}", ["", "ms a step", "GFLOP/s", "of sgemm's"], rows)
    return draw("Forward and backward of a step", result["device"], [Panel("milliseconds a step", bars)])


def show_optimizer(result):
    panels, rows = {}, []
    for point in result["points"]:
        size = f"{point['bytes'] >> 20} MiB"
        name = f"{point['rule']}, {point['gradients']} gradients, {point['isa']}"
        rows.append([f"{size}: {name}", f"{point['ns_per_element']:.3f}", f"{point['gb_per_s']:.1f}",
                     f"{point['ratio_to_limit']:.2f}"])
        if point["gradients"] == 2 and point["isa"] == result["default_isa"]:
            panels.setdefault(size, []).append(
                Bar(name, point["ratio_to_limit"], f"{point['ratio_to_limit']:.2f}", color=OURS))
    print_table("optimizer", ["", "ns an element", "GB/s", "of the limit"], rows)
    return draw("The server's fused update pass, beside w += g", "memory read and written a second, as a ratio",
                [Panel(f"tables of {size}", bars, 1.0, "w += g") for size, bars in panels.items()])


def show_bench(result):
    head, rows, notes = plot_bench.bench_table(result)
    print_table("", head, rows, notes)
    return plot_bench.bench_pictures(result)


def show_gigabit(result):
    print_table("", *plot_bench.gigabit_table(result))
    return plot_bench.draw_gigabit(result)


def show_gpu(result):
    """A panel for each model and kind of products: the floor, and who comes how near to it."""
    panels, rows = [], []
    torch = {(case["model"], case["math"]): case["step"] for case in result.get("torch", {}).get("cases", [])}
    placements = result.get("cluster", {}).get("mlp_4096", {}).get("placements", {})
    for case in result.get("step", {}).get("cases", []):
        if case["batch"] == 1:
            continue
        name = f"{MODEL_NAMES.get(case['model'], case['model'])}, batch {case['batch']}, {case['math']}"
        times = [("floor", case["floor_ms"], OTHER), ("Parley, weights on the GPU", case["step"]["median_ms"], OURS),
                 ("Parley, weights on the host", case["host_step"]["median_ms"], OURS)]
        if (case["model"], case["math"]) == ("mlp_4096", "TF32"):
            times += [(f"Parley, server's on the {place}", entry["step_ms"], OURS) for place, entry in placements.items()]
        if (case["model"], case["math"]) in torch:
            times.append(("PyTorch", torch[case["model"], case["math"]]["median_ms"], RIVAL))
        panels.append(Panel(f"{name}: milliseconds a step", [Bar(label, value, f"{value:.2f} ms", color=color)
                                                             for label, value, color in times]))
        rows += [[f"{name}: {label}", f"{value:.3f}", f"{value / case['floor_ms']:.2f}"] for label, value, _ in times]
    notes = [f"{ {True: 'holds', False: 'FAILS', None: 'not measured'}[entry['ok']] }: {entry['demand']} "
             f"{entry['limit']}; is {entry['figure']}" for entry in result["verdicts"]]
    print_table(f"gpu: {result['name']}, {result['conditions']['date']}", ["", "ms a step", "of the floor"], rows, notes)
    title = "Training steps on a GPU" + (" - simulated, not a measurement" if result["simulated"] else "")
    return {f"gpu-{result['name']}": draw(title, f"{result['name']}; {result['conditions']['date']}", panels)}


SHOW = {"gpu": show_gpu, "bench": show_bench, "gigabit": show_gigabit, "vs_torch": show_vs_torch, "accuracy": show_accuracy,
        "model": show_model, "optimizer": show_optimizer}


# What goes into the document, by its marks there.
MARKDOWN = {"bench": plot_bench.bench_markdown, "gigabit": plot_bench.gigabit_markdown}


def show_file(path, images, document):
    """Whether it was a result of ours."""
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        name = result["benchmark"]
        picture = SHOW[name](result)
        markdown = MARKDOWN[name](result) if name in MARKDOWN else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"plot.py: {path}: not a result of these benchmarks ({type(error).__name__}: {error}); "
              f"allowed: the JSON of {', '.join(sorted(SHOW))}", file=sys.stderr)
        return False
    if markdown is not None and plot_bench.fill_in(document, name, markdown):
        print(f"  -> {os.path.relpath(document)}")
    # Mostly one picture of the result's name; a result with several names each.
    for title, drawn in (picture if isinstance(picture, dict) else {name: picture}).items():
        if drawn is None:
            continue
        os.makedirs(images, exist_ok=True)
        target = os.path.join(images, title + ".svg")
        with open(target, "w", encoding="utf-8") as file:
            file.write(drawn)
        print(f"  -> {os.path.relpath(target)}")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default=os.path.join(REPOSITORY, "benchmarks", "results"), metavar="DIR")
    parser.add_argument("--images", default=os.path.join(REPOSITORY, "docs", "images"), metavar="DIR")
    parser.add_argument("--document", default=os.path.join(REPOSITORY, "docs", "benchmarks.md"), metavar="FILE")
    args = parser.parse_args()
    paths = sorted(glob.glob(os.path.join(args.results, "*.json")))
    if not paths:
        print(f"plot.py: no *.json in {args.results}: run a benchmark first (benchmarks/README.md)", file=sys.stderr)
        return 1
    return 0 if all([show_file(path, args.images, args.document) for path in paths]) else 1


if __name__ == "__main__":
    sys.exit(main())
