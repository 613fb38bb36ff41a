"""Two programs in turn on one machine: while one runs, the other's process group is stopped. Drift of a shared machine meets both alike.

Each program writes a line of metrics a step with `step_s`, by its own clock. What it stood still is taken out afterwards (`own_seconds`)."""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import time

PR_SET_PDEATHSIG = 1
STOPPED = "Tt"


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def gpu_memory():
    """(process, MiB) of each program on the GPU; nothing without one."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return [line.split(", ") for line in out.splitlines() if line.count(", ") == 1 and line.split(", ")[1].isdigit()]


class Program:
    """A program in a process group of its own, and its clock: `active` counts the seconds that it was allowed to run."""

    def __init__(self, name, command, metrics, log, environment=None):
        self.name, self.metrics, self.log = name, pathlib.Path(metrics), pathlib.Path(log)
        self.records, self.offset = [], 0
        self.stops, self.peak_mb, self.start_peak_mb, self.gpu_mib = [], 0, 0, 0
        self.active, self.stopped_at, self.code = 0.0, None, None
        self.metrics.unlink(missing_ok=True)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                                            preexec_fn=die_with_parent, env=dict(os.environ) | (environment or {}))
        self.pid, self.began = self.process.pid, time.monotonic()

    def signal(self, which):
        if self.code is None:
            try:
                os.killpg(self.pid, which)
            except ProcessLookupError:
                pass

    def is_stopped(self):
        try:
            states = [(task / "stat").read_text().rsplit(")", 1)[1].split()[0] for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir()]
        except OSError:
            return False
        return bool(states) and all(state in STOPPED for state in states)

    def ended(self):
        if self.code is None:
            self.code = self.process.poll()
        return self.code is not None

    def read(self):
        """The records that are new in the file."""
        if not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[:new.rfind(b"\n") + 1]
        self.offset += len(new)
        self.records += [json.loads(line) for line in new.splitlines()]

    def look(self, key):
        """A figure of /proc/PID/status in MB."""
        try:
            lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) // 1024 for line in lines if line.startswith(key)), 0)

    def run(self, seconds):
        """Lets it run for so long, or to its end."""
        if self.stopped_at is not None:
            self.stops.append((len(self.records), time.monotonic() - self.stopped_at))
            self.stopped_at = None
        began = time.monotonic()
        self.signal(signal.SIGCONT)
        while not self.ended() and time.monotonic() - began < seconds:
            time.sleep(0.02)
        self.hold()
        self.active += (time.monotonic() if self.stopped_at is None else self.stopped_at) - began
        self.measure()

    def wait_for(self, done):
        """Until it has come so far and has stopped itself."""
        began = time.monotonic()
        while not (done() and self.is_stopped()):
            self.check()
            time.sleep(0.05)
        self.stopped_at = time.monotonic()
        self.active += self.stopped_at - began

    def hold(self):
        """Stops it, and waits until every thread stands."""
        self.signal(signal.SIGSTOP)
        limit = time.monotonic() + 10
        while not self.ended() and not self.is_stopped():
            if time.monotonic() > limit:
                raise SystemExit(f"{self.name} did not stop")
            time.sleep(0.002)
        if not self.ended():
            self.stopped_at = time.monotonic()
        self.read()

    def measure(self):
        """Its largest memory so far; what it needed to start is apart."""
        peak = self.look("VmHWM")
        if self.records and not self.start_peak_mb:
            self.start_peak_mb = peak
            try:
                pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")
            except OSError:
                pass
        elif self.records:
            self.peak_mb = max(self.peak_mb, peak)
        for line in gpu_memory():
            if line[:1] == [str(self.pid)]:
                self.gpu_mib = max(self.gpu_mib, int(line[1]))

    def kill(self):
        """Whatever state it is in. One that is told to end while it stands would stand for ever."""
        for which, wait in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            if self.ended():
                break
            self.signal(which)
            self.signal(signal.SIGCONT)
            limit = time.monotonic() + wait
            while not self.ended() and time.monotonic() < limit:
                time.sleep(0.05)

    def check(self):
        if self.ended() and self.code:
            raise SystemExit(f"{self.name} failed with {self.code}; the end of {self.log}:\n{self.log.read_text(errors='replace')[-2000:]}")


def take_turns(programs, slice_s, say):
    """Runs all to their ends. The next turn is that of the program which has made the fewest steps."""
    told = time.monotonic()
    while True:
        for program in programs:
            program.check()
        going = [program for program in programs if not program.ended()]
        if not going:
            return
        min(going, key=lambda p: (len(p.records), p.active)).run(slice_s)
        if time.monotonic() - told > 60:
            told = time.monotonic()
            say(", ".join(f"{p.name} step {len(p.records)} after {p.active:.0f} s" for p in programs))


def own_seconds(program):
    """Seconds of each step without those in which the program stood, and how many steps were held up from outside.

    A stop fell into the step that was next to be written, or between two steps; it is in `step_s` if that is as long. The first step, in
    which things are still set up, and steps that something else held up (20 times the median, and a second more) count as the median."""
    seconds = [record["step_s"] for record in program.records]
    for at, stop in program.stops:
        if at < len(seconds) and seconds[at] >= stop:
            seconds[at] -= stop
    middle = statistics.median(seconds)
    held = [i for i, s in enumerate(seconds) if i and s > 20 * middle + 1]
    for i in [0, *held]:
        seconds[i] = middle
    return seconds, len(held)
