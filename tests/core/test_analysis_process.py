"""The analysis process: results, progress, cancelling, crashes, and no child left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest

from cellweave.core.analysis import process as process_module
from cellweave.core.analysis.inprocess import InProcess
from cellweave.core.analysis.jobs import AnalysisError, ProcessDied, UpdateKind
from cellweave.core.analysis.process import AnalysisProcess
from cellweave.core.errors import Cancelled

WAIT = 60  # seconds after which a test is lost, however busy the machine


class Updates:
    """Collects updates and waits for them."""

    def __init__(self):
        self.seen, self._changed = [], threading.Condition()

    def __call__(self, update):
        with self._changed:
            self.seen.append(update)
            self._changed.notify_all()

    def wait(self, condition):
        with self._changed:
            assert self._changed.wait_for(lambda: any(condition(update) for update in self.seen), WAIT), self.seen
            return next(update for update in self.seen if condition(update))

    def of(self, job):
        return [update.kind for update in self.seen if update.job == job and update.kind is not UpdateKind.PROGRESS]


@pytest.fixture
def updates():
    return Updates()


@pytest.fixture
def process(updates):
    found = AnalysisProcess(updates)
    yield found
    found.close()
    assert not [child for child in psutil.Process().children(recursive=True) if "cellweave.core.analysis.child" in " ".join(child.cmdline())]


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "latent.npy"
    latent = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    latent[8] = np.nan
    np.save(path, latent)
    return path


@pytest.fixture
def long_job(tmp_path):
    """Arguments of a search in six blocks, each of which takes a moment and is told of."""
    path = tmp_path / "many.npy"
    np.save(path, np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32))
    return {"latent": path, "out": tmp_path / "long.npz", "k": 30}


def gone(pid):
    deadline = time.monotonic() + WAIT
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def test_a_warm_process_does_jobs_in_order_as_this_process_would(process, updates, points, tmp_path):
    began = time.monotonic()
    process.start()
    assert time.monotonic() - began < 1.0, "it warms up behind"
    assert process.busy_with("warm")
    near = process.submit("neighbours", latent=points, k=14, out=tmp_path / "near.npz")
    graph = process.submit("graph", neighbours=tmp_path / "near.npz", n_neighbors=15, out=tmp_path / "graph.npz")
    arguments = {"latent": points, "graph": tmp_path / "graph.npz", "n_epochs": 20, "seed": 5}
    layout = process.submit("umap", out=tmp_path / "there.npy", **arguments)
    updates.wait(lambda update: update.job == layout and update.final)
    finals = [update for update in updates.seen if update.final]
    assert [update.job for update in finals[1:]] == [near, graph, layout]
    assert finals[0].task == "warm"
    assert {update.kind for update in finals} == {UpdateKind.DONE}
    assert finals[1].result == {"n_cells": 299, "k": 14}
    fractions = [update.fraction for update in updates.seen if update.job == layout and update.fraction is not None]
    assert fractions == sorted(fractions)
    process.start()
    assert not process.busy_with("warm"), "once is enough"
    found = np.load(tmp_path / "there.npy")
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [8]
    InProcess().run("umap", out=tmp_path / "here.npy", **arguments)
    np.testing.assert_array_equal(np.load(tmp_path / "here.npy"), found)


def test_a_failed_task_says_why_and_the_process_goes_on(process, points, tmp_path):
    with pytest.raises(AnalysisError, match="could not read or write its files: No such file") as caught:
        process.run("umap", latent=tmp_path / "nothing.npy", out=tmp_path / "x.npy")
    assert "Traceback" in caught.value.details
    np.save(tmp_path / "few.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(AnalysisError, match="Only 2 cells have a latent"):
        process.run("umap", latent=tmp_path / "few.npy", out=tmp_path / "x.npy")
    with pytest.raises(AnalysisError, match="KeyError"):
        process.run("no such task")
    pid = process.pid
    process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    assert process.pid == pid


def test_nothing_is_unpickled(process, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(AnalysisError, match="allow_pickle"):
        process.run("umap", latent=tmp_path / "objects.npy", out=tmp_path / "x.npy")


def test_a_running_job_is_cancelled_without_losing_the_warm_process(process, updates, long_job, points, tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "GRACE", WAIT)  # however busy the machine is
    job = process.submit("neighbours", **long_job)
    waiting = process.submit("neighbours", **long_job)
    updates.wait(lambda update: update.job == job and update.fraction is not None)
    pid = process.pid
    process.cancel(waiting)
    process.cancel(job)
    updates.wait(lambda update: update.job == job and update.final)
    assert updates.of(job) == updates.of(waiting) == [UpdateKind.CANCELLED]
    process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    assert process.pid == pid
    assert not (tmp_path / "long.npz").exists()


def test_a_job_that_does_not_listen_is_ended_with_its_process(process, updates, long_job, points, tmp_path):
    job = process.submit("neighbours", **long_job)
    updates.wait(lambda update: update.job == job and update.fraction is not None)
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)  # it can neither work nor listen
    process.cancel(job)
    updates.wait(lambda update: update.job == job and update.final)
    assert updates.of(job) == [UpdateKind.CANCELLED]
    process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    assert process.pid != pid
    assert gone(pid)
    assert not [update for update in updates.seen if update.kind is UpdateKind.RESTARTED], "it was asked for: nothing to say"


def test_run_cancels_when_asked_and_when_its_caller_fails(process, long_job):
    asked = []
    with pytest.raises(Cancelled):
        process.run("neighbours", progress=lambda fraction, text: asked.append(fraction), cancelled=lambda: len(asked) > 2, **long_job)

    def fail(fraction, text):
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        process.run("neighbours", progress=fail, **long_job)
    deadline = time.monotonic() + WAIT
    while process.busy_with("neighbours"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_process_is_started_again_and_said_so(process, updates, long_job, points, tmp_path):
    job = process.submit("neighbours", **long_job)
    after = process.submit("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    updates.wait(lambda update: update.job == job and update.fraction is not None)
    os.kill(process.pid, signal.SIGKILL)
    failed = updates.wait(lambda update: update.job == job and update.final)
    assert failed.kind is UpdateKind.FAILED
    assert "stopped while it worked on 'neighbours'" in failed.text
    assert updates.wait(lambda update: update.kind is UpdateKind.RESTARTED).text.startswith("The analysis process stopped unexpectedly")
    assert updates.wait(lambda update: update.job == after and update.final).kind is UpdateKind.DONE


def test_who_waits_for_a_lost_job_is_told_it_can_be_tried_again(process, long_job):
    def kill(fraction, text):
        if fraction is not None:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(ProcessDied, match="stopped while it worked on 'neighbours'"):
        process.run("neighbours", progress=kill, **long_job)


def test_a_process_that_cannot_start_is_given_up_with_a_reason(updates, monkeypatch, points, tmp_path):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = AnalysisProcess(updates)
    try:
        job = process.submit("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
        failed = updates.wait(lambda update: update.job == job and update.final)
        assert failed.kind is UpdateKind.FAILED
        monkeypatch.undo()
        second = [process.submit("neighbours", latent=points, k=3, out=tmp_path / "near.npz") for _ in range(2)][-1]
        updates.wait(lambda update: update.job == second and update.final)
    finally:
        process.close()


def test_without_a_listener_updates_wait_to_be_asked_for(points, tmp_path):
    with AnalysisProcess() as process:
        process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
        kinds = [update.kind for update in process.poll()]
        assert kinds[0] is UpdateKind.READY
        assert kinds[-1] is UpdateKind.DONE
        assert process.poll() == []


def test_closing_cancels_what_is_not_over_and_refuses_more(updates, long_job):
    process = AnalysisProcess(updates)
    jobs = [process.submit("neighbours", **long_job) for _ in range(2)]
    updates.wait(lambda update: update.job == jobs[0] and update.fraction is not None)
    pid = process.pid
    process.close()
    assert gone(pid)
    assert [updates.of(job) for job in jobs] == [[UpdateKind.CANCELLED]] * 2
    with pytest.raises(AnalysisError, match="has been closed"):
        process.submit("warm")
    process.close()


def test_a_listener_that_fails_does_not_stop_the_others(points, tmp_path, caplog):
    seen = []

    def listener(update):
        seen.append(update.kind)
        raise RuntimeError("a bug in a listener")

    with AnalysisProcess(listener) as process:
        process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
        process.run("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    assert seen.count(UpdateKind.DONE) >= 1
    assert "a bug in a listener" in caplog.text


PARENT = """
import sys, time
from cellweave.core.analysis.process import AnalysisProcess
process = AnalysisProcess()
process.start(warm=False)
print(process.pid, flush=True)
time.sleep(600)
"""


def test_the_child_dies_with_its_parent(tmp_path):
    """Also where the parent has no ``if __name__ == "__main__"`` and is killed."""
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_libraries_may_print_without_breaking_the_messages():
    """What is printed in the child goes to its standard error; messages stay whole lines of JSON."""
    code = "import cellweave.core.analysis.tasks as t; t.TASKS['talk'] = lambda a, p: print('hello') or {}\n"
    code += "import os\nfrom cellweave.core.analysis.child import main\nos.write(1, b'')\nmain()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child.stdin.write(json.dumps({"job": 1, "task": "talk", "arguments": {}}) + "\n")
    child.stdin.flush()
    lines = [json.loads(child.stdout.readline()) for _ in range(2)]
    child.stdin.close()
    assert child.wait(WAIT) == 0
    assert lines[0]["ready"]
    assert lines[1] == {"job": 1, "done": {}}
    assert "hello" in child.stderr.read()
    child.stdout.close()
    child.stderr.close()


def test_in_process_has_the_same_ways(points, tmp_path, long_job):
    seen = []
    runner = InProcess(seen.append)
    job = runner.submit("neighbours", latent=points, k=3, out=tmp_path / "near.npz")
    assert seen[-1].kind is UpdateKind.DONE
    assert seen[-1].job == job
    with pytest.raises(AnalysisError, match="could not read or write"):
        runner.run("umap", latent=tmp_path / "nothing.npy", out=tmp_path / "x.npy")
    with pytest.raises(Cancelled):
        runner.run("neighbours", cancelled=lambda: True, **long_job)

    def cancel_it(update):
        if update.kind is UpdateKind.PROGRESS:
            stopping.cancel(update.job)

    stopping = InProcess(cancel_it)
    with pytest.raises(Cancelled):
        stopping.run("neighbours", **long_job)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux only")
def test_what_goes_on_beside_training_stands_back_and_nothing_else(monkeypatch):
    """A process that stood back as a whole got hardly any time on a busy machine, and the analysis after training stood still."""
    from cellweave.core.analysis import child, tasks

    found, sent = {}, []

    def priority(name):
        def task(_arguments, _progress):
            found.setdefault(name, []).append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return {}

        return task

    for name in ("refresh", "neighbours"):
        monkeypatch.setitem(tasks.TASKS, name, priority(name))

    class Channel:
        def send(self, **message):
            sent.append(message)

    worker = child.Worker(Channel())
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for number, name in enumerate(("neighbours", "refresh", "neighbours")):
        worker._jobs.put({"job": number, "task": name, "arguments": {}})
    threading.Thread(target=worker.work, daemon=True).start()
    end = time.monotonic() + WAIT
    while len(sent) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert found == {"neighbours": [before, before], "refresh": [child.STANDS_BACK]}
    assert [message["job"] for message in sent] == [0, 1, 2]
