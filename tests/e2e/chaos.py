"""Kills, stops and cuts off processes of a training run on a seeded schedule, by steps, and times how soon training goes on.

The schedule is drawn from the seed alone: which step, which role, which of its processes, SIGKILL or a stop and for how long.
Where the caller can cut processes off from the network, and says how (`cut`), there may be events that do. What differs from
day to day is where each process is when it is hit.
"""

import dataclasses
import json
import os
import random
import signal
import statistics
import threading
import time

# Steps are reported by heartbeats and, by the scheduler, as --progress-ms says: what was done before a kill may be told of
# later, and a standstill shorter than the distance of reports cannot be seen. So a hit is watched for a while, and the longest
# standstill in it is what it cost.
WATCH_S = 1.0
VISIBLE_S = 0.25
STEADY = 3  # reports of new steps that show that it is over
ROLL_BACK = "; all begin again from "


@dataclasses.dataclass
class Event:
    step: int
    role: str
    draw: float  # which of the role's processes, in [0, 1)
    stop_s: float = 0  # 0 of both: killed
    cut_s: float = 0
    deaf: bool = False  # cut off one way: it still can be heard

    def deed(self):
        if self.cut_s:
            return f"{'deafened' if self.deaf else 'cut off'} for {self.cut_s:.1f} s"
        return f"stopped for {self.stop_s:.1f} s" if self.stop_s else "killed"


def schedule(seed, events, steps, roles=("server", "worker", "scheduler"), stops=0.25, stop_s=(0.2, 3.0), cut_s=None):
    """Events at about even distances from a tenth of the way to nine tenths of it, each role in turn, shuffled. With `cut_s`
    all are cuts, of each role every second one way only."""
    rng = random.Random(seed)
    deck = [roles[i % len(roles)] for i in range(events)]
    rng.shuffle(deck)
    stopped = set(rng.sample(range(events), round(stops * events)))
    first, last = steps // 10, steps * 9 // 10
    found = []
    for i, role in enumerate(deck):
        at = first + (last - first) * (i + rng.uniform(0, 0.6)) / events
        found.append(Event(int(at), role, rng.random(), rng.uniform(*stop_s) if i in stopped else 0))
    for i, event in enumerate(found if cut_s else []):
        event.stop_s, event.cut_s = 0, rng.uniform(*cut_s)
        event.deaf = [e.role for e in found[:i]].count(event.role) % 2 == 1
    return found


