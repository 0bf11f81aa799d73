import errno
from pathlib import Path

import pytest

from taskflux.local.console import Trouble, from_log, from_os_error
from taskflux.local.processes import locked
from taskflux.local.supervisor import LONGEST_PAUSE, ending, pause_after


def test_pauses_between_restarts_grow_up_to_a_bound() -> None:
    pauses = [pause_after(deaths) for deaths in range(1, 12)]
    assert pauses[0] < 1
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_an_exit_status_is_shown_with_the_name_of_its_signal() -> None:
    assert ending(-9) == "SIGKILL"
    assert ending(3) == "exit 3"


def test_a_data_directory_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "data") as lock:
        lock.write("process 7")
        lock.flush()
        with (
            pytest.raises(Trouble, match=r"another taskflux dev runs on .*process 7.*stop it first"),
            locked(tmp_path / "data"),
        ):
            pass
    with locked(tmp_path / "data"):
        pass


def test_a_full_disk_and_a_missing_permission_are_reported_with_a_message() -> None:
    assert "disk is full" in str(from_os_error(OSError(errno.ENOSPC, "x"), "writing a"))
    assert "no permission" in str(from_os_error(OSError(errno.EACCES, "x"), "writing a"))


def test_a_directory_that_cannot_be_created_is_reported_with_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Trouble, match="a file is in the way"), locked(tmp_path / "file" / "data"):
        pass


def test_the_last_line_of_a_program_is_the_reason_for_a_failed_start() -> None:
    crash = 'Traceback (most recent call last):\n  File "x"\nValueError: no\n'
    log_line = '{"level": "ERROR", "message": "no database", "exc_info": "Traceback\\nOSError: refused"}\n'
    settings = "taskflux run relay: the settings are wrong.\nTASKFLUX_X: unset it\n"
    assert str(from_log("relay failed", crash, "r.log")) == "relay failed: ValueError: no (see r.log)"
    assert "no database: OSError: refused" in str(from_log("relay failed", log_line, "r.log"))
    assert "wrong. TASKFLUX_X: unset it" in str(from_log("relay failed", settings, "r.log"))
    assert "disk is full" in str(from_log("initdb failed", "could not write: No space left on device", "r.log"))
