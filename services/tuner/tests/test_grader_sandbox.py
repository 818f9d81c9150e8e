"""The sandbox: what graders may do, and a table of what hostile ones try in vain."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace_runtime.errors import InvalidArgument
from millrace_tuner.graders import sandbox
from millrace_tuner.graders.sandbox import (
    GraderFailed,
    Limits,
    PythonSandbox,
    SandboxFailed,
    check_source,
)

# Long enough that a slow machine does not fail what is not about time.
PATIENT = Limits(call_seconds=60, start_seconds=60, directory_bytes=2**20)
QUICK = Limits(call_seconds=1, start_seconds=60)
SECRET = "sk-mr-secret"
READER = """
def grade(sample, item):
    return eval(sample["output_text"], {"os": __import__("os"), "item": item})
"""


def run(source: str, text: str = "", limits: Limits = PATIENT) -> float:
    made = PythonSandbox(source, limits)
    try:
        return made.grade({"output_text": text}, {"answer": 4})
    finally:
        made.close()


def function(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def grade(sample, item):\n{lines}\n"


@pytest.fixture
def warm() -> Iterator[PythonSandbox]:
    made = PythonSandbox(READER, PATIENT)
    yield made
    made.close()


def test_it_grades_with_what_is_installed() -> None:
    body = """from rapidfuzz import fuzz, utils
import json, math, re, random, datetime, tempfile
with tempfile.TemporaryFile("w+") as file:
    file.write("x")
