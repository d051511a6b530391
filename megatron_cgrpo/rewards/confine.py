"""Run as a script: confines itself as a job says, then becomes the job's program. Standard library only.

``python -I -S confine.py JOB_FD`` reads a JSON job (``sandbox._job``). With ``"namespaces": true`` it enters
new user, mount, PID, network, IPC and UTS namespaces whose root holds an interpreter, its libraries and the job's
files, all read-only, and one small tmpfs; then it runs the program as an unprivileged user under resource limits.
Linux 5.12 or newer (``mount_setattr``). The process tree: this process > PID 1 of the new namespace > the program.
When any of the first two dies the kernel kills everything in the namespace, daemons included.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_UNPRIVILEGED = 65534
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_ATTR_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_RECURSIVE, _MNT_DETACH = 0x8000, 2
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as file:
        job = json.load(file)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    if job["namespaces"]:
        _enter_namespaces()
        _exit_as(_fork_or_become(lambda: _first_process(job)))
    _become(job)


def _first_process(job: dict) -> None:
    """PID 1: builds the root, starts the program, and ends with it, which ends every process it left behind."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    _build_root(job)
    program = _fork_or_become(lambda: _become(job))
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(_exit_code(status))


def _fork_or_become(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    except BaseException as error:  # the child must never return into its parent's code
        _fail(error)
    os._exit(0)


def _exit_as(pid: int) -> None:
    os._exit(_exit_code(os.waitpid(pid, 0)[1]))


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _fail(error: BaseException) -> None:
    """The reason goes to the standard error behind a mark, before the program has had any say."""
    os.write(2, f"\0confine: {error!r}\n".encode())
    os._exit(125)


def _enter_namespaces() -> None:
    """A helper that stays outside writes the id maps: only it may map a second id, which root needs (see _become)."""
    outer = os.geteuid()
    begin_read, begin_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(begin_write)
        try:
            if os.read(begin_read, 1):
                _map_ids(os.getppid(), outer)
        except OSError as error:
            _fail(error)
        os._exit(0)
    _call("unshare", _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_USER | _NEW_PID | _NEW_NET)
    os.write(begin_write, b"1")
    status = os.waitpid(helper, 0)[1]
    os.close(begin_read)
    os.close(begin_write)
    if status:
        os._exit(125)


def _map_ids(pid: int, outer: int) -> None:
    maps = {"uid_map": os.geteuid(), "gid_map": os.getegid()}
    if outer != 0:
        _write(f"/proc/{pid}/setgroups", "deny")
    for name, own in maps.items():
        both = f"0 0 1\n{_UNPRIVILEGED} {_UNPRIVILEGED} 1\n"
        _write(f"/proc/{pid}/{name}", both if outer == 0 else f"{_UNPRIVILEGED} {own} 1\n")


def _build_root(job: dict) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=32m,nr_inodes=1k,mode=755")
    os.mkdir("/tmp/old")
    _syscall(_SYS_PIVOT_ROOT[os.uname().machine], b"/tmp", b"/tmp/old")
    os.chdir("/")
    for source, target in job["binds"]:
        _bind("/old" + source, target)
    for link, target in job["links"]:
        os.symlink(target, link)
    os.mkdir("/job")
    _write_files("/job", job["files"])
    os.mkdir("/tmp")
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={job['work_bytes']},nr_inodes=1k,mode=1777")
    # Without further user namespaces a program cannot mount a larger tmpfs for itself. A container's /proc/sys may be
    # read-only; sandbox.Sandbox.enforced measures what holds.
    with contextlib.suppress(OSError):
        _write("/old/proc/sys/user/max_user_namespaces", "0")
    _call("umount2", b"/old", _MNT_DETACH)
    os.rmdir("/old")
    _read_only("/", recursive=False)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    _read_only(target, recursive=True, device=target.startswith("/dev/"))


def _read_only(path: str, recursive: bool, device: bool = False) -> None:
    flags = _ATTR_READ_ONLY | _ATTR_NOSUID | (0 if device else _ATTR_NODEV)
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    at = _AT_RECURSIVE if recursive else 0
    _syscall(_SYS_MOUNT_SETATTR, -100, path.encode(), at, ctypes.byref(attributes), size)


def _become(job: dict) -> None:
    """Gives everything up, then executes the program. Root changes its user: the process limit spares root."""
    if not job["namespaces"]:
        _write_files(job["directory"], job["files"])
    os.chdir(job["directory"])
    for name, (soft, hard) in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (soft, hard))
    if job["namespaces"]:
        for capability in range(64):
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # the first unknown one, and those after it, fail
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
            os.setresuid(_UNPRIVILEGED, _UNPRIVILEGED, _UNPRIVILEGED)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execve(job["command"][0], job["command"], job["environment"])


def _write_files(directory: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        with open(os.path.join(directory, name), "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    _call("mount", _bytes(source), target.encode(), _bytes(kind), ctypes.c_ulong(flags), options.encode())


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _syscall(number: int, *arguments: Any) -> None:
    _call("syscall", ctypes.c_long(number), *arguments)


def _call(function: str, *arguments: Any) -> None:
    if getattr(_LIBC, function)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}{arguments}: {os.strerror(code)}")


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        _fail(error)
