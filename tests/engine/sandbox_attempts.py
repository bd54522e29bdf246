"""Ways out of the sandbox, by name. Each program that comes to its end without an exception has got out.

The probe puts a preamble before it: `call` is a system call by its numbers; `CANARY`, `SOCKET`, `ABSTRACT` (paths), `PORT`,
`PARENT` (a process), `INHERITED` (a handle), `PACKAGES` and `WORKER` name things outside.
"""

PREAMBLE = """
import ctypes, os, signal, stat, struct, sys

def call(x86_64, aarch64, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = {"x86_64": x86_64, "aarch64": aarch64}[os.uname().machine]
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call failed")
    return result

"""

NETWORK = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', PORT), 5).send(b'x')",
    "tcp ipv6": "import socket; socket.socket(socket.AF_INET6)",
    "tcp server": "import socket; socket.create_server(('127.0.0.1', 0))",
    "udp": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX).connect(SOCKET)",
    "abstract unix socket": "import socket; socket.socket(socket.AF_UNIX).connect(ABSTRACT)",
    "socket pair": "import socket; socket.socketpair()",
    "raw socket": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "packet socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "vsock": "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "crypto socket": "import socket; socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "bluetooth": "import socket; socket.socket(31, socket.SOCK_RAW, 1)",
    "can bus": "import socket; socket.socket(29, socket.SOCK_RAW, 1)",
    "url": "import http.client; http.client.HTTPConnection('127.0.0.1', PORT, timeout=5).connect()",
    "name service": "import socket; socket.getaddrinfo('localhost', 80); socket.socket()",
    "event loop": "import asyncio; asyncio.run(asyncio.sleep(0))",
    "socket by system call": "call(41, 198, 2, 1, 0)",
    "socket by the x32 table": "call(41 | 0x40000000, 198, 2, 1, 0)",
    "io_uring": "call(425, 425, 8, ctypes.create_string_buffer(120))",
}

FILES = {
    "read the users": "open('/etc/passwd').read()",
    "read a file outside": "open(CANARY).read()",
    "read by a path upwards": "open('../' * 20 + CANARY).read()",
    "read by system call": "os.read(call(257, 56, -100, CANARY.encode(), 0, 0), 1)",
    "read by a folder handle": "os.open(os.path.basename(CANARY), 0, dir_fd=os.open(os.path.dirname(CANARY), 0))",
    "read by a symlink": "os.symlink(CANARY, 'link'); open('link').read()",
    "read by a hard link": "os.link(CANARY, 'link'); open('link').read()",
    "read by a path handle": "open(f'/proc/self/fd/{os.open(CANARY, os.O_PATH)}').read()",
    "a path handle": "os.open(CANARY, os.O_PATH)",
    "write to a file outside": "open(CANARY, 'r+').write('x')",
    "append to a file outside": "open(CANARY, 'a').write('x')",
    "new file outside": "open(CANARY + '.new', 'w').close()",
    "temporary file outside": "import tempfile; tempfile.NamedTemporaryFile(dir=os.path.dirname(CANARY))",
    "unnamed file outside": "os.open(os.path.dirname(CANARY), os.O_TMPFILE | os.O_RDWR)",
    "truncate": "os.truncate(CANARY, 999)",
    "truncate by opening to read": "os.open(CANARY, os.O_RDONLY | os.O_TRUNC)",
    "delete": "os.unlink(CANARY + '.spare0')",
    "move in": "os.rename(CANARY + '.spare1', 'mine')",
    "move out": "open('mine', 'w').close(); os.rename('mine', CANARY + '.moved')",
    "change mode": "os.chmod(CANARY, 0o600)",
    "change owner": "os.chown(CANARY, os.getuid(), os.getgid())",
    "change times": "os.utime(CANARY, (0, 0))",
    "extended attribute": "os.setxattr(CANARY, 'user.x', b'x')",
    "list the root": "os.listdir('/')",
    "list the temporary folders": "os.listdir('..')",
    "leave the folder": "os.chdir('/')",
    "make a folder": "os.mkdir('deep')",
    "make a symlink": "os.symlink('x', 'link')",
    "make a pipe": "os.mkfifo('pipe')",
    "make a device": "os.mknod('zero', stat.S_IFCHR | 0o600, os.makedev(1, 5))",
    "shared memory file": "open(f'/dev/shm/nanochat-{PARENT}', 'w'); os.unlink(f'/dev/shm/nanochat-{PARENT}')",
    "shared memory": "from multiprocessing import shared_memory; shared_memory.SharedMemory(create=True, size=9).unlink()",
    "system v shared memory": "call(29, 194, 0, 4096, 0o1600)",
    "memory file": "os.memfd_create('x')",
    "chroot": "os.chroot('.')",
    "mount": "call(165, 40, b'none', os.getcwd().encode(), b'tmpfs', 0, b'')",
    "namespace": "call(272, 97, 0x10000000)",
    "terminal": "os.openpty()",
    "watch files": "call(294, 26, 0)",
    "system log": "call(103, 116, 3, ctypes.create_string_buffer(99), 9)",
    "installed packages": "import glob; open(next(p for p in glob.iglob(PACKAGES + '/*/*.py'))).read()",
    "packages inside the library": """
import glob
found = glob.glob(os.path.dirname(os.__file__) + '/site-packages/*/*.py') or ['/etc/passwd']
open(found[0]).read()
""",
    "the sandbox's own source": "open(WORKER).read()",
}