return fuzz.WRatio(sample["output_text"], "Four!", processor=utils.default_process) / 100"""
    assert run(function(body), "four") == 1.0


def test_numbers_of_numpy_are_numbers() -> None:
    assert run(function("import numpy\nreturn numpy.float32(0.25)")) == 0.25


def test_one_process_grades_many_samples(warm: PythonSandbox) -> None:
    found = {warm.grade({"output_text": "os.getpid()"}, {}) for _ in range(20)}
    assert len(found) == 1 and found != {os.getpid()}


def test_samples_of_several_threads_keep_apart(warm: PythonSandbox) -> None:
    found: dict[int, float] = {}

    def ask(number: int) -> None:
        found[number] = warm.grade({"output_text": "item['n']"}, {"n": number})

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number for number in range(8)}


def test_a_large_item_goes_through(warm: PythonSandbox) -> None:
    assert warm.grade({"output_text": "len(item['x'])"}, {"x": "é" * 2_000_000}) == 2_000_000


def test_an_exception_keeps_the_process(warm: PythonSandbox) -> None:
    before = warm.grade({"output_text": "os.getpid()"}, {})
    with pytest.raises(GraderFailed, match=r"line 3, in grade: return eval.*\nNameError"):
        warm.grade({"output_text": "nothing"}, {})
    assert warm.grade({"output_text": "os.getpid()"}, {}) == before


def test_it_starts_anew_after_its_process_ended(warm: PythonSandbox) -> None:
    before = warm.grade({"output_text": "os.getpid()"}, {})
    with pytest.raises(GraderFailed, match="exited with status 3"):
        warm.grade({"output_text": "os._exit(3)"}, {})
    assert warm.grade({"output_text": "os.getpid()"}, {}) != before


def test_its_directory_is_its_own_and_goes_with_it() -> None:
    made = PythonSandbox(READER, PATIENT)
    made.grade({"output_text": "open('kept', 'w').write('x')"}, {})
    child = made._child
    assert child is not None
    assert [path.name for path in child._directory.iterdir()] == ["kept"]
    made.close()
    assert not child._directory.exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (function("return 1 / 0"), "line 2, in grade: return 1 / 0\nZeroDivisionError"),
        (function("return None"), "returned NoneType, not a number"),
        (function("return '1'"), "returned str, not a number"),
        (function("return float('nan')"), "returned nan, not a finite number"),
        (function("return float('inf')"), "returned inf, not a finite number"),
        (function("raise RecursionError"), "RecursionError"),
        ("async " + function("return 1"), "returned coroutine, not a number"),
        ("def grade(sample):\n    return 1\n", "takes 1 positional argument"),
        ("grade = 1", "defines no function grade"),
        ("x = 1", "defines no function grade"),
        ("def grade(:", "line 1: invalid syntax"),
        ("import nothing_like_it", "ModuleNotFoundError"),
        ("raise ValueError('at once')", "line 1, in <module>: raise"),
        (
            "class E(Exception):\n    def __str__(self): raise SystemExit\n" + function("raise E"),
            "^E$",
        ),
    ],
)
def test_mistakes_are_told_with_the_line(source: str, says: str) -> None:
    with pytest.raises(GraderFailed, match=says):
        run(source)


HOSTILE = {
    "infinite loop": ("while True: pass", "longer than 1 s"),
    "loop that catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "longer than 1 s",
    ),
    "sleep": ("import time\ntime.sleep(1000)", "longer than 1 s"),
    "fork bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "process": ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
    "program": ("import os\nos.execv('/bin/true', ['true'])", "PermissionError"),
    "program by libc": (
        "import ctypes\nreturn 1 / (ctypes.CDLL(None).system(b'true') == 0)",
        "ZeroDivisionError",
    ),
    "memory": ("return len(b'x' * 2**40)", "MemoryError"),
    "memory little by little": (
        "kept = []\nwhile True: kept.append(bytearray(2**26))",
        "MemoryError",
    ),
    "threads": (
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "can't start new thread|MemoryError",
    ),
    "passwords": ("return len(open('/etc/passwd').read())", "PermissionError"),
    "root directory": ("import os\nreturn len(os.listdir('/'))", "PermissionError"),
    "processes": ("import os\nreturn len(os.listdir('/proc'))", "PermissionError"),
    "parent's environment": (
        "import os\nreturn len(open(f'/proc/{os.getppid()}/environ').read())",
        "PermissionError",
    ),
    "file elsewhere": ("open('/tmp/millrace-evil', 'w')", "PermissionError"),
    "link out": ("import os\nos.symlink('/etc/passwd', 'a')\nopen('a').read()", "PermissionError"),
    "rights": ("import os\nos.chmod('.', 0o777)", "PermissionError"),
    "large file": ("open('a', 'wb').write(b'x' * 2**21)", "File too large"),
    "many files": (
        "number = 0\nwhile True:\n    number += 1\n    open(f'{number}', 'wb').write(b'x' * 2**19)",
        "wrote more than",
    ),
    "socket": ("import socket\nsocket.socket()", "PermissionError"),
    "pair of sockets": ("import socket\nsocket.socketpair()", "PermissionError"),
    "web": (
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "PermissionErr|Operation not permitted",
    ),
    "killing its parent": ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
    "killing its group": ("import os\nos.killpg(0, 9)", "PermissionError"),
    "leaving its group": ("import os\nos.setsid()", "PermissionError"),
    "tracing": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.ptrace(16, os.getppid(), 0, 0)\nraise OSError(ctypes.get_errno(), 'traced')",
        "Errno 1",
    ),
    "io_uring": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.syscall(425, 1, None)\nraise OSError(ctypes.get_errno(), 'made')",
        "Errno 1",
    ),
    "limits of its parent": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
        "PermissionError",
    ),
    "more memory": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "not allowed|PermissionError|ValueError",
    ),
    "being root": (
        "import os\nos.setuid(0)\nreturn len(open('/etc/shadow').read())",
        "PermissionError|OSError",
    ),
    "exit": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "hard exit": ("import os\nos._exit(0)", "exited with status 0"),
    "crash": ("import ctypes\nctypes.string_at(0)", "by SIGSEGV"),
    "forged answer": (
        "import os\nfor number in range(3, 9):\n    try: os.write(number, b'{\"reward\": 9}\\n')\n"
        "    except OSError: pass\nreturn 1",
        "wrote to the sandbox's own pipes",
    ),
    "endless answer": (
        "import os\nwhile True:\n  for number in range(3, 9):\n"
        "    try: os.write(number, b'x' * 65536)\n    except OSError: pass",
        "wrote to the sandbox's own pipes",
    ),
    "endless error": ("raise ValueError('x' * 10**7)", "^x{2000}$"),
}
IN_TIME = {"infinite loop", "loop that catches everything", "sleep"}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_code_is_held(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_TUNER_JUDGE_API_KEY", SECRET)
    body, says = HOSTILE[what]
    with pytest.raises(GraderFailed, match=says):
        run(function(body), limits=QUICK if what in IN_TIME else PATIENT)
    assert not Path("/tmp/millrace-evil").exists()


def test_it_sees_no_environment_and_no_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_TUNER_JUDGE_API_KEY", SECRET)
    inherited = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        assert run(function("import os\nreturn float('secret' in repr(dict(os.environ)))")) == 0
        body = """import os