class Progress:
    """Follows a run's metrics.jsonl."""

    def __init__(self, path):
        self._path = path
        self._offset = 0
        self.step = 0
        self.events = []

    def read(self):
        """Takes what is new; the step it is at. It goes back when all begin again from a checkpoint."""
        if not self._path.exists():
            return self.step
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[:text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                metric = json.loads(line)
            except ValueError:
                continue  # cut short by a kill, and gone on with since
            if metric["type"] == "progress":
                self.step = metric["step"]
            elif metric["type"] == "event":
                self.events.append(metric["text"])
        return self.step


class Chaos:
    def __init__(self, run, run_dir, children, events, log=lambda line: None, patience_s=60, cut=None, after=None):
        """`run` is the Process of `parley run`, or a scheduler's; `children()` are those who may be hit, {pid: (role,
        index)}. `cut(pid, event)` cuts one off and gives a function that heals it. `after(pid, event)` is called
        when training goes on, and who was cut off is so no more."""
        self.run = run
        self.progress = Progress(run_dir / "metrics.jsonl")
        self.children = children
        self.events = events
        self.log = log
        self.patience_s = patience_s
        self.cut = cut
        self.after = after or (lambda pid, event: None)
        self.hits = []

    def _until(self, step, beyond=False):
        """Waits until the run is at the step; False if it has ended before, or nothing moves."""
        end = time.monotonic() + self.patience_s
        while self.run.poll() is None:
            if self.progress.read() >= step:
                return True
            if time.monotonic() > end:
                raise AssertionError(f"no step {step} within {self.patience_s} s, at {self.progress.step}; the last events:\n"
                                     + "\n".join(self.progress.events[-12:]) + f"\nhits: {self.hits}\n{self.run.story()}")
            time.sleep(0.01)
        return False

    def _victim(self, event):
        """One that is there; a role that has just been hit may take a moment to come back."""
        end = time.monotonic() + 10
        while time.monotonic() < end and self.run.poll() is None:
            found = sorted((index, pid) for pid, (role, index) in self.children().items() if role == event.role)
            if found:
                return found[int(event.draw * len(found))]
            time.sleep(0.02)
        return None

    def hit(self, event):
        victim = self._victim(event)
        if victim is None:
            return
        index, pid = victim
        before = self.progress.read()
        undo = lambda: self._wake(pid)
        try:
            if event.cut_s:
                undo = self.cut(pid, event)
            else:
                os.kill(pid, signal.SIGSTOP if event.stop_s else signal.SIGKILL)
        except ProcessLookupError:
            return
        at = time.monotonic()
        end = threading.Timer(event.stop_s or event.cut_s, undo)
        if event.stop_s or event.cut_s:
            end.start()
        hit = {"role": event.role, "index": index, "step": before, "stopped_s": round(event.stop_s, 3)}
        if event.cut_s:
            hit["cut_s"] = round(event.cut_s, 3)
        self.hits.append(hit)
        self.log(f"step {before}: {event.role} {index} {event.deed()}")
        try:
            self._watch(hit, at, before)
        finally:
            if event.cut_s:
                end.join()
        self.after(pid, event)

    def _watch(self, hit, at, before):
        """Until training goes on: how long it stood still; after a roll-back, how long until there was a new step, and until
        the step was regained at which it happened."""
        told = len(self.progress.events)
        changes, furthest, back = [at], before, None
        while self.run.poll() is None:
            now = self.progress.read()
            if back is None and any(ROLL_BACK in event for event in self.progress.events[told:]):
                hit["rolled_back"], back, furthest = True, len(changes), 0
            # A worker that is replaced may take the job's step back by one: that is none done.
            if now > furthest:
                # The first that is told of after a roll-back is the checkpoint's.
                if back is None or furthest > 0:
                    changes.append(time.monotonic())
                furthest = now
            if back is not None:
                if len(changes) > back and furthest > before:
                    hit["seconds"] = round(changes[back] - at, 3)
                    hit["regained_s"] = round(changes[-1] - at, 3)
                    return
                if time.monotonic() - changes[-1] <= self.patience_s:
                    time.sleep(0.005)
                    continue
            gaps = [b - a for a, b in zip(changes, changes[1:])]
            longest = gaps.index(max(gaps)) if gaps else 0
            if time.monotonic() - at > WATCH_S and len(gaps) - longest > STEADY:
                # From the hit to the first step behind the standstill, if there was one.
                end = changes[longest + 1] - at if gaps[longest] > VISIBLE_S else gaps[longest]
                hit["seconds"] = round(end, 3)
                return
            if time.monotonic() - changes[-1] > self.patience_s:
                raise AssertionError(f"no step after {hit} within {self.patience_s} s; the last events:\n"
                                     + "\n".join(self.progress.events[-12:]) + f"\n{self.run.story()}")
            time.sleep(0.005)

    @staticmethod
    def _wake(pid):
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def go(self):
        """Through the schedule, until the run has ended or all is done; the hits."""
        for event in self.events:
            if not self._until(event.step):
                break
            self.hit(event)
        return self.hits


def summarise(hits):
    """Median and worst time to the next step, by role and by what was done to it."""
    def name(hit):
        return f"{hit['role']} " + ("cut off" if hit.get("cut_s") else "stopped" if hit["stopped_s"] else "killed")

    found = {}
    for what in sorted({name(h) for h in hits}):
        times = [h["seconds"] for h in hits if name(h) == what and "seconds" in h]
        if times:
            found[what] = {"times": len(times), "median_s": round(statistics.median(times), 3), "worst_s": max(times)}
        regained = [h["regained_s"] for h in hits if name(h) == what and "regained_s" in h]
        if regained:
            found[what].update(rolled_back=len(regained), regained_median_s=round(statistics.median(regained), 3),
                               regained_worst_s=max(regained))
    return found