PROC = {
    "own environment": "open('/proc/self/environ').read()",
    "own memory": "open('/proc/self/mem', 'r+b')",
    "own maps": "open('/proc/self/maps').read()",
    "environment of the parent": "open(f'/proc/{PARENT}/environ').read()",
    "memory of the parent": "open(f'/proc/{PARENT}/mem', 'rb')",
    "folder of the parent": "os.readlink(f'/proc/{PARENT}/cwd')",
    "files of the parent": "os.listdir(f'/proc/{PARENT}/fd')",
    "first process": "open('/proc/1/cmdline').read()",
    "list of processes": "os.listdir('/proc')",
    "kernel settings": "open('/proc/sys/kernel/hostname').read()",
    "devices": "os.listdir('/sys')",
}

PROCESSES = {
    "fork": "os.fork() or os._exit(0)",
    "fork bomb": "for _ in range(20): os.fork() or os._exit(0)",
    "fork by system call": "call(57, 220, 17, 0, 0, 0, 0) or os._exit(0)",
    "clone3": "call(435, 435, struct.pack('=8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64) or os._exit(0)",
    "thread": "import threading; threading.Thread(target=print).start()",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "shell": "assert os.system('true') == 0",
    "shell by ctypes": "assert ctypes.CDLL(None).system(b'true') == 0",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "execute": "os.execv('/bin/true', ['true'])",
    "execute a handle": "os.execve(os.open('/bin/true', os.O_RDONLY), ['true'], {})",
    "execute by system call": "call(59, 221, b'/bin/true', None, None)",
    "multiprocessing": "import multiprocessing as m; p = m.get_context('fork').Process(); p.start(); p.join()",
    "terminal process": "import pty; pty.fork()[0] or os._exit(0)",
}

SIGNALS = {
    "signal to the parent": "os.kill(PARENT, 0)",
    "kill the parent": "os.kill(PARENT, signal.SIGKILL)",
    "kill everybody": "os.kill(-1, signal.SIGKILL)",
    "kill the real parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "kill the group of the parent": "os.killpg(os.getpgid(PARENT), signal.SIGKILL)",
    "signal by system call": "call(62, 129, PARENT, 0)",
    "signal to a thread": "call(200, 130, PARENT, 0)",
    "signal by a process handle": "signal.pidfd_send_signal(os.pidfd_open(PARENT), 0)",
    "signal by file owner": "import fcntl; fcntl.fcntl(1, fcntl.F_SETOWN, PARENT)",
    "trace the parent": "call(101, 117, 16, PARENT, 0, 0)",
    "read the parent's memory": """
target = ctypes.create_string_buffer(8)
vector = struct.pack('=QQ', ctypes.addressof(target), 8)
call(310, 270, os.getpid(), vector, 1, vector, 1, 0)
""",
    "limits of the parent": "import resource; resource.prlimit(PARENT, resource.RLIMIT_NOFILE)",
    "priority of the parent": "os.setpriority(os.PRIO_PROCESS, PARENT, 5)",
    "processors of the parent": "os.sched_setaffinity(PARENT, os.sched_getaffinity(PARENT))",
}

