"""Kills, outages, upgrades and scaling all at once, as many kills as E2E_CHAOS_KILLS says: the study stays exact.

E2E_OUTAGE names a program that takes `api` or `kubelet` (its first argument) away for some seconds (its second).
"""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from tests.e2e.release import INTERRUPT, Release, jobs_with_pods, wait_until

NUM_KILLS = int(os.environ.get("E2E_CHAOS_KILLS", "0"))
OUTAGE = os.environ.get("E2E_OUTAGE", "")
SEED = int(os.environ.get("E2E_CHAOS_SEED", "0"))
VALUES = {"job.study.num_trials": 5000, "job.study.max_epochs": 10, "search.parallelism": 2, "search.backoffLimit": 6}
VALUES["job.study.max_attempts"] = 1000  # a pod is killed more often here than it finishes an epoch on a busy machine
RECOVERY_S = 300.0
LOST_S = 120.0
OUTAGE_S = 20
PATIENCE_S = 600.0
PAUSE_S = 25.0  # between two disturbances
MIN_ROUNDS = 3  # in each of which every kind of disturbance happens once
STOP_POSTGRES = ("exec", "-c", "postgres", "--", "sh", "-c", "kill -QUIT 1")  # at once, as in a crash
KILLS: dict[str, list[tuple[str, ...]]] = {
    "search": [
        ("delete",),
        ("delete",),
        ("delete", "--force"),
        ("exec", "--", *INTERRUPT),
    ],
    "database": [("delete",), STOP_POSTGRES],
    "controller": [("delete",), ("delete", "--force")],
}
BEGUN = re.compile(r"trial \d+ (starts|resumes)")
WEIGHTS = {"search": 6, "database": 2, "controller": 2}
pytestmark = [
    pytest.mark.timeout(7200),
    pytest.mark.skipif(NUM_KILLS == 0, reason="E2E_CHAOS_KILLS says how many kills; 60 take about 40 minutes"),
]


def patient(act: Callable[[], Any]) -> Any:
    """Do it again until it succeeds, as a user does while the API server is away."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return act()
        except (AssertionError, subprocess.SubprocessError, json.JSONDecodeError):
            if time.monotonic() > until:
                raise
            time.sleep(2)


class Disturbance(threading.Thread):
    """Takes the API server or the kubelet away, upgrades, rolls back and scales, over and over."""

    def __init__(self, release: Release, rng: random.Random) -> None:
        super().__init__()
        self.release, self.rng, self.over, self.done = release, rng, threading.Event(), list[str]()
        self.acts = [self.upgrade, self.resize, self.scale, self.roll_back]
        self.acts += [lambda: self.take_away("api"), lambda: self.take_away("kubelet")] if OUTAGE else []

    @property
    def num_rounds(self) -> int:
        return len(self.done) // len(self.acts)

    def run(self) -> None:
        while not self.over.wait(PAUSE_S):
            if self.done and len(self.done) % len(self.acts) == 0:  # at first there is nothing to roll back to
                self.rng.shuffle(self.acts)
            self.done.append(patient(self.acts[len(self.done) % len(self.acts)]))
            sys.stderr.write(f"{self.done[-1]}\n")

    def take_away(self, part: str) -> str:
        subprocess.run([OUTAGE, part, str(OUTAGE_S)], check=True, timeout=600)
        return f"{part} outage"

    def upgrade(self) -> str:
        colour = [{"name": "COLOUR", "value": str(self.rng.random())}]
        self.release.helm("upgrade", values={**VALUES, "search.env": colour})
        return "upgrade"

    def resize(self) -> str:
        self.release.helm("upgrade", values={**VALUES, "search.parallelism": self.rng.choice((1, 2, 3))})
        return "resize"

    def scale(self) -> str:
        self.release.csi_job("scale", str(self.rng.choice((1, 2))), check=False)  # it may be being replaced
        return "scale"

    def roll_back(self) -> str:
        self.release.run("helm", "rollback", self.release.name)
        return "rollback"


def test_a_study_survives_everything_at_once(release):
    rng = random.Random(SEED)
    release.helm("install", "--wait", "--timeout", "5m", values=VALUES)
    wait_until("trials finish", lambda: release.num_finished() >= 1, 400)
    disturbance = Disturbance(release, random.Random(SEED + 1))
    disturbance.start()
    delays: dict[str, list[float]] = defaultdict(list)
    try:
        with jobs_with_pods(release) as seen:
            while (num_kills := sum(map(len, delays.values()))) < NUM_KILLS or disturbance.num_rounds < MIN_ROUNDS:
                assert disturbance.is_alive()
                component = rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
                delays[component].append(_kill(release, component, rng))
                sys.stderr.write(f"kill {num_kills + 1}: {component}, {delays[component][-1]:.0f} s\n")
    finally:
        disturbance.over.set()
        disturbance.join()
    patient(lambda: release.helm("upgrade", values=VALUES))
    wait_until("the search runs", lambda: release.running("search"), 300)
    num_trials = patient(release.pause) + 5
    release.helm("upgrade", values={**VALUES, "job.study.num_trials": num_trials, "search.parallelism": 1})
    release.wait_for_end(1200)

    release.check_exact(num_trials)
    assert max(map(len, seen)) == 1, "pods of two search Jobs at once"
    events = json.loads(release.kubectl("get", "events", "-o", "json"))["items"]
    assert not [event["message"] for event in events if event["reason"] == "Recreating"], "an index was lost"
    found = {name: {"kills": len(s), "median_s": median(s), "max_s": max(s)} for name, s in delays.items()}
    done = {name: disturbance.done.count(name) for name in sorted(set(disturbance.done))}
    sys.stderr.write(json.dumps({"trials": num_trials, "replaced_after": found, "disturbances": done}) + "\n")


def _kill(release: Release, component: str, rng: random.Random) -> float:
    """Kill a pod, or what runs in it; return the seconds until another runs, or the database answers again."""
    for _ in range(5):  # the kill may be lost in an outage, or its pod may be scaled away
        pod = rng.choice(wait_until(f"{component} works", lambda: _working(release, component), RECOVERY_S))
        verb, *options = rng.choice(KILLS[component])
        before = patient(lambda: release.uids(component))
        began = time.monotonic()
        release.kubectl(
            verb, *(["pod", pod, "--wait=false", *options] if verb == "delete" else [pod, *options]), check=False
        )
        if component == "database":
            time.sleep(1)
            patient(release.num_finished)
            return time.monotonic() - began
        while time.monotonic() - began < LOST_S:
            if patient(lambda: release.uids(component)) - before:
                return time.monotonic() - began
            time.sleep(0.5)
    raise AssertionError(f"no other {component} pod within {LOST_S:.0f} s, five times")


def _working(release: Release, component: str) -> list[str]:
    """Return the running pods, of the search those that have begun a trial."""
    pods: list[str] = patient(lambda: release.running(component))
    if component != "search":
        return pods
    return [pod for pod in pods if BEGUN.search(release.kubectl("logs", pod, check=False))]
