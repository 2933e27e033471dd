"""The inside of the sandbox: a script for a fresh interpreter, standard library only (`sandbox` passes its source).

    helper                              PID 1 of the new namespaces                 compiler, program
    unshare, fork; pass the             build the file system, give up all          set limits, exec,
    verdict on as exit status           rights, watch clock and memory              report how it ended

With bubblewrap, bwrap is the helper and has built the file system already. When PID 1 ends, the kernel kills whatever
the program left running, before the helper can end. Without walls (`sandbox`'s backend "none") the helper is its own
PID 1: it adopts what the program leaves, and kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import linecache
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
import types
from typing import Any, NoReturn

# Exit statuses; far from those of a failing helper, and from any that a program is likely to leave with.
PASSED, FAILED, TIMEOUT, MEMORY = 40, 41, 42, 43

FILE_BYTES = 16 << 20
OPEN_FILES = 64
PROCESSES = 32
THREADS = 128  # of a virtual machine; the kernel counts them as processes
POLL_SECONDS = 0.03
NOBODY = 65534

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>; the numbers of these three system calls are
# the same on all architectures, and the C library may be too old to wrap them.
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8  # the same bits in MS_ and in MOUNT_ATTR_
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
AT_FDCWD, AT_RECURSIVE, AT_EMPTY_PATH, OPEN_TREE_CLONE, MOVE_EMPTY_PATH = -100, 0x8000, 0x1000, 1, 4
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38
CAPABILITY_VERSION = 0x20080522

# What is run in turn: `name` (compiler, program), `command` (None: the source is Python and played here), `seconds`,
# `memory` (bytes), `reserves` (see `languages`).
Step = dict[str, Any]

libc = ctypes.CDLL(None, use_errno=True)


def main() -> NoReturn:
    """The plan comes as JSON in the first argument, the program on stdin."""
    plan = json.loads(sys.argv[1])
    if plan["enter"]:
        enter()
        build(plan["binds"], plan["devices"], plan["links"], max(step["memory"] for step in plan["steps"]))
    if plan["walls"]:
        drop(plan["uid"])
    else:
        call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    source = sys.stdin.buffer.read()
    if plan["file"]:
        with open(plan["file"], "wb") as file:
            file.write(source)
    verdict = PASSED
    for step in plan["steps"]:
        if verdict == PASSED:
            verdict = watch(source, step, plan["lifeline"])
    if not plan["walls"]:
        end_all()
    os._exit(verdict)


def call(name: str, *arguments: int | bytes | None) -> int:
    """A C function that returns -1 on failure; raises OSError then."""
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = getattr(libc, name)(*given)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


# --- new namespaces --------------------------------------------------------------------------------------------------


def enter() -> None:
    """Return as PID 1 of fresh namespaces; the calling process waits outside and ends as PID 1 does.

    Root needs no user namespace, and without one can give up its own uid later; everybody else gets one of their own.
    """
    uid, gid = os.getuid(), os.getgid()
    call("unshare", NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP | (NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    child = os.fork()
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 1)


def build(binds: list[str], devices: list[str], links: dict[str, str], memory: int) -> None:
    """Make a root of read-only `binds`, `devices` and `links`, a private /proc and /tmp, and leave the old one."""
    os.umask(0o022)
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    # Trees are taken out first: the new root is mounted over /tmp and hides what lies there.
    trees = [(path, os.path.isdir(path), clone(path, NO_DEV)) for path in binds]
    trees += [(path, False, clone(path, 0)) for path in devices]
    root = "/tmp"
    mount("tmpfs", root, NO_SUID | NO_DEV, "mode=755,size=1m")
    for path in ("/proc", "/tmp"):
        make_place(root + path, True)
    mount("proc", f"{root}/proc", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, None)
    # Before the trees: the interpreter's own may lie in /tmp.
    mount("tmpfs", f"{root}/tmp", NO_SUID | NO_DEV, f"mode=1777,size={memory}")
    for path, is_folder, tree in trees:
        make_place(root + path, is_folder)
        call("syscall", MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(root + path), MOVE_EMPTY_PATH)
        os.close(tree)
    for path, target in links.items():
        make_place(os.path.dirname(root + path), True)
        os.symlink(target, root + path)
    set_attributes(AT_FDCWD, root, 0, READ_ONLY)
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies over the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/tmp")


def mount(kind: str, path: str, flags: int, options: str | None) -> None:
    """Mount a fresh file system of `kind` at `path`."""
    data = None if options is None else options.encode()
    call("mount", kind.encode(), os.fsencode(path), kind.encode(), flags, data)


def clone(path: str, attributes: int) -> int:
    """A descriptor of a detached read-only copy of the mounts at and below `path`."""
    tree = call("syscall", OPEN_TREE, AT_FDCWD, os.fsencode(path), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC)
    set_attributes(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, READ_ONLY | NO_SUID | attributes)
    return tree


def set_attributes(descriptor: int, path: str, flags: int, attributes: int) -> None:
    """Add mount attributes; unlike a remount, this keeps those that are there."""
    wanted = struct.pack("4Q", attributes, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, descriptor, os.fsencode(path), flags, wanted, len(wanted))


def make_place(path: str, is_folder: bool) -> None:
    """An empty folder or file to mount on, with its parents."""
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o444))


def drop(uid: int) -> None:
    """Give up all rights for good: uid (root only), capabilities, those that a program file could lend."""
    if os.getuid() == 0:
        os.setgroups([])
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        except OSError:  # a container that maps few ids: there, root is an ordinary user in truth
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0)  # the program has our uid, but shall neither trace nor read us


# --- the program -----------------------------------------------------------------------------------------------------


def watch(source: bytes, step: Step, lifeline: int) -> int:
    """Run one step in a child and return its verdict; PID 1 must end after the last, and so end all that is left.

    `lifeline` is a pipe that breaks when whoever wants the verdict is gone. (A parent-death signal would not do: bwrap
    has no right to signal PID 1 once that has changed its uid.)
    """
    alive = select.poll()
    alive.register(lifeline, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of all signals from inside, the one that Python handles
    deadline = time.monotonic() + step["seconds"]
    passed = 64 + os.urandom(1)[0] % 128  # a program that leaves by any status of its own has not passed
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        confine(step)
        if step["command"]:
            become(step)
        play(source, passed)
    while (status := reap(child)) is None:
        left = deadline - time.monotonic()
        if left <= 0 or alive.poll(0):
            return TIMEOUT
        if used_bytes() > step["memory"]:
            return MEMORY
        if os.getpid() != 1 and len(descendants()) > PROCESSES:
            return FAILED
        signal.sigtimedwait({signal.SIGCHLD}, min(left, POLL_SECONDS))
    return judge(status, step, passed)


def reap(child: int) -> int | None:
    """Bury the dead; the exit status of `child` (negative: a signal) once it is among them."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == child:
                return os.waitstatus_to_exitcode(found[1])
    return None