PRIVILEGES = {
    "become root": "os.setuid(0)",
    "become somebody else": "os.setresuid(1, 1, 1); os.setresuid(0, 0, 0)",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more time": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
    "host name": "import socket; socket.sethostname(socket.gethostname())",
    "clock": "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())",
    "bpf": "call(321, 280, 0, struct.pack('=IIIII', 2, 4, 4, 1, 0), 20)",
    "performance counters": "call(298, 241, struct.pack('=IIQ', 1, 128, 0).ljust(128, b'\\0'), 0, -1, -1, 0)",
    "page faults": "call(323, 282, 1)",
    "keys": "call(250, 219, 0, -3, 1)",
    "kernel module": "call(313, 273, 0, b'', 0)",
    "another filter": "assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0",
    "locked memory": "call(149, 228, ctypes.create_string_buffer(9), 9)",
}

PYTHON = {
    "frame walk to the worker's modules": """
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
frame.f_globals['os'].fork() or os._exit(0)
""",
    "subclass walk": """
import subprocess
(popen,) = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen']
popen(['/bin/true']).wait()
""",
    "pickle": "import pickle; assert pickle.loads(b'cos\\nsystem\\n(S\"true\"\\ntR.') == 0",
    "pickle that opens": "import pickle; pickle.loads(b'cbuiltins\\nopen\\n(S' + repr(CANARY).encode() + b'\\ntR.')",
    "fresh copy of a module": "del sys.modules['os']; import os as fresh; fresh.fork() or fresh._exit(0)",
    "builtin module": "__import__('posix').fork() or os._exit(0)",
    "module loader": "from importlib.machinery import SourceFileLoader as L; L('x', CANARY).get_data(CANARY)",
    "import of an installed package": "sys.path.append(PACKAGES); import pytest",
    "import from outside": "sys.path.insert(0, os.path.dirname(CANARY)); import outside_module",
    "run a file outside": "import runpy; runpy.run_path(CANARY + '.py')",
    "code from outside": "exec(compile(open(CANARY + '.py').read(), 'x', 'exec'))",
    "zip import": "import zipimport; zipimport.zipimporter(CANARY + '.zip')",
    "shared library from outside": "ctypes.CDLL(CANARY + '.so')",
    "database outside": "import sqlite3; sqlite3.connect(CANARY + '.db').execute('create table if not exists t (x)')",
    "secret in the environment": "os.environ['SANDBOX_SECRET']",
    "secret in memory": """
ctypes.CDLL(None).getenv.restype = ctypes.c_char_p
assert ctypes.CDLL(None).getenv(b'SANDBOX_SECRET')
""",
    "secret on the stack": """
address = ctypes.c_void_p.in_dll(ctypes.CDLL(None), 'program_invocation_name').value
texts = []
while texts[-1:] != [b'']:  # the arguments lie there, after them the environment as the process got it
    texts.append(ctypes.string_at(address))
    address += len(texts[-1]) + 1
assert any(b'SANDBOX_SECRET' in text for text in texts)
""",
    "inherited handle": "os.write(INHERITED, b'x')",
}

FATAL = {
    "32-bit system call": """
import mmap
assert os.uname().machine == "x86_64"
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes.fromhex("53 b8 14000000 cd80 5b c3"))  # getpid by int 0x80
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
""",
}

