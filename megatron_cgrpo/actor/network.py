"""Which network interface the ranks of several machines reach each other by."""

from __future__ import annotations

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915
_NAME_BYTES, _ADDRESS = 16, slice(20, 24)
"""Of the kernel's ``struct ifreq``: the length of a name, and where an IPv4 address lies behind it."""


def interface_of(address: str) -> str | None:
    """The interface with this IPv4 address; None where this machine has none (IPv6, say)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[: _NAME_BYTES - 1])
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(reply[_ADDRESS]) == address:
                return name
    return None
