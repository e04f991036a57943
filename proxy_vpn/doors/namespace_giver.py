"""The process that `pvpn exec` leaves in a command's network: it makes TCP sockets there and hands them over.

A socket belongs for ever to the network it was made in, and the running process has no right to enter that one. This
process can do nothing else any more, and ends when the running process lets go of it.

    SocketSource (running process) --number, family--> give (inside)
                                   <--number, 0 and a socket, or number, errno--
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import Final

from proxy_vpn.doors import capabilities

# This process has opened a few files; where the limit is a billion, asking for each takes long.
_MOST_FILES: Final = 1 << 16
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def leave_giver() -> socket.socket:
    """Leave a process in this one's network that makes sockets there; the other end of it. Raises OSError.

    It is nobody's child here: what takes this process's place would not expect one.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()  # a terminal's signals are for the command
                if os.fork() == 0:
                    _become_giver(far.fileno())
            finally:
                os._exit(0)
        with suppress(ChildProcessError):  # whoever started us ignores children, and that is inherited
            os.waitpid(child, 0)
    return near


def give(sock: socket.socket) -> None:
    """Answer until the other end is closed; blocking."""
    while len(request := sock.recv(2)) == 2 and request[1] in _FAMILIES:
        number = request[:1]
        try:
            made = socket.socket(request[1], socket.SOCK_STREAM)
        except OSError as error:
            sock.send(number + bytes((error.errno or errno.EIO,)))
            continue
        with made:
            socket.send_fds(sock, [number + b"\0"], [made.fileno()])


def _become_giver(descriptor: int) -> None:
    """Keep nothing of what this process was but its network and one descriptor."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    own = os.dup2(descriptor, 3 if descriptor != 3 else 4)
    os.closerange(3, own)
    os.closerange(own + 1, min(os.sysconf("SC_OPEN_MAX"), _MOST_FILES))
    capabilities.keep_only(0)
    give(socket.socket(fileno=own))
