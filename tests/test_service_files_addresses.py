"""Which URLs are asked at all, and which addresses: by examples, and whatever else there is."""

import contextlib
import ipaddress
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.service import guarded_http
from latentsync.service.guarded_http import FetchRefused, check_url, is_public, post, shown_url

few = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize(
    "url",
    [
        *("", "clip.mp4", "/etc/passwd", "file:///etc/passwd", "ftp://a.example/", "gopher://a/"),
        *(
            "http://",
            "http:///x",
            "http://.",
            "http://.a.example/",
            "http://a..example/",
            "https://a" + 63 * "b",
            "http://a:b/",
            "http://a:99999/",
            "http://a b/",
        ),
        *(
            "http://user@a.example/",
            "http://user:secret@a.example/",
            r"http://a.example\@127.0.0.1",
        ),
        *("http://127%2e0.0.1/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/"),
        *("http://[::1", "http://[v1.x]/", "http://a\nb/", "http://a/\x00", "http://a/\u202e"),
        *("http://a" + "a" * 300, "http://a/" + "a" * 9000, "http://ex\u200bample.\u2028com/"),
    ],
)
def test_what_is_refused_without_a_network(url):
    with pytest.raises(FetchRefused) as refused:
        check_url(url)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://a.example", "HTTPS://A.example:8443/x?y=z", "http://my_bucket.a.example/x"),
        *("http://[2606:4700::1111]/", "http://münchen.example/ü", "http://a.example./x"),
    ],
)
def test_what_is_not_refused(url):
    check_url(url)


def test_messages_show_no_secrets():
    assert shown_url("https://u:p@a.example/x?token=s#t") == "'https://a.example/x'"
    assert len(shown_url("https://a.example/" + "x" * 900)) == 122


# what an address is

PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        *(
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/3",
        ),
        *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "168.63.129.16/32"),
    )
]
PRIVATE_6 = [
    ipaddress.ip_network(text)
    for text in (
        *("::/127", "fc00::/7", "fe80::/9", "ff00::/8", "2001::/32", "2001:db8::/32", "2002::/16"),
        *("64:ff9b:1::/48", "100::/64", "fd00:ec2::254/128", "::ffff:0:0/96", "::/96"),
    )
]
V4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)


def inside(networks):
    return st.sampled_from(networks).flatmap(
        lambda n: st.integers(0, n.num_addresses - 1).map(lambda i: n[i])
    )


@st.composite
def written(draw, addresses):
    """An IPv4 address in any of the ways that C's inet_aton reads."""
    number = int(draw(addresses))
    parts = draw(st.integers(1, 4))
    head = [(number >> (24 - 8 * i)) & 255 for i in range(parts - 1)]
    tail = number & ((1 << (8 * (5 - parts))) - 1)
    return ".".join(
        draw(st.sampled_from(["{}", "0{:o}", "0x{:x}"])).format(p) for p in [*head, tail]
    )


def no_socket(*_args):
    raise AssertionError("connected")


def assert_refused(host):
    with mock.patch.object(guarded_http.socket, "socket", no_socket):
        with pytest.raises(FetchRefused, match="no public address"):
            post(f"http://{host}/", b"")
        anything = mock.patch.object(guarded_http, "is_public", return_value=True)
        with anything, pytest.raises(AssertionError, match="connected"):  # an address it was
            post(f"http://{host}/", b"")


@few
@given(written(inside(PRIVATE)), st.sampled_from(["", "."]))
def test_no_way_of_writing_a_private_address_helps(host, dot):
    assert_refused(host + dot)


@few
@given(inside(PRIVATE))
def test_nor_do_digits_of_other_scripts(address):
    assert_refused("".join(chr(0xFF10 + int(c)) if c.isdigit() else "。" for c in str(address)))


@few
@given(inside(PRIVATE_6))
def test_private_addresses_of_ipv6(address):
    assert not is_public(str(address))


@pytest.mark.parametrize("network", [*PRIVATE, *PRIVATE_6], ids=str)
def test_private_networks_from_end_to_end(network):
    assert not is_public(str(network[0]))
    assert not is_public(str(network[-1]))


@few
@given(inside(PRIVATE))
def test_private_addresses_inside_ipv6(address):
    number = int(address)
    for within in (
        (0xFFFF << 32) | number,  # mapped
        number,  # compatible
        (0x2002 << 112) | (number << 80) | 1,  # 6to4
        (0x20010000 << 96) | (number ^ 0xFFFFFFFF),  # Teredo
        (0x64FF9B << 96) | number,  # NAT64
    ):
        assert not is_public(str(ipaddress.IPv6Address(within)))


@few
@given(V4 | st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_nothing_is_public_that_python_knows_to_be_special(address):
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved


@few
@given(V4.filter(lambda a: a.is_global and not a.is_multicast and int(a) >> 8 != 0xC05863))
def test_what_is_public(address):
    assert is_public(str(address)) == (str(address) != "168.63.129.16")
    assert is_public(f"64:ff9b::{address}") == is_public(str(address))
    assert is_public("2606:4700:4700::1111")


@few
@given(st.text() | st.from_regex(r"https?://[^ ]{0,20}(:[0-9]{0,6})?(/.{0,9})?", fullmatch=True))
def test_any_text_is_a_url_or_refused(text):
    with contextlib.suppress(FetchRefused):
        check_url(text)
    assert len(shown_url(text).splitlines()) == 1
