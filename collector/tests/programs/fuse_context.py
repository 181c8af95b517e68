"""A process whose published OpenTelemetry context lies in a file on FUSE, which answers no read.

Prints the pid of that process and the line of /proc/PID/maps of the file, then, once its standard input is closed, the
number of reads that came.
"""

import ctypes
import mmap
import os
import signal
import struct
import sys
import tempfile
import threading

LOOKUP, FORGET, GETATTR, OPEN, READ, INIT, BATCH_FORGET = 1, 2, 3, 14, 15, 26, 42
CLONE_NEWNS, MS_REC_PRIVATE, MNT_DETACH = 0x20000, 0x44000, 2
SIZE = 65536
# Mounted at the root of nothing, this is the name that the kernel gives a memfd.
NAME = "memfd:OTEL_CTX"


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def attributes(node):
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("=6Q10I", node, SIZE, SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


reads = []


def serve(device):
    """Answers what opening and mapping the file takes."""
    while True:
        try:
            request = os.read(device, 1 << 20)
        except OSError:
            return
        _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
        error, body = 0, b""
        if opcode in (FORGET, BATCH_FORGET):
            continue
        if opcode == READ:
            reads.append(unique)
            continue
        if opcode == INIT:
            body = struct.pack("=IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1, 16, 0, 0, *[0] * 7)
        elif opcode == LOOKUP:
            body = struct.pack("=4Q2I", 2, 0, 60, 60, 0, 0) + attributes(2)
        elif opcode == GETATTR:
            body = struct.pack("=QII", 60, 0, 0) + attributes(node)
        elif opcode == OPEN:
            body = struct.pack("=QII", 0, 0, 0)
        else:
            error = -38  # ENOSYS
        os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def publish(libc, directory):
    """Maps the file, and a header that points to it."""
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the server.
    file = os.open(os.path.join(directory, NAME), os.O_RDONLY)
    mapped = libc.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_PRIVATE, file, 0)
    checked(libc.umount2(directory.encode(), MNT_DETACH))
    memory = os.memfd_create("OTEL_CTX")
    os.ftruncate(memory, 4096)
    header = mmap.mmap(memory, 4096)
    header[0:32] = struct.pack("=8sIIQQ", b"OTEL_CTX", 2, 64, 1, mapped)
    with open("/proc/self/maps") as maps:
        line = next(line for line in maps if line.startswith(f"{mapped:x}-"))
    print(os.getpid(), line.strip(), flush=True)
    signal.pause()


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_size_t
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
    directory = tempfile.mkdtemp()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    checked(libc.mount(b"fuse", directory.encode(), b"fuse", 0, options))
    child = os.fork()
    if child == 0:
        os.close(device)
        publish(libc, directory)
    threading.Thread(target=serve, args=(device,), daemon=True).start()
    sys.stdin.read()
    print(len(reads), flush=True)
    os.kill(child, signal.SIGKILL)
    # Ends the connection, and with it every read that waits.
    os._exit(0)


main()