def judge(status: int, step: Step, passed: int) -> int:
    """The verdict on how a step ended; says why on stderr where the program could not."""
    if status == (0 if step["command"] else passed):
        return PASSED
    if status in (FAILED, MEMORY) and not step["command"]:
        return status
    if status == -signal.SIGXCPU:
        return TIMEOUT
    how = f"with exit status {status}" if status >= 0 else f"by a signal ({signal.strsignal(-status)})"
    os.write(2, f"the {step['name']} ended {how}{'' if step['command'] else ' before its end'}\n".encode())
    return FAILED


def descendants() -> dict[int, int]:
    """Process → bytes of memory it holds, of all that this one has started, and what they have."""
    parents, held = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # it may have just ended
                facts = file.read().rpartition(b")")[2].split()  # behind the name, from field 3 on
                parents[int(name)], held[int(name)] = int(facts[1]), int(facts[21]) * resource.getpagesize()
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {process: held[process] for process in ours - {os.getpid()}}


def used_bytes() -> int:
    """Memory of all processes in the sandbox and of its /tmp; pages shared by processes count for each."""
    if os.getpid() != 1:
        return sum(descendants().values())  # the disk is everybody's
    disk = os.statvfs("/tmp")
    return sum(descendants().values()) + (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def end_all() -> None:
    """Kill what is left of the program, until nothing comes up any more."""
    while left := descendants():
        for number in (signal.SIGSTOP, signal.SIGKILL):  # first stop them all, or new ones would take their place
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)
        time.sleep(POLL_SECONDS / 10)
        reap(0)


def become(step: Step) -> NoReturn:
    """Become the compiler or a program of another language than Python."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # our interpreter's settings would be inherited
        signal.signal(number, signal.SIG_DFL)
    if step["name"] == "compiler":
        os.dup2(2, 1)  # some complain on stdout
    try:
        os.execv(step["command"][0], step["command"])
    except OSError as error:
        os.write(2, f"{step['command'][0]}: {error.strerror}\n".encode())
        os._exit(127)


def play(source: bytes, passed: int) -> NoReturn:
    """Become the program: the module `program`, so that `__name__ == "__main__"` is false and exit() is no success.

    Ends with the status `passed` behind the last line.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("program")
    sys.modules["program"], sys.argv = module, ["program"]
    lines = source.decode(errors="replace").splitlines(keepends=True)
    linecache.cache["<program>"] = (len(source), None, lines, "<program>")  # tracebacks quote it
    status = FAILED
    try:
        exec(compile(source, "<program>", "exec"), module.__dict__)
        status = passed
    except SystemExit as error:
        said = error.code if isinstance(error.code, str) else f"the program left by exit({error.code!r}) before its end"
        with contextlib.suppress(BaseException):  # the program may have broken stderr
            print(said, file=sys.stderr)
    except BaseException as error:
        status = MEMORY if isinstance(error, MemoryError) else FAILED
        with contextlib.suppress(BaseException):  # or an error's __str__
            traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def confine(step: Step) -> None:
    """Limits of each process of the program, an empty stdin, no signal blocked."""
    cpu, memory = math.ceil(step["seconds"]) + 1, step["memory"]
    limits = {
        # Our interpreter says so when there is none left. Others just die: for them, the memory that is counted shall
        # decide first, though an array that grows reserves three times what it holds.
        resource.RLIMIT_AS: 4 * memory if step["command"] else memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    if step["reserves"]:  # the memory that is counted bounds it, and the wall clock its threads' time
        del limits[resource.RLIMIT_AS], limits[resource.RLIMIT_CPU]
        limits[resource.RLIMIT_NPROC] = THREADS
    if os.getppid() != 1:  # all that the user runs would count: `watch` counts those of the program
        del limits[resource.RLIMIT_NPROC]
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        # One second between the CPU limits: the soft one sends the signal that `judge` knows.
        soft = max(1, value - 1) if limit == resource.RLIMIT_CPU else value
        resource.setrlimit(limit, (soft, value))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # unlike a descriptor that is opened, this one stays open in other programs
    os.close(nothing)
    call("prctl", PR_SET_DUMPABLE, 1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    main()
