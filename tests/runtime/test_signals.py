"""Requests to stop: exit statuses, and when a signal ends a program or is only recorded.

What a signal does to a whole run is tested in tests/training/test_survival.py.
"""

import os
import signal

import pytest

from runtime.signals import EXIT_RUN_AGAIN, SIGNALS, Stop, exit_status


@pytest.fixture
def stop(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    stop = Stop()
    yield stop
    stop.disarm()


def test_exit_statuses(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert [exit_status(number) for number in SIGNALS] == [130, 143, EXIT_RUN_AGAIN]
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert [exit_status(number) for number in SIGNALS] == [EXIT_RUN_AGAIN] * 3


def test_the_first_signal_ends_the_program_and_a_second_changes_nothing(stop, capfd):
    stop.arm()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGTERM
    assert capfd.readouterr().err.count("stopped by") == 1


@pytest.mark.parametrize("variable", ["SLURM_PROCID", "LOCAL_RANK"])
def test_only_the_first_process_reports_it(stop, capfd, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    stop.arm()
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_a_deferred_signal_is_recorded(stop, capfd):
    stop.arm()
    stop.deferred = True
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.signal == signal.SIGUSR1
    assert capfd.readouterr().err == ""


def test_a_brief_program_ignores_sigusr1(stop):
    stop.arm(brief=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.signal is None
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def test_disarm_restores_the_handlers_of_before(stop):
    before = [signal.getsignal(name) for name in SIGNALS]
    stop.arm().arm(brief=True)
    stop.ignore()
    stop.disarm()
    assert [signal.getsignal(name) for name in SIGNALS] == before