BOMBS = {
    "memory bomb": "x = bytearray(1 << 30)",
    "memory bomb in pieces": "x = [bytes(1 << 20) for _ in range(600)]",
    "memory map bomb": "import mmap; x = mmap.mmap(-1, 1 << 30)",
    "output bomb": "for _ in range(100): sys.stdout.write('x' * 9999)",
    "error bomb": "for _ in range(100): sys.stderr.write('x' * 9999)",
    "large file": "open('large', 'wb').write(bytes(8 << 20))",
    "many files": "for i in range(64): open(f'{i}', 'wb').write(bytes(1 << 20))\nimport time; time.sleep(1)",
    "large hole": "os.truncate('program.py', 1 << 40)",
    "many handles": "x = [os.dup(1) for _ in range(200)]",
    "crash": "ctypes.string_at(0)",
    "deep recursion": """
nest = []
for _ in range(10**6):
    nest = [nest]
sys.setrecursionlimit(10**9)
repr(nest)
""",
    "broken byte code": "exec((lambda: 0).__code__.replace(co_code=bytes([100, 255, 83, 0] * 9), co_consts=()))",
}

REPORTS = {
    "exit quietly": "os._exit(0)",
    "exit politely": "sys.exit(0)",
    "exit by an exception of its own": "raise type('E', (SystemExit,), {'code': property(lambda s: 0)})",
    "forged report": "os.write(2, b'0' * 32 + b'ok\\n'); os._exit(0)",
    "forged report to every handle": """
for i in range(64):
    try: os.write(i, b'0' * 32 + b'ok\\n')
    except OSError: pass
os._exit(0)
""",
    "token in a frame": """
frame, found = sys._getframe(), []
while frame:
    found += [v for v in [*frame.f_locals.values(), *frame.f_globals.values()] if type(v) in (str, bytes) and len(v) == 32]
    frame = frame.f_back
os.write(2, found[0] + b'ok\\n')
os._exit(0)
""",
    "report functions replaced": """
import builtins, marshal
for module, name in ((os, 'write'), (os, '_exit'), (marshal, 'loads'), (sys, '__excepthook__'), (builtins, 'type')):
    setattr(module, name, lambda *a: None)
raise SystemError('stop')
""",
    "everything closed": "os.closerange(0, 64); os._exit(0)",
    "hostile exception": "raise type('E', (BaseException,), {'__str__': lambda s: 1 / 0, '__repr__': lambda s: os._exit(0)})",
}

TOGETHER: dict[str, dict[str, str]] = {
    "network": NETWORK,
    "files": FILES,
    "proc": PROC,
    "processes": PROCESSES,
    "signals": SIGNALS,
    "privileges": PRIVILEGES,
    "python": PYTHON,
}
"""Attempts that are refused by an exception, so that one process can make many."""

ALONE: dict[str, str] = {**FATAL, **BOMBS, **REPORTS}
"""Attempts that end their process, or spoil it for the next."""

ATTEMPTS: dict[str, str] = {n: program for group in (*TOGETHER.values(), ALONE) for n, program in group.items()}

# What the probe does not try in the open, to see that the attempt is a real one: it would do harm there (first line), it
# ends by itself there too (second), or it needs rights or a kernel that not every machine has (third and later).
NOT_OUTSIDE = {
    *("kill the parent", "kill everybody", "kill the real parent", "kill the group of the parent", "trace the parent"),
    *("crash", "deep recursion", "broken byte code", "many handles", *REPORTS),
    *(
        "raw socket",
        "packet socket",
        "netlink",
        "vsock",
        "crypto socket",
        "bluetooth",
        "can bus",
        "tcp ipv6",
        "io_uring",
    ),
    *("socket by the x32 table", "32-bit system call", "make a device", "chroot", "mount", "namespace", "system log"),
    *("become root", "become somebody else", "more memory", "more time", "host name", "clock", "bpf", "page faults"),
    *("performance counters", "keys", "kernel module", "extended attribute", "locked memory", "unnamed file outside"),
    *(
        "own memory",
        "memory of the parent",
        "import of an installed package",
        "installed packages",
        "packages inside the library",
    ),
    *("inherited handle", "secret on the stack", "shared library from outside"),
}
