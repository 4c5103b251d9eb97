"""Cores are shared with other programs: threads stop spinning while there are too few."""

import subprocess
import sys
import threading
import time

import pytest
import torch

from runtime import cores
from runtime.cores import CpuTimes, SecondTeam, cores_of_others


def test_the_cores_of_others_are_those_that_are_not_ours():
    before, after = CpuTimes(10.0, 100.0, 5.0), CpuTimes(12.0, 103.5, 6.5)
    assert cores_of_others(before, after) == pytest.approx(1.0)
    assert cores_of_others(before, CpuTimes(12.0, 101.0, 6.5)) == 0


@pytest.mark.skipif(not cores.STAT.exists(), reason="needs /proc/stat")
def test_a_busy_neighbour_is_seen():
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        assert cores.cores_in_use(1.0) > 0.2
    finally:
        neighbour.kill()
        neighbour.wait()


class Stop(Exception): ...


def looks(monkeypatch, team, used):
    """Let `watch` look at the load of one core after another; -> when the team was there."""
    there, clock = [], iter(range(1000))
    busy = iter([0.0, *[sum(used[: i + 1]) for i in range(len(used))]])

    def times():
        there.append(team.is_there)
        try:
            return CpuTimes(float(next(clock)), next(busy), 0.0)
        except StopIteration:
            raise Stop from None

    monkeypatch.setattr(cores, "cpu_times", times)
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 2)
    with pytest.raises(Stop):
        cores.watch(team, threads=2)
    return there[2:]


def test_there_is_a_second_team_while_cores_are_missing(monkeypatch):
    team = SecondTeam()
    assert looks(monkeypatch, team, [0.1, 1.0, 1.5, 0.1, 0.0, 2.0]) == [
        False,
        True,
        True,
        False,
        False,
        True,
    ]
    team.end()
    assert not team.is_there


@pytest.mark.parametrize("name", cores.SET_BY_USER)
def test_what_the_user_has_set_stands(monkeypatch, name):
    monkeypatch.setattr(cores, "_watcher", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "1")
    before = threading.active_count()
    cores.share_cores()
    assert threading.active_count() == before


def test_a_second_team_changes_no_result():
    x = torch.linspace(-1, 1, 1 << 16).reshape(1, 4, 128, 128)
    convolution = torch.nn.Conv2d(4, 8, 3)
    alone, team = convolution(x), SecondTeam()
    team.start()
    beside = convolution(x)
    team.end()
    assert torch.equal(alone, beside)
