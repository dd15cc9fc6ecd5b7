# SPDX-License-Identifier: Apache-2.0
"""Log lines of the library in Python: their fields, their order, their threads, and that nothing
that goes wrong in a logger reaches C. A program that ends while Weir logs must end."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from typing import Any, Iterator, List, Optional, Tuple

import pytest

import weir
from weir import abi, logs
from weir.library import library


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: List[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logger() -> Iterator[Tuple[logging.Logger, List[logging.LogRecord]]]:
    handler = Records()
    own = logging.Logger("weir.tests", logging.DEBUG)
    own.addHandler(handler)
    yield own, handler.records
    weir.set_logger(None)


@pytest.fixture
def lines() -> Iterator[List[Any]]:
    got: List[Any] = []
    weir.set_logger(lambda level, text, fields: got.append((level, text, dict(fields))), "DEBUG")
    yield got
    weir.set_logger(None)


def say(text: str, level: int = abi.WEIR_LOG_INFO, **fields: Any) -> None:
    """Calls the sink as the library would: through the function pointer, without the GIL."""
    rows = (abi.weir_log_field * len(fields))()
    for row, (name, value) in zip(rows, fields.items()):
        row.name, row.text = name.encode(), str(value).encode()
        row.is_number = not isinstance(value, str)
    call = ctypes.cast(logs._sink, abi.weir_log_record_fn)
    call(None, level, text.encode(), rows, len(fields))


def test_lines_of_the_library_itself_arrive(lines: List[Any]) -> None:
    directory = ctypes.c_void_p()
    options = abi.weir_directory_options(ctypes.sizeof(abi.weir_directory_options))
    assert library().weir_directory_open(ctypes.byref(options), ctypes.byref(directory)) == 0
    library().weir_directory_close(directory)
    assert logs.flush()
    assert lines and all(isinstance(text, str) and text for _, text, _ in lines), lines
    assert {level for level, _, _ in lines} <= set(logs._LEVEL_OF.values())


def test_records_have_the_fields_as_attributes(logger: Any) -> None:
    own, records = logger
    weir.set_logger(own, logging.DEBUG)
    begun = time.time()
    say("version 7 is here", worker="r-1", version=7, seconds=0.25, status="OK", name="x")
    assert logs.flush() and len(records) == 1
    record = records[0]
    assert record.getMessage() == "version 7 is here" and record.name == "weir.tests"
    assert (record.levelno, record.levelname) == (logging.INFO, "INFO")
    told = vars(record)
    assert (told["worker"], told["version"], told["seconds"]) == ("r-1", 7, 0.25)
    assert told["status"] == "OK" and told["weir_name"] == "x"
    assert begun <= record.created <= time.time() and record.thread == threading.get_ident()
    assert "peer" not in told


def test_a_record_has_the_time_and_thread_of_its_line(logger: Any) -> None:
    own, records = logger
    logs._ToLogger(own).emit(logs._Line(logging.INFO, "late", {}, 1000.25, 77))
    record = records[0]
    assert (record.created, record.msecs, record.thread) == (1000.25, 250, 77)


@pytest.mark.parametrize("c_level,expected", list(logs._LEVEL_OF.items()))
def test_levels_are_loggings(c_level: int, expected: int, lines: List[Any]) -> None:
    say("x", c_level)
    assert logs.flush() and [level for level, _, _ in lines] == [expected]


@pytest.mark.parametrize(
    "level,expected",
    [
        (logging.DEBUG, 4),
        (1, 4),
        ("INFO", 3),
        ("info", 3),
        (logging.WARNING, 2),
        (35, 2),
        ("ERROR", 1),
        (logging.CRITICAL, 1),
    ],
)
def test_a_level_of_logging_is_one_of_the_librarys(level: Any, expected: int) -> None:
    assert logs._c_level(level) == expected


@pytest.mark.parametrize(
    "logger,level,text",
    [
        (5, logging.INFO, "takes a logging.Logger, a function or None, got 5"),
        (print, "LOUD", "log level 'LOUD' is none of logging's"),
    ],
)
def test_what_is_no_logger_or_level_is_refused(logger: Any, level: Any, text: str) -> None:
    with pytest.raises(weir.CallError) as caught:
        weir.set_logger(logger, level)
    assert text in str(caught.value)


def test_lines_keep_their_order_and_go_where_they_belong() -> None:
    first: List[str] = []
    second: List[str] = []
    weir.set_logger(lambda level, text, fields: first.append(text))
    for i in range(500):
        say(str(i))
    weir.set_logger(lambda level, text, fields: second.append(text))
    say("behind")
    weir.set_logger(None)
    assert first == [str(i) for i in range(500)] and second == ["behind"]


def test_no_logger_leaves_no_thread() -> None:
    weir.set_logger(lambda *a: None)
    assert any(t.name == "weir-log" for t in threading.enumerate())
    weir.set_logger(None)
    assert not any(t.name == "weir-log" for t in threading.enumerate())
    assert logs.flush()


def test_an_exception_is_shown_and_the_next_line_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, got = [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: shown.append(told.exc_value))

    def fail_once(level: int, text: str, fields: Any) -> None:
        if text == "bad":
            raise ZeroDivisionError(text)
        got.append(text)

    weir.set_logger(fail_once)
    say("bad")
    say("good")
    weir.set_logger(None)
    assert [str(error) for error in shown] == ["bad"] and got == ["good"]


def test_what_is_no_utf8_or_no_number_arrives_as_text(lines: List[Any]) -> None:
    rows = (abi.weir_log_field * 1)()
    rows[0].name, rows[0].text, rows[0].is_number = b"n", b"many", True
    logs._sink(None, abi.WEIR_LOG_INFO, b"\xff", rows, 1)
    assert logs.flush() and lines == [(logging.INFO, "\ufffd", {"n": "many"})]


def test_lines_of_the_package_go_where_the_librarys_go(
    logger: Tuple[logging.Logger, List[logging.LogRecord]], caplog: pytest.LogCaptureFixture
) -> None:
    own, records = logger
    with caplog.at_level(logging.DEBUG):
        logs.log(logging.ERROR, "before there is a logger")
        weir.set_logger(own, logging.WARNING)
        logs.log(logging.WARNING, "heard")
        logs.log(logging.INFO, "below the level")
        weir.set_logger(None)
        logs.log(logging.ERROR, "after")
    assert [(r.levelno, r.getMessage()) for r in records] == [(logging.WARNING, "heard")]
    assert caplog.records == []


def test_a_logger_may_call_weir_and_be_slow(lines: List[Any]) -> None:
    got: List[Optional[str]] = []

    def slow(level: int, text: str, fields: Any) -> None:
        got.append(weir.select_conversion({}))
        if text == "swap":
            weir.set_logger(None)

    weir.set_logger(slow)
    begun = time.monotonic()
    for _ in range(10):
        say("x")
    say("swap")
    assert time.monotonic() - begun < 10
    deadline = time.monotonic() + 10
    while len(got) < 11 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert got == ["bf16_cast"] * 11


def test_threads_log_at_once(lines: List[Any]) -> None:
    threads = [
        threading.Thread(target=lambda: [say("x", version=i) for i in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert logs.flush() and len(lines) == 1600


def test_a_program_that_ends_while_weir_logs_ends() -> None:
    code = (
        "import ctypes, weir, threading\n"
        "from weir import abi, logs\n"
        "from weir.library import library\n"
        "weir.set_logger(lambda *a: None, 'DEBUG')\n"
        "def run():\n"
        "    options = abi.weir_directory_options(ctypes.sizeof(abi.weir_directory_options))\n"
        "    while True:\n"
        "        handle = ctypes.c_void_p()\n"
        "        library().weir_directory_open(ctypes.byref(options), ctypes.byref(handle))\n"
        "        library().weir_directory_close(handle)\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "import time; time.sleep(0.2); print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_logs(lines: List[Any]) -> None:
    child = os.fork()
    if child == 0:
        say("from the child")
        os._exit(0 if logs.flush(10) and lines[-1][1] == "from the child" else 1)
    assert os.waitpid(child, 0)[1] == 0
    say("from the parent")
    assert logs.flush() and [text for _, text, _ in lines] == ["from the parent"]
