"""Finds this host's own address and interface towards another host. Gloo and torchrun would ask for its name's.

On Debian the own name resolves to 127.0.1.1, and in a container it may not resolve at all.
"""

import ipaddress
import os
import socket

import psutil


def name_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME to the interface that leads to the first rank's host, unless it is set.

    By default gloo listens at the address to which this host's own name resolves. NCCL chooses an interface itself.
    """
    first = os.environ.get("MASTER_ADDR")
    if first and "GLOO_SOCKET_IFNAME" not in os.environ and (found := interface_to(first)):
        os.environ["GLOO_SOCKET_IFNAME"] = found


def address_to(host: str) -> str | None:
    """Returns this host's own address on the way to a host; None if it is loopback or unknown.

    It is the address of `host` itself if that is one of this host's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # a datagram socket: finds the route, sends nothing
            here = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if ipaddress.ip_address(here).is_loopback else here


def interface_to(host: str) -> str | None:
    """Returns the network interface that leads to a host; None if it is loopback or unknown."""
    here = address_to(host)
    for name, addresses in psutil.net_if_addrs().items() if here else ():
        if any(each.address.split("%")[0] == here for each in addresses):
            return name
    return None


def addresses_of(host: str) -> set[str]:
    """Returns the addresses that a name resolves to, or none."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
