"""A connection in io_uring's own table of files, by the system calls alone."""

import ctypes
import struct

from hosts import Skip, wait_unread

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
SYS_SETUP, SYS_REGISTER = 425, 427
REGISTER_FILES = 2  # IORING_REGISTER_FILES

_libc = ctypes.CDLL(None, use_errno=True)


def hold_alone(accepted):
    """Once data wait, the connection's only reference is in the table of files of an io_uring."""
    wait_unread(accepted, 5)
    parameters = ctypes.create_string_buffer(120)
    ring = _libc.syscall(SYS_SETUP, 8, parameters)
    if ring < 0:
        raise Skip(f"this kernel has no io_uring: error {ctypes.get_errno()}")
    files = struct.pack("i", accepted.fileno())
    if _libc.syscall(SYS_REGISTER, ring, REGISTER_FILES, files, 1):
        raise OSError(ctypes.get_errno(), "io_uring_register")
    accepted.close()