def leads_somewhere(number):
    try: return os.fstat(number).st_size > 0
    except OSError: return False
return sum(map(leads_somewhere, range(64)))"""
        assert run(function(body)) == 0
    finally:
        os.close(inherited)


def test_what_it_prints_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    body = (
        "import sys\nprint('x' * 10**7)\nprint('y', file=sys.stderr)\nreturn len(sys.stdin.read())"
    )
    assert run(function(body)) == 0
    assert capfd.readouterr() == ("", "")


def test_as_root_it_is_somebody_else() -> None:
    expected = sandbox._other_user(Path("/tmp/x"))
    found = run(function("import os\nreturn os.getuid()"))
    assert found == (expected if expected is not None else os.getuid())


def test_it_is_held_as_well_where_it_must_stay_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter in root's own home: nobody else could read it."""
    monkeypatch.setattr(sandbox, "_other_user", lambda _directory: None)
    assert run(function("import os\nreturn os.getuid()")) == os.getuid()
    for body in (
        "open('/etc/shadow').read()",
        "__import__('os').kill(1, 0)",
        "__import__('os').chmod('/tmp', 0o777)",
        "__import__('os').chroot('.')",
        "__import__('socket').socket()",
    ):
        with pytest.raises(GraderFailed, match="PermissionError"):
            run(function(body))


def test_a_source_is_checked_without_running_it() -> None:
    check_source("import os\nos._exit(1)\n" + function("return 1"), "grader.source")
    for source, says in {
        "def grade(:": "grader.source: line 1: invalid syntax",
        "x = 1": "defines no function grade",
        "(" * 5000: "too many nested parentheses|MemoryError|nested",
    }.items():
        with pytest.raises(InvalidArgument, match=says) as refused:
            check_source(source, "grader.source")
        assert refused.value.field == "grader.source"


@pytest.mark.parametrize(
    ("what", "instead", "says"),
    [
        ("_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444", "= 9999", "no Landlock"),
        (
            "_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22",
            "= 1, 9999",
            "seccomp",
        ),
    ],
)
def test_a_machine_that_cannot_confine_runs_nothing(
    what: str, instead: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel that lacks the calls."""
    package = Path(sandbox.__file__).parent
    confinement = (package / "confinement.py").read_text()
    assert what in confinement
    lame = confinement.replace(what, what.partition("=")[0] + instead)
    (tmp_path / "confinement.py").write_text(lame)
    child = tmp_path / "sandbox_child.py"
    child.write_text((package / "sandbox_child.py").read_text())
    monkeypatch.setattr(sandbox, "_CHILD", child)
    marker = "open('/tmp/millrace-evil', 'w')\n"
    with pytest.raises(SandboxFailed, match=says) as failed:
        run(marker + function("return 1"))
    assert failed.value.kind == "sandbox_unavailable"
    assert not Path("/tmp/millrace-evil").exists()


def test_a_process_outlives_the_thread_that_asked_first(warm: PythonSandbox) -> None:
    found: list[float] = []
    for _ in range(3):
        ask = lambda: found.append(warm.grade({"output_text": "os.getpid()"}, {}))  # noqa: E731
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1


def test_a_sandbox_that_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxFailed, match="cannot be started"):
        run(function("return 1"))


def test_questions_are_one_line() -> None:
    """The protocol stands on it: JSON never holds a raw line break."""
    assert "\n" not in json.dumps({"output_text": "a\nb\u2028c"})
