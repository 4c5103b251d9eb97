"""Requests to stop: exit statuses, and when a signal ends a program or is only recorded.

The effect of a signal on a whole run is tested in tests/training/test_checkpointing.py.
"""

import os
import signal

import pytest

from runtime.signals import EXIT_RUN_AGAIN, SIGNALS, TIME_LIMIT_SIGNALS, Stop, exit_status


@pytest.fixture
def stop(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    stop = Stop()
    yield stop
    stop.disarm()


def test_exit_statuses(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    of_a_shell = [exit_status(number) for number in SIGNALS if number not in TIME_LIMIT_SIGNALS]
    assert of_a_shell == [130, 143, 129, 152]
    assert [exit_status(number) for number in TIME_LIMIT_SIGNALS] == [EXIT_RUN_AGAIN] * 2
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert [exit_status(number) for number in SIGNALS] == [EXIT_RUN_AGAIN] * 6


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


@pytest.mark.parametrize("number", TIME_LIMIT_SIGNALS)
def test_a_brief_program_ignores_warnings_of_a_time_limit(stop, number):
    stop.arm(brief=True)
    os.kill(os.getpid(), number)
    assert stop.signal is None


def test_under_nohup_a_closed_terminal_does_not_stop_it(stop):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop.arm()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, previous)
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


def test_disarm_restores_the_previous_handlers(stop):
    before = [signal.getsignal(name) for name in SIGNALS]
    stop.arm().arm(brief=True)
    stop.ignore()
    stop.disarm()
    assert [signal.getsignal(name) for name in SIGNALS] == before
