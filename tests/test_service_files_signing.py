"""Links that end, and messages that show who sent them."""

import base64
import concurrent.futures
import hmac
import json
import re
import stat
import textwrap
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import OptionError, OutputError
from latentsync.service import signing
from latentsync.service.signing import BadSignature, Signer, check_webhook, webhook_signature

OLD, NEW = b"o" * 32, b"n" * 32
SIGNER = Signer((OLD,))
NOW = 1_800_000_000
PATH = "/v1/files/tasks/8c1f/output.mp4"
BODY = b'{"id": "8c1f", "status": "completed"}'


def taken_apart(link):
    parts = urllib.parse.urlsplit(link)
    query = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=True))
    return urllib.parse.unquote(parts.path), query


def made(path=PATH, **more):
    return taken_apart(SIGNER.sign(path, seconds=60, now=NOW, **more))


def test_a_link_holds_until_its_end():
    path, query = made()
    assert path == PATH
    assert query["expires"] == str(NOW + 60)
    SIGNER.check(path, **query, now=NOW)
    SIGNER.check(path, **query, now=NOW + 59)
    with pytest.raises(BadSignature, match="ended at 2027-01-15 08:01:00 UTC"):
        SIGNER.check(path, **query, now=NOW + 60)


def test_a_link_is_for_one_thing_only():
    path, query = made(method="PUT")
    SIGNER.check(path, method="put", **query, now=NOW)
    for changed in (
        {"method": "GET"},
        {"method": "DELETE"},
        {"expires": str(NOW + 6000)},
        {"expires": f"0{NOW + 60}"},
        {"expires": ""},
        {"expires": "²"},
        {"signature": ""},
        {"signature": query["signature"][:-1]},
        {"signature": query["signature"].upper()},
        {"signature": "é\ud800"},
        {"path": f"{PATH}/"},
    ):
        given = {"path": path, "method": "PUT"} | query | changed
        with pytest.raises(BadSignature, match="isn't signed"):
            SIGNER.check(given.pop("path"), **given, now=NOW)


def test_fields_do_not_run_into_each_other():
    for method, path in (("GET", '/a", "b'), ("GET/", "a")):
        _, query = made("/a", method="GET")
        with pytest.raises(BadSignature):
            SIGNER.check(path, method=method, **query, now=NOW)


def test_links_of_earlier_versions_hold():
    """They were signed for an owner as well, which was always empty."""
    signed = json.dumps(["link", "GET", PATH, "", str(NOW + 60)]).encode()
    signature = hmac.digest(OLD, signed, "sha256").hex()
    SIGNER.check(PATH, expires=str(NOW + 60), signature=signature, now=NOW)


def test_a_path_of_odd_letters_stays_a_path():
    path, query = made("/v1/ä b?c#d%41")
    assert path == "/v1/ä b?c#d%41"
    assert set(query) == {"expires", "signature"}


def test_players_may_ask_for_the_head_first():
    path, query = made()
    SIGNER.check(path, method="HEAD", **query, now=NOW)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8")), st.integers(1, 604_800))
def test_any_path(path, seconds):
    path = f"/v1/{path}"
    back, query = taken_apart(SIGNER.sign(path, seconds=seconds, now=NOW))
    assert back == path
    SIGNER.check(back, **query, now=NOW + seconds - 1)
    with pytest.raises(BadSignature):
        SIGNER.check(back + "x", **query, now=NOW)


@pytest.mark.parametrize(
    ("path", "seconds"), [("a", 60), ("//a", 60), ("", 60), ("/a", 0), ("/a", -5), ("/a", 604_801)]
)
def test_links_that_are_not_made(path, seconds):
    with pytest.raises(OptionError, match="no link"):
        SIGNER.sign(path, seconds=seconds)


def test_links_last_from_now_on():
    path, query = taken_apart(SIGNER.sign(PATH, seconds=1000))
    SIGNER.check(path, **query)
    assert abs(int(query["expires"]) - 1000 - time.time()) < 100


