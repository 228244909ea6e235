"""Workers: what is asked for is answered in order, what dies is named, the rest goes on."""

import os
import signal

import pytest
import torch
from runfiles import posix

from fedlab.core import ParameterError
from fedlab.workbench import WorkerDied, over_seeds
from fedlab.workbench.processes import Worker, abreast, dismissed, hired, known, width


def process(seed):
    return seed, os.getpid(), torch.get_num_threads()


def dies(seed):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return seed


def counted(count, last=None):
    yield from range(count)
    if last:
        raise ValueError(last)


def killed():
    yield 0
    os.kill(os.getpid(), signal.SIGKILL)


def session_of():
    yield os.getsid(0)


def test_seeds_are_worked_out_on_two_processes_of_one_thread_in_their_order():
    found = list(over_seeds(process, [3, 1, 2, 0], processes=2))
    assert [seed for seed, _, _ in found] == [3, 1, 2, 0]
    assert os.getpid() not in {pid for _, pid, _ in found}
    assert len({pid for _, pid, _ in found}) <= 2  # each serves more than one seed
    assert {threads for _, _, threads in found} == {1}


@posix
def test_a_death_names_the_seed_and_is_raised_when_it_is_its_turn():
    found = over_seeds(dies, range(3), processes=2)
    assert next(found) == 0
    with pytest.raises(WorkerDied, match="seed 1: its process was killed by signal 9; systems do"):
        next(found)


def test_what_cannot_be_sent_runs_here_and_says_so():
    here = os.getpid()
    with pytest.warns(UserWarning, match="seeds run one by one: it cannot be sent to another"):
        assert list(over_seeds(lambda seed: (seed, os.getpid()), [0, 1])) == [(0, here), (1, here)]
    assert list(over_seeds(lambda seed: seed, [7])) == [7]  # one seed needs no other process


def test_a_part_in_a_file_is_one_that_workers_can_have(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from fedlab.core import Stage, register\n\n\n"
        '@register\nclass Mine(Stage):\n    """Nothing."""\n'
    )
    part = ("stage", "mine", "mine", "Mine")
    assert known("stage", "mine") == ("stage", "mine", "", "")
    crew, why = hired(1, process, [part, known("stage", "clip")], [str(file)])
    assert why == ""
    dismissed(crew)


@posix
def test_a_worker_answers_step_by_step_in_a_session_of_its_own():
    worker = Worker()
    why = "'clip' stands in a cell, or in a file that other processes do not read"
    assert worker.lacks(process, [("stage", "clip", "elsewhere", "Clip")]) == why
    worker.begin("counting", counted, 3, "enough")
    assert worker.take() == (True, 0)
    worker.ask(keep=True)
    assert worker.take() == (True, 1)
    worker.ask()
    assert worker.take() == (True, 2)
    assert worker.fetch() == (2, 0)
    assert worker.fetch(keep=True) == (2, 2)
    worker.ask()
    with pytest.raises(ValueError, match="enough") as raised:
        worker.take()
    assert "in counted" in raised.value.__notes__[0]  # where it was raised
    worker.begin("nothing", counted, 0)
    assert worker.take() == (False, None)
    if hasattr(os, "setsid"):
        worker.begin("its session", session_of)
        assert worker.take()[1] not in (os.getsid(0), None)
    dismissed([worker])
    assert not worker.alive


@posix
def test_a_job_whose_process_dies_is_alone_and_a_new_process_takes_the_next():
    log, crew = [], [Worker()]

    def job(name, function, worker):
        worker.begin(name, *function)
        try:
            while True:
                yield
                more, value = worker.take()
                if not more:
                    return
                log.append((name, value))
                worker.ask()
        except WorkerDied as error:
            log.append(str(error))
            raise

    jobs = [
        lambda worker: job("first", (killed,), worker),
        lambda worker: job("second", (counted, 2), worker),
    ]
    for _ in abreast(jobs, crew):
        pass
    dismissed(crew)
    assert log[0] == ("first", 0)
    assert log[1].startswith("first: its process was killed by signal 9")
    assert log[2:] == [("second", 0), ("second", 1)]


def test_there_are_no_more_processes_than_jobs_and_a_wrong_number_is_named():
    assert width(8, 3) == 3
    assert width(2, 3) == 2
    assert width(0, 1) == 1
    for wrong in (-1, 257):
        with pytest.raises(ParameterError, match=rf"processes={wrong}: choose 1 to 256, or 0"):
            width(wrong, 3)
