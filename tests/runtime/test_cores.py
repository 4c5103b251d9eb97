"""Cores shared with other programs: idle thread teams run while cores are missing."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from runtime import cores
from runtime.cores import CpuTimes, IdleTeams, cores_of_others, teams_needed


def test_cores_of_others_is_the_busy_time_without_our_own():
    before, after = CpuTimes(10.0, 100.0, 5.0), CpuTimes(12.0, 103.5, 6.5)
    assert cores_of_others(before, after) == pytest.approx(1.0)
    assert cores_of_others(before, CpuTimes(12.0, 101.0, 6.5)) == 0


@pytest.mark.skipif(not cores.STAT.exists(), reason="needs /proc/stat")
def test_a_busy_neighbour_is_seen():
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        assert cores.cores_used_by_others(1.0) > 0.2
    finally:
        neighbour.kill()
        neighbour.wait()


@pytest.mark.parametrize(
    ("threads", "available", "teams"), [(2, 2, 1), (4, 8, 2), (4, 4, 1), (2, 8, 7), (8, 8, 1)]
)
def test_there_are_more_threads_than_cores(threads, available, teams):
    """The least number of teams, and with them more threads than cores."""
    assert teams_needed(threads, available) == teams
    assert threads + teams * (threads - 1) > available
    assert teams == 1 or threads + (teams - 1) * (threads - 1) <= available


@pytest.mark.skipif(not hasattr(cores.os, "sched_getaffinity"), reason="no affinity")
def test_only_the_cores_of_this_process_count(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    lines = ["cpu  900 0 0 18 0 0 0 0", "cpu0 300 0 0 9 0 0 0 0", "cpu1 600 0 0 9 0 0 0 0"]
    stat.write_text("\n".join(lines))
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {1})
    monkeypatch.setattr(cores.os, "sysconf", lambda name: 100)
    assert cores.cpu_times().busy == 6.0


class Stop(Exception): ...


def watched(monkeypatch, team, used):
    """Let `watch` measure these loads; returns whether the team was running after each of them."""
    there, clock = [], iter(range(1000))
    busy = iter([0.0, *[sum(used[: i + 1]) for i in range(len(used))]])

    def times():
        there.append(team.are_running)
        try:
            return CpuTimes(float(next(clock)), next(busy), 0.0)
        except StopIteration:
            raise Stop from None

    monkeypatch.setattr(cores, "cpu_times", times)
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: None)
    with pytest.raises(Stop):
        cores.watch(team, threads=2, cores=2)
    return there[2:]


def test_there_is_a_second_team_while_cores_are_missing(monkeypatch):
    team = IdleTeams(1)
    assert watched(monkeypatch, team, [0.1, 1.0, 1.5, 0.1, 0.0, 2.0]) == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    team.end()
    assert not team.are_running


@pytest.mark.parametrize("name", cores.SET_BY_USER)
def test_no_watcher_is_started_if_the_user_has_set_how_threads_wait(monkeypatch, name):
    monkeypatch.setattr(cores, "_watcher", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "1")
    before = threading.active_count()
    cores.share_cores()
    assert threading.active_count() == before


def test_a_second_team_changes_no_result():
    x = torch.linspace(-1, 1, 1 << 16).reshape(1, 4, 128, 128)
    convolution = torch.nn.Conv2d(4, 8, 3)
    alone, team = convolution(x), IdleTeams(1)
    team.start()
    beside = convolution(x)
    team.end()
    assert torch.equal(alone, beside)
