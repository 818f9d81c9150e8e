"""Takes from this process, for good, what a grader does not need. Standard library only.

``sandbox_child.py`` calls ``confine`` in a process of its own before it runs the user's code. In
this order, each on its own and all without privileges:

- it dies with the thread that started it (``sandbox.py`` keeps one for that);
- resource limits: address space, sizes and number of files, threads, no core dumps;
- namespaces of its own for network and IPC, where the kernel lets it (as an addition only);
- another user when it was started by root, and no capability in any case;
- Landlock (Linux 5.13): of the file system only the interpreter with its packages can be read,
  and only its own directory written;
- seccomp: no socket of any kind, no process, no program, no signal, no ptrace, no mount, no
  io_uring, no change of owners, modes or times of files.

What does not hold: that a file outside exists, its size and its times can be seen (``stat``);
processor caches are shared with everything else on the machine; a bug in the kernel is a bug in
the sandbox. Without Landlock or seccomp ``confine`` refuses: there is no weaker mode.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_THREAD = 0x10000
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_MOST_FILES, _MOST_THREADS = 64, 64

# linux/audit.h
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Calls that are refused: (x86_64, aarch64); -1 where there is none.
_REFUSED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "personality": (135, 92),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
}
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_EPERM, _ENOSYS = 1, 38

# linux/landlock.h: numbers are the same on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_EXECUTE, _LANDLOCK_WRITE_FILE = 1 << 0, 1 << 1
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
_LANDLOCK_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # the later ABIs have 16

_LIBC = ctypes.CDLL(None, use_errno=True)


class Unconfined(Exception):
    """This machine lacks what the sandbox needs."""


def confine(wanted: dict[str, Any]) -> None:
    """Keep only what a grader needs.

    ``wanted`` holds ``memory_bytes``, ``file_bytes``, ``user`` (an id, or None to stay),
    ``readable`` (paths) and ``directory``.

    Raises:
        Unconfined
    """
    _limit(wanted["memory_bytes"], wanted["file_bytes"])
    _unshare()
    if wanted["user"] is not None:
        os.setgroups([])
        os.setresgid(wanted["user"], wanted["user"], wanted["user"])
        os.setresuid(wanted["user"], wanted["user"], wanted["user"])
    # A change of user takes this back, so it comes after.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    _restrict_files(wanted["readable"], wanted["directory"])
    _filter_calls()


def _limit(memory_bytes: int, file_bytes: int) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NPROC: _MOST_THREADS,
        resource.RLIMIT_AS: memory_bytes,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))
    # A file that grows too large is an OSError, not the end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _unshare() -> None:
    own = 0 if os.geteuid() == 0 else _CLONE_NEWUSER
    # Refused in many containers, and then seccomp alone keeps it off the network.
    _LIBC.unshare(own | _CLONE_NEWNET | _CLONE_NEWIPC)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise Unconfined(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _drop_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    if _LIBC.capset(header, ctypes.create_string_buffer(24)) != 0:
        raise Unconfined(f"capset: {os.strerror(ctypes.get_errno())}")


def _restrict_files(readable: list[str], directory: str) -> None:
    version = _LIBC.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise Unconfined("the kernel has no Landlock (Linux 5.13, lsm=landlock)")
    everything = (1 << _LANDLOCK_BITS.get(version, 16)) - 1
    attributes = ctypes.create_string_buffer(struct.pack("=Q", everything), 8)
    rules = _LIBC.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(8), 0)
    if rules < 0:
        raise Unconfined(f"Landlock: {os.strerror(ctypes.get_errno())}")
    reading = _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    for path in readable:
        _allow(rules, path, reading)
    _allow(rules, "/dev/null", _LANDLOCK_READ_FILE | _LANDLOCK_WRITE_FILE)
    _allow(rules, "/dev/urandom", _LANDLOCK_READ_FILE)
    _allow(rules, directory, everything & ~_LANDLOCK_EXECUTE)
    if _LIBC.syscall(_LANDLOCK_RESTRICT, rules, 0) != 0:
        raise Unconfined(f"Landlock: {os.strerror(ctypes.get_errno())}")
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be opened needs no rule
    if not os.path.isdir(path):
        access &= _LANDLOCK_EXECUTE | _LANDLOCK_READ_FILE | _LANDLOCK_WRITE_FILE
    rule = ctypes.create_string_buffer(struct.pack("=Qi", access, place), 12)
    failed = _LIBC.syscall(_LANDLOCK_ADD, rules, 1, rule, 0)
    os.close(place)
    if failed:
        raise Unconfined(f"Landlock: {path}: {os.strerror(ctypes.get_errno())}")


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _filter_calls() -> None:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise Unconfined(f"the sandbox knows no system calls of {machine}")
    code = _filter(_ARCHITECTURES[machine], column=list(_ARCHITECTURES).index(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) != 0:
        raise Unconfined(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _filter(architecture: int, column: int) -> bytes:
    """Classic BPF over ``struct seccomp_data``: number at 0, architecture at 4, arguments at 16."""
    allow, refuse = _return(0x7FFF0000), _return(0x00050000 | _EPERM)
    kill, no_such = _return(0x80000000), _return(0x00050000 | _ENOSYS)
    lines = [_load(4), _if_equal(architecture, 1, 0), kill, _load(0)]
    # x32's calls have numbers of their own, for the same things.
    lines += [_if_at_least(0x40000000, 0, 1), refuse]
    # glibc falls back to clone, whose flags can be read here; those of clone3 cannot.
    lines += [_if_equal(_CLONE3[column], 0, 1), no_such]
    for number in sorted(numbers[column] for numbers in _REFUSED.values()):
        if number >= 0:
            lines += [_if_equal(number, 0, 1), refuse]
    threads_only = [_load(16), _if_any(_CLONE_THREAD, 1, 0), refuse, allow]
    lines += [_if_equal(_CLONE[column], 0, len(threads_only)), *threads_only]
    own_only = [_load(16), _if_equal(0, 1, 0), refuse, allow]
    lines += [_if_equal(_PRLIMIT[column], 0, len(own_only)), *own_only]
    return b"".join([*lines, allow])


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _if_equal(value: int, then: int, otherwise: int) -> bytes:
    return struct.pack("=HBBI", 0x15, then, otherwise, value)


def _if_at_least(value: int, then: int, otherwise: int) -> bytes:
    return struct.pack("=HBBI", 0x35, then, otherwise, value)


def _if_any(bits: int, then: int, otherwise: int) -> bytes:
    return struct.pack("=HBBI", 0x45, then, otherwise, bits)


def _return(value: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, value)
