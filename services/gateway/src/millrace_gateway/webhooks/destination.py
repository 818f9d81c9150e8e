"""Where webhooks may go: never into the network that the gateway itself stands in.

A URL is its tenant's word, and so is what its name resolves to, at each look-up anew. So the rule
is held where a connection is made: the name is resolved once, every address is judged, and the
connection goes to one of those addresses, while TLS and the Host header go by the name.
See OWASP, "Server-Side Request Forgery Prevention Cheat Sheet".

    Refused   this URL, or what it resolves to, may not be reached
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

import httpcore

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

LONGEST_URL = 2048
_PORTS = {"http": 80, "https": 443}
# Beyond what ``is_global`` tells (IANA's special-purpose registries): ways into other networks.
_REFUSED: Sequence[Network] = tuple(
    ip_network(text)
    for text in (
        "100.64.0.0/10",  # shared address space, where some clouds keep their metadata
        "168.63.129.16/32",  # Azure's host, metadata among it, at a public address
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # NAT64 of local use
        "100::/64",
        "2001::/23",  # Teredo and ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",  # site-local, of old
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """This URL, or what its name resolves to, may not be reached."""


class Destinations:
    """Tells where webhooks may go.

    Args:
        allowed: networks that are reached though they are not public.
        allow_http: whether a URL may do without TLS.
        resolve: the addresses of a host; raises OSError when it has none.
    """

    def __init__(
        self, allowed: Sequence[Network], allow_http: bool, resolve: Resolve | None = None
    ) -> None:
        self._allowed = allowed
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._resolve = resolve or _look_up

    async def check(self, url: str) -> None:
        """Judge a URL and what its name resolves to now.

        Raises:
            Refused: saying why.
        """
        parts = self.parse(url)
        await self.addresses(str(parts.hostname), parts.port or _PORTS[parts.scheme])

    def parse(self, url: str) -> SplitResult:
        """
        Raises:
            Refused: it is no URL that webhooks are posted to, whatever its name resolves to.
        """
        if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
            raise Refused(f"a URL has at most {LONGEST_URL} printable ASCII characters, no spaces")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Refused(f"it is no URL: {error}") from None
        if parts.scheme not in self._schemes:
            raise Refused(f"it must begin with {' or '.join(f'{one}://' for one in self._schemes)}")
        if parts.username is not None or parts.password is not None:
            raise Refused("it must hold no user name or password")
        if not parts.hostname or port == 0 or "\\" in url:
            raise Refused("it names no host and port that can be reached")
        if parts.fragment:
            raise Refused("a fragment ('#…') is not sent to anybody")
        return parts

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """The addresses to connect to, all of them judged.

        Raises:
            Refused: there are none, or one may not be reached. Which one is not told: the
                tenant could learn what the gateway's network looks like.
        """
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise Refused(f"the host {host!r} cannot be resolved") from None
        if not found:
            raise Refused(f"the host {host!r} has no address")
        if not all(self.is_allowed(ip_address(address)) for address in found):
            raise Refused(f"the host {host!r} is at an address that webhooks may not reach")
        return found

    def is_allowed(self, address: Address) -> bool:
        """Whether an address is public, or in a network that was allowed."""
        forms = (address, *_embedded(address))
        if any(form in network for form in forms for network in self._allowed):
            return True
        return all(_is_public(form) for form in forms)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were judged, and to no others."""

    def __init__(
        self, destinations: Destinations, inner: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self._destinations = destinations
        self._inner = inner or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """
        Raises:
            Refused: the host may not be reached.
            httpcore.ConnectError: none of its addresses answers.
        """
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._destinations.addresses(host, port):
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _embedded(address: Address) -> Sequence[Address]:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return True  # what it stands for is judged beside it
    is_special = (
        address.is_multicast
        or (address.is_reserved and address not in _NAT64)
        or address.is_unspecified
        or any(address in network for network in _REFUSED)
    )
    return address.is_global and not is_special


async def _look_up(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
