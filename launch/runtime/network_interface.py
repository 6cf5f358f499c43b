"""Over which network gloo's ranks of several hosts talk, where nobody has said it."""

import ipaddress
import os
import socket

import psutil


def name_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME to the interface that leads to the first rank's host, unless it is set.

    Left alone, gloo listens at the address to which this host's own name resolves: on Debian 127.0.1.1, where no other
    host finds it. NCCL looks for an interface itself.
    """
    first = os.environ.get("MASTER_ADDR")
    if first and "GLOO_SOCKET_IFNAME" not in os.environ and (found := interface_to(first)):
        os.environ["GLOO_SOCKET_IFNAME"] = found


def interface_to(host: str) -> str | None:
    """The interface whose address this machine has towards a host; None over loopback, or where it can't be told."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram's: routed, nothing sent
            here = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(here).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == here for each in addresses):
            return name
    return None
