"""Pictures of `parley bench` and gigabit.py for plot.py: throughput by size, latency, rate, sparse, roofline, epochs.

Standard library only.
"""
import math
import os
import statistics
from xml.sax.saxutils import escape

INK, FAINT, GRID = "#222222", "#667078", "#dde2e6"
# Differ in lightness too, so they stay apart in grey; limits are grey and dashed.
COLORS = {"shm": "#1f6fb4", "tcp": "#e1701a", "ipc": "#7a5195", "auto": "#1f6fb4"}
SERIES_NAMES = {"push": "push", "pull": "pull", "push_then_pull": "push, then pull", "push_pull": "push-pull in one",
                "update": "small updates"}
KIB, MIB = 1024, 1024**2


def text(x, y, words, anchor="start", color=INK, size=13, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
            f'font-weight="{weight}">{escape(words)}</text>')


def frame(width, height, title, parts):
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
                      f'height="{height:.0f}" font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
                      f"<title>{escape(title)}</title>",
                      f'<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>', *parts, "</svg>", ""])


def size_name(size):
    if size >= MIB:
        return f"{size / MIB:.0f} MiB"
    return f"{size / KIB:.0f} KiB" if size >= KIB else f"{size:.0f} B"


def number(value):
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.2f}"


def conditions_line(result):
    c = result["conditions"]
    return f"{c['cpu']}, {c['cores']} cores; load {c['load_at_start'].split()[0]}; {c['date']}; {c['checkout']}"


