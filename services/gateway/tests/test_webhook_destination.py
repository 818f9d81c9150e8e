"""Where webhooks may go, and where a connection is made then."""

import asyncio
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import httpcore
import hypothesis.strategies as st
import pytest
from hypothesis import given
from webhook_parts import LOOPBACK

from millrace_gateway.webhooks.destination import CheckedBackend, Destinations, Refused
from millrace_gateway.webhooks.post import Poster

PUBLIC = Destinations((), allow_http=False)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "1.1.1.1",
        "2606:4700:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_public_addresses(address: str) -> None:
    assert PUBLIC.is_allowed(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:101:101::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_all_others(address: str) -> None:
    assert not PUBLIC.is_allowed(ip_address(address))


@given(st.ip_addresses(v=4, network="10.0.0.0/8") | st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_no_disguise_of_a_private_address(address: Any) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::", "::"):
        disguised = ip_address(int(ip_address(prefix)) | int(address))
        assert not PUBLIC.is_allowed(disguised)
    assert not PUBLIC.is_allowed(ip_address((0x2002 << 112) | (int(address) << 80)))


def test_networks_that_are_allowed() -> None:
    here = Destinations((ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")), allow_http=False)
    allowed = ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00:1::9", "1.1.1.1")
    assert all(here.is_allowed(ip_address(one)) for one in allowed)
    assert not any(here.is_allowed(ip_address(one)) for one in ("10.2.0.1", "fd00:2::1", "::1"))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "",
        "https://",
        "https:///x",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://:@example.com/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com:x/",
        "https://example.com/#part",
        "https://exam ple.com/",
        "https://example.com\r\nx: y/",
        "https://example.com\\@evil.example/",
        "https://exämple.com/",
        "https://[::1/",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(Refused):
        PUBLIC.parse(url)


@pytest.mark.parametrize(
    "url", ["https://example.com", "https://example.com:8443/a?b=c", "https://[2606:4700::1]/"]
)
def test_urls(url: str) -> None:
    PUBLIC.parse(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "0x7f000001",
        "2130706433",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:7f00:1]",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    """However they are spelled: the resolver's own answer is judged."""
    with pytest.raises(Refused):
        asyncio.run(PUBLIC.check(f"https://{host}/"))


def resolving(*answers: Sequence[str]) -> Any:
    """A resolver that gives one answer after the other, the last for ever."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


class Dialled(httpcore.AsyncNetworkBackend):
    """Notes whom it is to connect to, and answers for ``answering``."""

    def __init__(self, *answering: str) -> None:
        self.dialled: list[str] = []
        self._answering = answering
        self._mock = httpcore.AsyncMockBackend(
            [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok"]
        )

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        if host not in self._answering:
            raise httpcore.ConnectError("refused")
        return await self._mock.connect_tcp(host, port)


def post(destinations: Destinations, backend: Dialled, url: str = "https://a.example/") -> Any:
    poster = Poster(destinations, 5.0, backend=backend)
    return asyncio.run(poster.post(url, {}, b"{}"))


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["1.1.1.1", "10.0.0.1"], []])
def test_one_forbidden_address_is_enough(addresses: Sequence[str]) -> None:
    backend = Dialled("1.1.1.1", "10.0.0.1")
    answer = post(Destinations((), False, resolving(addresses)), backend)
    assert answer.status_code is None and answer.error and not backend.dialled
    assert "10.0.0.1" not in answer.error, "the tenant learns nothing of the network"


def test_a_name_that_changes_its_address() -> None:
    """DNS rebinding: public when the endpoint is made, and forbidden when it is posted to."""
    destinations = Destinations((), False, resolving(["1.1.1.1"], ["127.0.0.1"], ["1.1.1.1"]))
    asyncio.run(destinations.check("https://a.example/"))
    backend = Dialled("127.0.0.1", "1.1.1.1")
    assert post(destinations, backend).error and not backend.dialled
    assert post(destinations, backend).status_code == 200
    assert backend.dialled == ["1.1.1.1"], "the address that was judged, not the name"


def test_the_next_address_when_one_does_not_answer() -> None:
    backend = Dialled("1.0.0.1")
    answer = post(Destinations((), False, resolving(["1.1.1.1", "1.0.0.1"])), backend)
    assert answer.status_code == 200 and backend.dialled == ["1.1.1.1", "1.0.0.1"]


def test_a_rule_that_became_stricter_holds_for_old_urls() -> None:
    backend = Dialled("127.0.0.1")
    answer = post(Destinations(LOOPBACK, False), backend, "http://127.0.0.1/")
    assert answer.error == "it must begin with https://" and not backend.dialled


def test_a_backend_without_addresses_connects_to_nothing() -> None:
    backend = CheckedBackend(Destinations((), False, resolving([])), Dialled())
    with pytest.raises(Refused):
        asyncio.run(backend.connect_tcp("a.example", 443))
