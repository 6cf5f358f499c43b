"""Chooses the network interface that gloo uses between hosts, unless the user has chosen one."""

import ipaddress
import os
import socket

import psutil


def name_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME to the interface that leads to the first rank's host, unless it is set.

    By default gloo listens at the address to which this host's own name resolves. On Debian that is 127.0.1.1, which
    no other host can reach. NCCL chooses an interface itself.
    """
    first = os.environ.get("MASTER_ADDR")
    if first and "GLOO_SOCKET_IFNAME" not in os.environ and (found := interface_to(first)):
        os.environ["GLOO_SOCKET_IFNAME"] = found


def interface_to(host: str) -> str | None:
    """Returns the network interface that leads to a host; None if it is loopback or unknown."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # a datagram socket: finds the route, sends nothing
            here = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(here).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == here for each in addresses):
            return name
    return None