class Axes:
    """A plot with logarithmic axes, or a linear y from zero."""

    def __init__(self, left, top, width, height, x_range, y_range, log_y=True):
        self.left, self.top, self.width, self.height = left, top, width, height
        self.x_range, self.y_range, self.log_y = x_range, y_range, log_y

    def x(self, value):
        low, high = map(math.log, self.x_range)
        return self.left + self.width * (math.log(value) - low) / (high - low)

    def y(self, value):
        low, high = self.y_range
        if self.log_y:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.top + self.height * (1 - (value - low) / (high - low))

    def grid(self, x_ticks, y_ticks):
        parts = []
        for value, label in y_ticks:
            parts.append(f'<path d="M{self.left:.1f} {self.y(value):.1f}h{self.width:.1f}" stroke="{GRID}"/>')
            parts.append(text(self.left - 8, self.y(value) + 4, label, "end", FAINT, 12))
        for value, label in x_ticks:
            parts.append(f'<path d="M{self.x(value):.1f} {self.top:.1f}v{self.height:.1f}" stroke="{GRID}"/>')
            parts.append(text(self.x(value), self.top + self.height + 18, label, "middle", FAINT, 12))
        return parts

    def line(self, points, color, dashed=False):
        path = "M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        parts = [f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{1.6 if dashed else 2.4}" '
                 + ('stroke-dasharray="6 4" ' if dashed else "") + "/>"]
        if not dashed:
            parts += [f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3.6" fill="{color}"/>' for x, y in points]
        return parts

    def range_bars(self, points, color):
        return [f'<path d="M{self.x(x):.1f} {self.y(low):.1f}V{self.y(high):.1f}" stroke="{color}" '
                f'stroke-width="1.2" opacity="0.7"/>' for x, low, high in points if high > low > 0]


def nice_ticks(low, high):
    """1, 2 and 5 of every decade between."""
    ticks = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low <= value <= high:
                ticks.append((value, f"{value:g}"))
    return ticks


def spread(labels, gap=15):
    """Moves labels [y, ...] apart so that none covers another."""
    labels = sorted(labels, key=lambda label: label[0])
    for i in range(1, len(labels)):
        labels[i][0] = max(labels[i][0], labels[i - 1][0] + gap)
    return labels


def simple(result):
    """One server, one worker, no codec: what is compared by size and transport."""
    s = result["settings"]
    return s["servers"] == "1" and s["workers"] == "1" and s["codec"] == "none"


def draw_throughput(result):
    """Dense vectors: a panel for each operation, a line for each transport, limits dashed."""
    dense = [r for r in result["results"] if r["settings"]["load"] == "dense" and r["unit"] == "GB/s" and simple(r)]
    sizes = sorted({int(r["settings"]["bytes"]) for r in dense})
    if len(sizes) < 2:
        return None
    measured = {}
    for limit in result["limits"]:
        measured.setdefault(limit["name"], []).append(limit["median"])
    limits = {name: statistics.median(medians) for name, medians in measured.items()}
    values = [v for r in dense for v in (r["min"], r["max"])] + [v for n, v in limits.items() if is_dense_limit(n)]
    y_range = (min(values) * 0.8, max(values) * 1.25)
    width, panel_width, panel_height = 1060, 345, 230
    parts = [text(20, 30, "Dense vectors: GB/s by size, 1 server and 1 worker", size=17, weight="bold"),
             text(20, 50, "payload bytes a second, each way; lines from least to most of the rounds; "
                  + conditions_line(result), color=FAINT, size=11)]
    for number_, name in enumerate(("push", "pull", "push_then_pull", "push_pull")):
        left, top = 62 + (number_ % 2) * 525, 92 + (number_ // 2) * 300
        axes = Axes(left, top, panel_width, panel_height, (sizes[0] * 0.8, sizes[-1] * 1.25), y_range)
        parts.append(text(left, top - 10, SERIES_NAMES[name], weight="bold"))
        parts += axes.grid([(size, size_name(size)) for size in sizes], nice_ticks(*y_range))
        ends = []
        limit_name = "two_pass" if name.startswith("push_") else "memcpy"
        curve = [(size, limits[key]) for size in sizes
                 if (key := f"{limit_name}.{size_name(size).replace(' ', '')}.1t") in limits]
        if len(curve) > 1:
            parts += axes.line(curve, FAINT, dashed=True)
            ends.append([axes.y(curve[-1][1]), "accumulate + copy" if limit_name == "two_pass" else "memcpy", FAINT])
        if "zmq_stream.1MiB" in limits:
            raw = limits["zmq_stream.1MiB"]
            parts += axes.line([(sizes[0], raw), (sizes[-1], raw)], "#b9854f", dashed=True)
            ends.append([axes.y(raw), "raw ZeroMQ", "#b9854f"])
        for transport in sorted({r["settings"]["transport"] for r in dense}):
            mine = sorted((int(r["settings"]["bytes"]), r["median"], r["min"], r["max"]) for r in dense
                          if r["name"] == name and r["settings"]["transport"] == transport)
            color = COLORS.get(transport, INK)
            parts += axes.range_bars([(x, low, high) for x, _, low, high in mine], color)
            parts += axes.line([(x, y) for x, y, _, _ in mine], color)
            ends.append([axes.y(mine[-1][1]), f"{transport} {number(mine[-1][1])}", color])
        for y, label, color in spread(ends):
            parts.append(text(left + panel_width + 6, y + 4, label, color=color, size=12))
    return frame(width, 92 + 2 * 300 - 10, "Dense throughput by size", parts)


def is_dense_limit(name):
    return name.startswith(("two_pass.", "memcpy.", "zmq_stream.")) and name.endswith((".1t", "1MiB"))


class Row:
    def __init__(self, label, value, note, color, low=None, high=None):
        self.label, self.value, self.note, self.color, self.low, self.high = label, value, note, color, low, high


def bars(title, subtitle, panels, unit_width=880, label_width=250, value_width=230):
    """panels: (title, rows, mark, mark_label); every panel has a scale of its own, from zero."""
    bar, gap, y = 20, 8, 66.0
    parts = [text(20, 30, title, size=17, weight="bold"), text(20, 50, subtitle, color=FAINT, size=11)]
    plot = unit_width - label_width - value_width
    for panel_title, rows, mark, mark_label in panels:
        longest = max([row.high or row.value for row in rows] + [mark or 0]) or 1
        parts.append(text(20, y + 20, panel_title, weight="bold"))
        top, notes = y + 44, []
        for i, row in enumerate(rows):
            at = top + i * (bar + gap)
            length = plot * row.value / longest
            parts.append(text(label_width - 10, at + 14.5, row.label, "end"))
            parts.append(f'<rect x="{label_width}" y="{at:.1f}" width="{max(length, 1):.1f}" height="{bar}" rx="2" '
                         f'fill="{row.color}"/>')
            end = length
            if row.low is not None and row.high > row.low:
                low, high = (label_width + plot * value / longest for value in (row.low, row.high))
                parts.append(f'<path d="M{low:.1f} {at + 10:.1f}H{high:.1f}M{low:.1f} {at + 6:.1f}v8M{high:.1f} '
                             f'{at + 6:.1f}v8" stroke="{INK}" stroke-width="1.2"/>')
                end = max(length, high - label_width)
            note = text(label_width + end + 8, at + 14.5, row.note)
            notes.append(note.replace("<text", '<text paint-order="stroke" stroke="#ffffff" stroke-width="5"', 1))
        bottom = top + len(rows) * (bar + gap) - gap
        if mark:
            x = label_width + plot * mark / longest
            parts.append(f'<path d="M{x:.1f} {top - 6:.1f}V{bottom + 4:.1f}" stroke="{INK}" stroke-dasharray="4 3"/>')
            parts.append(text(x, top - 10, mark_label, "middle", FAINT, 12))
        parts += notes
        y = bottom + 26
    return frame(unit_width, y, title, parts)


def result_rows(results, label):
    rows, seen = [], {}
    for r in results:
        share = f"  ({r['ratio']:.2f} of the limit)" if "ratio" in r else ""
        rows.append(Row(label(r), r["median"], f"{number(r['median'])} {r['unit']}{share}",
                        COLORS.get(r["settings"]["transport"], INK), r["min"], r["max"]))
        if "limit" in r:
            seen[r["limit"]] = (r["limit_median"], r["unit"])
    for name, (value, unit) in seen.items():
        rows.append(Row(name.replace("_", " "), value, f"{number(value)} {unit}", "#9aa3ad"))
    return rows


def draw_latency(result):
    mine = [r for r in result["results"] if r["settings"]["load"] == "latency" and r["unit"] == "us" and simple(r)]
    if not mine:
        return None
    panels = []
    for quantile, title in (("p50", "median"), ("p99", "99th percentile")):
        some = [r for r in mine if r["name"].endswith(quantile)]
        rows = result_rows(some, lambda r: f"{r['settings']['transport']}, {SERIES_NAMES[r['name'].split('.')[0]]}")
        if quantile == "p99":
            rows = [row for row in rows if row.label != "futex"]
            for row in rows:
                row.note = row.note.split("  ")[0]
        mark = 1.5 * some[0]["limit_median"] if quantile == "p50" and some and "limit_median" in some[0] else None
        panels.append((f"{title}, us", rows, mark, "1.5 futex ping-pongs"))
    return bars("Round trip of 4 KiB, one at a time", conditions_line(result), panels)


def draw_rate(result):
    mine = [r for r in result["results"] if r["settings"]["load"] == "rate" and r["unit"] == "M/s" and simple(r)]
    if not mine:
        return None
    rows = result_rows(mine, lambda r: f"{r['settings']['transport']}, 1 key x {r['settings']['dim']} floats")
    mark = 0.5 * mine[0]["limit_median"] if "limit_median" in mine[0] else None
    return bars("Small updates, each acknowledged: millions a second", conditions_line(result),
                [("many open at once; raw ZeroMQ: one way, nothing acknowledged", rows, mark, "aim: half")])


def draw_sparse(result):
    mine = [r for r in result["results"] if r["settings"]["load"] == "sparse" and r["unit"] == "Mkeys/s" and simple(r)]
    if not mine:
        return None
    panels = []
    for distribution in sorted({r["settings"]["distribution"] for r in mine}):
        some = [r for r in mine if r["settings"]["distribution"] == distribution]
        s = some[0]["settings"]
        rows = result_rows(some, lambda r: f"{r['settings']['transport']}, {r['name']}")
        panels.append((f"{distribution}: {int(s['keys']):,} keys a request of {int(s['table_keys']):,}, "
                       f"dim {s['dim']}", rows, None, ""))
    return bars("Sparse tables: millions of keys a second", conditions_line(result), panels)


def draw_roofline(result):
    """What share of its limit each measurement reaches, in one picture."""
    aims = {target["what"]: target for target in result["targets"]}
    groups = {}
    for r in result["results"]:
        if "ratio" not in r or not r["ratio"] or r["name"].endswith("p99"):
            continue
        kind = r["limit"].split(".")[0]
        groups.setdefault(kind, []).append(r)
    titles = {"memcpy": "of memcpy (64 MiB: memory; smaller: cache)", "two_pass": "of accumulate + copy out, one thread",
              "zmq_stream": "of raw ZeroMQ over tcp, 1 MiB frames", "zmq_rate": "of raw ZeroMQ's 64-byte messages",
              "futex": "of a futex ping-pong (its time over ours)", "bare_table": "of the table alone, one core"}
    panels = []
    for kind, title in titles.items():
        rows = []
        for r in groups.get(kind, []):
            wanted = next((t for what, t in aims.items() if what.startswith(f"{r['id']}, {r['name']}:")
                           and t["sense"] == "at least"), None)
            note = f"{r['ratio']:.2f}" + (f"   aim {wanted['want']:.1f}" if wanted else "")
            what = SERIES_NAMES.get(r["name"].split(".")[0], r["name"])
            rows.append(Row(f"{r['id']}, {what}", r["ratio"], note, COLORS.get(r["settings"]["transport"], INK)))
        if rows:
            panels.append((title, rows, 1.0, "the limit"))
    if not panels:
        return None
    return bars("What share of the machine's limits is reached", conditions_line(result), panels, label_width=330,
                value_width=150)


def draw_gigabit(result):
    c = result["conditions"]
    rows, loss_rows, byte_rows = [], [], []
    for entry in result["codecs"]:
        color = "#9aa3ad" if entry["codec"] == "none" else COLORS["shm"]
        seconds = entry["epoch_seconds"]
        faster = f"  ({entry['speedup']:.1f}x, accuracy {-entry['accuracy_loss_points']:+.2f} points)" \
            if "speedup" in entry else f"  (accuracy {entry['accuracy']['median']:.4f})"
        rows.append(Row(entry["codec"], seconds["median"], f"{seconds['median']:.2f} s{faster}", color,
                        seconds["min"], seconds["max"]))
        byte_rows.append(Row(entry["codec"], entry["payload_bytes_a_step"] / 1e3,
                             f"{entry['payload_bytes_a_step'] / 1e3:,.0f} kB  ({entry['foretold_ratio']:.3f} of what "
                             "explain foretells)", color))
    subtitle = (f"{c['servers']} servers, {c['workers']} workers, a link of {c['rate']} each; {c['cpu']}, {c['cores']} "
                f"cores; {c['date']}; {c['checkout']}")
    plain = result["codecs"][0]["epoch_seconds"]["median"]
    return bars("Fashion-MNIST, MLP, over links of a gigabit: by payload codec", subtitle,
                [("seconds of an epoch", rows, plain / 5, "aim: a fifth"),
                 ("kilobytes of a step, all workers, both ways", byte_rows, None, "")], unit_width=940,
                label_width=110, value_width=330)


def bench_pictures(result):
    """NAME -> SVG."""
    pictures = {"bench_throughput": draw_throughput(result), "bench_latency": draw_latency(result),
                "bench_rate": draw_rate(result), "bench_sparse": draw_sparse(result),
                "bench_roofline": draw_roofline(result)}
    return {name: picture for name, picture in pictures.items() if picture}


def bench_table(result):
    head = [f"bench: {conditions_line(result)}", "median", "least to most", "share of the limit"]
    rows = []
    for r in result["results"]:
        if r["unit"] == "":
            continue
        share = f"{r['ratio']:.2f} of {r['limit']} ({r['limit_median']:.3g})" if "ratio" in r else "-"
        rows.append([f"{r['id']}, {r['name']}", f"{r['median']:.3f} {r['unit']}", f"{r['min']:.3f} to {r['max']:.3f}",
                     share])
    notes = [f"{'PASS    ' if t['pass'] else 'short of'} {t['what']}: {t['got']:.2f}, wanted {t['sense']} {t['want']}"
             for t in result["targets"]]
    return head, rows, notes


def gigabit_table(result):
    head = ["gigabit", "epoch", "faster", "accuracy", "bytes a step", "of foretold"]
    rows = []
    for e in result["codecs"]:
        rows.append([e["codec"], f"{e['epoch_seconds']['median']:.3f} s", f"{e.get('speedup', 1):.2f}x",
                     f"{e['accuracy']['median']:.4f}", f"{e['payload_bytes_a_step']:,.0f}", f"{e['foretold_ratio']:.3f}"])
    return head, rows


def markdown_table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def bench_markdown(result):
    _, rows, _ = bench_table(result)
    rows = [row for row in rows if not row[0].endswith("p99")]
    lines = [f"`parley bench all`: {conditions_line(result)}; kernel {result['conditions']['kernel']}, libzmq "
             f"{result['conditions']['libzmq']}.", ""]
    if result["targets"]:
        targets = [[t["what"], f"{t['got']:.2f}", f"{t['sense']} {t['want']}", "yes" if t["pass"] else "short of it"]
                   for t in result["targets"]]
        lines += markdown_table(["wanted", "got", "aim", "reached"], targets) + [""]
    return lines + markdown_table(["measured", "median", "least to most", "share of the limit"], rows)


def gigabit_markdown(result):
    c = result["conditions"]
    _, rows = gigabit_table(result)
    return [f"`gigabit.py`: {c['servers']} servers, {c['workers']} workers, links of {c['rate']}, {c['epochs']} epochs, "
            f"{c['seeds']} seed(s); {c['cpu']}, {c['cores']} cores; load {c['load_at_start']:.2f}; {c['date']}; "
            f"{c['checkout']}.", ""] + markdown_table(["codec", "epoch", "faster", "accuracy", "bytes a step",
                                                       "of what explain foretells"], rows)


def fill_in(path, name, lines):
    """Puts the lines between the marks of `name` in a document; whether it has them."""
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as file:
        text_ = file.read()
    begin, end = f"<!-- results:{name} -->\n", "<!-- end -->"
    at = text_.find(begin)
    if at < 0:
        return False
    at += len(begin)
    text_ = text_[:at] + "\n".join(lines) + "\n" + text_[text_.index(end, at):]
    with open(path, "w", encoding="utf-8") as file:
        file.write(text_)
    return True