def test_a_secret_can_be_changed():
    path, query = made()
    Signer((NEW, OLD)).check(path, **query, now=NOW)
    with pytest.raises(BadSignature):
        Signer((NEW,)).check(path, **query, now=NOW)
    path, query = taken_apart(Signer((NEW, OLD)).sign(PATH, seconds=60, now=NOW))
    Signer((NEW,)).check(path, **query, now=NOW)


def test_secrets_are_not_shown():
    assert "ooo" not in repr(SIGNER)


# where secrets come from


def test_a_folders_secret_is_made_once(tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTSYNC_SECRET", raising=False)
    folder = tmp_path / "state"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: Signer.from_folder(folder).secrets, range(16)))
    assert len(made) == 1
    ((secret,),) = made
    assert re.fullmatch(rb"[0-9a-f]{64}", secret)
    assert [file.name for file in folder.iterdir()] == ["secret"]
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert Signer.from_folder(tmp_path / "other").secrets != (secret,)


def test_who_comes_second_takes_what_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTSYNC_SECRET", raising=False)
    make = signing.random.token_hex

    def meanwhile(size):
        (tmp_path / "secret").write_text("f" * 64)
        return make(size)

    monkeypatch.setattr(signing.random, "token_hex", meanwhile)
    assert Signer.from_folder(tmp_path).secrets == (b"f" * 64,)
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_secrets_of_the_environment_come_first(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_SECRET", f"{NEW.decode()}, {OLD.decode()}")
    assert Signer.from_folder(tmp_path).secrets == (NEW, OLD)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["short", f"{'n' * 32},", ","])
def test_short_secrets_are_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("LATENTSYNC_SECRET", value)
    with pytest.raises(OptionError, match="openssl rand -hex 32"):
        Signer.from_folder(tmp_path)


def test_no_place_for_a_secret(tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTSYNC_SECRET", raising=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="LATENTSYNC_SECRET"):
        Signer.from_folder(tmp_path / "file")


# messages


def sent(signer=SIGNER, **more):
    return signer.webhook_headers("ann", message_id="m1", body=BODY, now=NOW, **more)


def test_a_message_is_genuine_and_fresh():
    secret, headers = SIGNER.webhook_secret("ann"), sent()
    assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    for now in (NOW - 300, NOW, NOW + 300):
        check_webhook(secret, headers, BODY, now=now)
    for now in (NOW - 301, NOW + 301, None):
        with pytest.raises(BadSignature, match="clock"):
            check_webhook(secret, headers, BODY, now=now)


def test_a_changed_message_is_not_genuine():
    secret, headers = SIGNER.webhook_secret("ann"), sent()
    for changed in (
        {"webhook-id": "m2"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,é v2,x"},
    ):
        with pytest.raises(BadSignature):
            check_webhook(secret, headers | changed, BODY, now=NOW)
    for given_secret, body in ((SIGNER.webhook_secret("bob"), BODY), (secret, BODY + b" ")):
        with pytest.raises(BadSignature, match="secret"):
            check_webhook(given_secret, headers, body, now=NOW)
    for stamp in ("", "x", "-1", "²", "1e9"):
        with pytest.raises(BadSignature):
            check_webhook(secret, headers | {"webhook-timestamp": stamp}, BODY, now=NOW)


def test_messages_outlive_a_change_of_secret():
    headers = sent(Signer((NEW, OLD)))
    for secret in (OLD, NEW):
        check_webhook(Signer((secret,)).webhook_secret("ann"), headers, BODY, now=NOW)


def test_the_example_of_the_docs_works():
    text = signing.__doc__
    example = textwrap.dedent(text[text.index("    stamp =") : text.index("A receiver that also")])
    for body, genuine in ((BODY, True), (BODY + b"x", False)):
        names = {"headers": sent(), "body": body, "secret": SIGNER.webhook_secret("ann")}
        names |= {"base64": base64, "hmac": hmac, "time": time}
        exec(example, names)  # noqa: S102  # the lines that receivers copy
        assert names["genuine"] is genuine
        assert names["fresh"] is False  # NOW isn't


def test_the_published_example():
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    signature = webhook_signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
