"""What the daemon answers to requests that no engine sends, and to those who may not ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.docker.daemon import API_SOCKET, PLUGIN_SOCKET, Daemon
from tests.docker.machine import Answer
from tests.e2e.harness import seed

METHODS = ("Create", "Get", "List", "Path", "Mount", "Unmount", "Remove", "Capabilities")
NAMED = ("Create", "Get", "Path", "Mount", "Unmount", "Remove")


def _post(daemon: Daemon, url: str, raw: bytes, method: str = "POST") -> Answer:
    return daemon.machine.ask(method, PLUGIN_SOCKET, url, raw=raw)


def _files(daemon: Daemon) -> set[str]:
    """Everything on the machine's disk and in /run, but for logs and what the engine has."""
    made = ("log", "mounts", "volumes")  # with the first volume that needs them
    places = [
        daemon.machine.disk / "fusevol",
        daemon.machine.path("/run/fusevol"),
        daemon.machine.path("/run/docker/plugins"),
    ]
    return {
        f"{place.name}/{path.relative_to(place)}"
        for place in places
        for path in place.rglob("*")
        if not path.name.startswith("fusevol.db") and not path.name.endswith(".log") and path.name not in made
    }


@pytest.fixture
def daemon(shared: Daemon) -> Iterator[Daemon]:
    """The machine of all tests in here. It is alive and has nothing more than before when the test ends."""
    if not shared.program.running:
        # Of a test that has failed.
        shared.start()
    before, said = _files(shared), len(shared.log)
    yield shared
    assert shared.program.running, shared.log
    assert shared.plugin("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert shared.plugin("VolumeDriver.List", {}) == {"Volumes": [], "Err": ""}
    assert _files(shared) == before
    assert "Traceback" not in shared.log[said:]


# -- the plugin's socket ----------------------------------------------------------------------------


def test_what_dockerd_asks_first(daemon: Daemon) -> None:
    assert daemon.plugin("VolumeDriver.Capabilities", {}) == {"Capabilities": {"Scope": "local"}}
    assert daemon.plugin("VolumeDriver.Get", {"Name": "nobody"})["Err"]
    assert daemon.plugin("VolumeDriver.Path", {"Name": "nobody"})["Err"]
    assert daemon.plugin("VolumeDriver.Mount", {"Name": "nobody", "ID": "1"})["Err"]


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"7", b'"web"', b"{}", b'{"Name": 7}', b'{"Name": null}', b'{"Name": ["web"]}',
        b'{"Name": ""}', b'{"Name": "../web", "ID": "x", "Opts": {}}', b'{"Name": "web/../../x", "ID": "x"}',
        b'{"Name": "/etc/x", "ID": "x"}', b'{"Name": "web\\u0000x", "ID": "x"}', b"\xff\xfe", b"{" * 10000,
        b'{"Name": "..", "ID": "x"}', b'{"Name": ".", "ID": "x"}', b'{"Name": "\\ud800", "ID": "x"}',
    ],
    ids=range(20),
)  # fmt: skip
def test_a_malformed_request_is_an_error_and_does_nothing(daemon: Daemon, method: str, raw: bytes) -> None:
    answer = _post(daemon, f"/VolumeDriver.{method}", raw)
    assert answer.status in (200, 400, 500), answer
    said = answer.json
    if method in ("Remove", "Unmount") and answer.status == 200 and not said["Err"]:
        # What is not there is gone: but only where it was at all said what.
        assert json.loads(raw)["Name"]
        return
    assert said["Err"], answer
    assert "Traceback" not in said["Err"]
    assert "\n" not in said["Err"]


@pytest.mark.parametrize(
    "options",
    [7, "size=1G", [], {"size": 7}, {"size": None}, {"size": ["1G"]}, {"": "x"}, {"size": "\0"}, {"from": "../x@../y"},
     {"pool": "../../etc"}, {"labels": "=="}, {"size": "1" * 400}, {"mount_options": "a,,b"}, {"k" * 100_000: "v"}],
    ids=range(14),
)  # fmt: skip
def test_malformed_options_are_an_error_and_make_nothing(daemon: Daemon, options: Any) -> None:
    said = daemon.plugin("VolumeDriver.Create", {"Name": "web", "Opts": options})
    assert said["Err"]
    assert "\n" not in said["Err"]
    assert len(said["Err"]) < 1000


def test_a_huge_body_is_refused(daemon: Daemon) -> None:
    body = b'{"Name": "' + b"a" * (64 << 20) + b'"}'
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
        answer = _post(daemon, "/VolumeDriver.Create", body)
        assert answer.status in (400, 413, 500)


@pytest.mark.parametrize(
    ("method", "url"),
    [("POST", "/"), ("POST", "/VolumeDriver.Format"), ("GET", "/VolumeDriver.List"), ("POST", "/VolumeDriver.create"),
     ("POST", "/v1/volumes"), ("DELETE", "/VolumeDriver.Remove"), ("POST", "/../../etc/passwd"),
     ("PUT", "/" + "a" * 9000)],
)  # fmt: skip
def test_what_is_not_asked_for_like_that_is_not_found(daemon: Daemon, method: str, url: str) -> None:
    answer = _post(daemon, url, b'{"Name": "web"}', method)
    assert 400 <= answer.status < 500, answer
    assert b"Traceback" not in answer.body


@pytest.mark.parametrize(
    "data",
    [b"hello\r\n\r\n", b"\0" * 100, b"POST / HTTP/9.9\r\n\r\n",
     b"POST /VolumeDriver.Create HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
     b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b"", b"\x16\x03\x01\x02\x00",
     b"POST /VolumeDriver.List HTTP/1.1\r\n" + b"X: y\r\n" * 100_000],
    ids=range(8),
)  # fmt: skip
@pytest.mark.parametrize("path", [PLUGIN_SOCKET, API_SOCKET])
def test_what_is_no_http_ends_its_own_connection_only(daemon: Daemon, path: str, data: bytes) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(30)
        connection.connect(str(daemon.machine.path(path)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)


def test_clients_that_say_nothing_keep_nobody_out(daemon: Daemon) -> None:
    with contextlib.ExitStack() as connections:
        for path in [PLUGIN_SOCKET, API_SOCKET] * 200:
            connection = connections.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            # It waits where too many wait to be let in.
            connection.connect(str(daemon.machine.path(path)))
        # As soon as those before are let in.
        daemon.ready()


def _anything(chance: random.Random, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: chance.choice(
            ["web", "../web", "", ".", "a" * 200, "web@s", "\0", "\n", "é", "%2e%2e/x", "${HOME}", "-rf"]
        ),
        lambda: chance.choice([0, -1, 1 << 70, 1.5, True, None]),
        lambda: "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(20))),
    ]
    if depth < 3:
        kinds += [
            lambda: [_anything(chance, depth + 1) for _ in range(chance.randrange(3))],
            lambda: {str(_anything(chance, 3)): _anything(chance, depth + 1) for _ in range(chance.randrange(4))},
        ]
    return chance.choice(kinds)()


def test_random_requests_break_nothing(daemon: Daemon) -> None:
    chance = random.Random(seed())
    for _ in range(300):
        body = _anything(chance)
        if chance.random() < 0.7:
            body = {"Name": _anything(chance), "ID": _anything(chance), "Opts": _anything(chance)}
        raw = bytearray(json.dumps(body).encode())
        if chance.random() < 0.3:
            for _ in range(3):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
        method = chance.choice(METHODS)
        answer = _post(daemon, f"/VolumeDriver.{method}", bytes(raw))
        assert answer.status in (200, 400, 500), (method, raw, answer)
        assert "\n" not in answer.json.get("Err", "")
        if method == "Create" and not answer.json["Err"]:
            assert daemon.plugin("VolumeDriver.Remove", {"Name": json.loads(bytes(raw))["Name"]}) == {"Err": ""}


# -- REST -------------------------------------------------------------------------------------------


def test_rest_does_all_that_can_be_done_with_a_volume(daemon: Daemon) -> None:
    rest = daemon.rest
    made = rest("POST", "/v1/volumes", {"name": "web", "size": "1G"})
    assert (made.status, made.json["name"]) == (201, "web")
    assert rest("POST", "/v1/volumes", {"name": "web", "size": "2G"}).status == 409
    assert [volume["name"] for volume in rest("GET", "/v1/volumes").json["volumes"]] == ["web"]
    assert rest("GET", "/v1/volumes/web").json["size"] == 1 << 30
    assert rest("PATCH", "/v1/volumes/web", {"size": "2G"}).status == 200
    assert rest("GET", "/v1/volumes/web").json["size"] == 2 << 30
    daemon.engine.run("web:/data", sh="echo before > /data/a")
    daemon.all_unmounted()
    assert rest("POST", "/v1/volumes/web/snapshots", {"name": "one"}).status == 201
    daemon.engine.run("web:/data", sh="echo after > /data/a")
    daemon.all_unmounted()
    assert [item["name"] for item in rest("GET", "/v1/volumes/web/snapshots").json["snapshots"]] == ["one"]
    assert rest("POST", "/v1/volumes/web/restore", {"snapshot": "one"}).status == 200
    assert daemon.engine.run("web:/data", sh="cat /data/a") == "before"
    daemon.all_unmounted()
    for item in rest("GET", "/v1/volumes/web/snapshots").json["snapshots"]:
        assert rest("DELETE", f"/v1/volumes/web/snapshots/{item['name']}").status in (200, 204)
    assert rest("GET", "/v1/volumes/web/stats").status in (200, 409)
    assert rest("GET", "/v1/status").status == 200
    assert rest("DELETE", "/v1/volumes/web").status in (200, 204)
    assert rest("GET", "/v1/volumes/web").status == 404
    daemon.engine.call("volume", "rm", "-f", "web")


def test_rest_works_on_the_volume_of_a_running_container(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo before > /data/a")
    assert daemon.rest("POST", "/v1/volumes/web/snapshots", {"name": "one"}).status == 201
    daemon.engine.exec("busy", "echo after > /data/a")
    assert daemon.rest("POST", "/v1/volumes/web/restore", {"snapshot": "one"}).status == 200
    assert daemon.engine.exec("busy", "cat /data/a") == "before"
    assert daemon.rest("DELETE", "/v1/volumes/web").status == 409
    assert daemon.rest("GET", "/v1/volumes/web/stats").json["writes"] > 0
    daemon.engine.docker("rm", "-f", "busy")
    daemon.all_unmounted()
    daemon.fusevol("rm", "--snapshots", "web")


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("GET", "/v1/volumes/nobody", None, 404), ("DELETE", "/v1/volumes/nobody", None, 404),
        ("GET", "/v1/volumes/..%2f..%2fetc", None, 404), ("GET", "/v1/nothing", None, 404),
        ("POST", "/v1/volumes", {"name": "../web"}, 400), ("POST", "/v1/volumes", {}, 400),
        ("POST", "/v1/volumes", {"name": "web", "colour": "red"}, 400), ("POST", "/v1/volumes", [], 400),
        ("POST", "/v1/volumes", {"name": 7}, 400), ("POST", "/v1/volumes", {"name": "web", "size": "much"}, 400),
        ("PUT", "/v1/volumes", {}, 405), ("POST", "/v1/volumes/nobody/restore", {"snapshot": "x"}, 404),
        ("PATCH", "/v1/volumes/nobody", {"size": 1}, 404), ("POST", "/v1/volumes/nobody/snapshots", {"name": "x"}, 404),
    ],
)  # fmt: skip
def test_rest_says_what_is_wrong_with_a_request(daemon: Daemon, method: str, url: str, body: Any, status: int) -> None:
    answer = daemon.rest(method, url, body)
    assert answer.status == status, answer
    assert answer.json["error"]
    assert "Traceback" not in answer.body.decode()


def test_metrics_are_there_for_prometheus(daemon: Daemon) -> None:
    daemon.create("web", "size=1G")
    try:
        page = daemon.rest("GET", "/metrics").body.decode()
        lines = [line for line in page.splitlines() if not line.startswith("#")]
        assert any('"web"' in line for line in lines), page
        for line in lines:
            float(line.rpartition(" ")[2])
    finally:
        daemon.engine.docker("volume", "rm", "web")


def test_the_sockets_are_for_root_only(daemon: Daemon) -> None:
    for path in PLUGIN_SOCKET, API_SOCKET:
        assert daemon.machine.path(path).stat().st_mode & 0o077 == 0


# -- TCP --------------------------------------------------------------------------------------------

_TOKEN = "s3cret-t0ken-of-this-test"
#: Asks the daemon on its port, on the machine itself: a request is [method, url, headers, body].
_CLIENT = """
import http.client, json, sys
for method, url, headers, body in json.load(sys.stdin):
    connection = http.client.HTTPConnection("127.0.0.1", 7777, timeout=30)
    connection.request(method, url, json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    print(json.dumps([response.status, response.read().decode()]))
    connection.close()
"""


def _by_tcp(daemon: Daemon, *requests: tuple[str, str, dict[str, str], Any]) -> list[tuple[int, str]]:
    said = daemon.machine.run(sys.executable, "-c", _CLIENT, text=json.dumps(requests))
    return [(status, body) for status, body in map(json.loads, said.splitlines())]


@pytest.fixture
def tcp(daemon: Daemon) -> Iterator[Daemon]:
    """The daemon, on a port as well."""
    secret = daemon.machine.disk / "token"
    secret.write_text(f"{_TOKEN}\n")
    secret.chmod(0o600)
    daemon.stop()
    daemon.start("--listen", "127.0.0.1:7777", "--token-file", str(secret))
    yield daemon
    daemon.stop()
    daemon.start()


def test_nobody_comes_in_by_tcp_without_the_token(tcp: Daemon) -> None:
    wrong = ["Bearer", "Bearer ", "Bearer wrong", f"Basic {_TOKEN}", "Bearer s3cret", f"Bearer {_TOKEN}X", _TOKEN]
    headers = [{}, {"X-Token": _TOKEN}, *({"Authorization": value} for value in wrong)]
    urls = [
        "/v1/volumes",
        "/v1/status",
        "/metrics",
        "/v1/nothing",
        "/v1/volumes/web",
        "//v1/volumes",
        "/v1/../v1/status",
    ]
    asked = [
        (method, url, header, {"name": "web"} if method == "POST" else None)
        for method in ("GET", "POST", "DELETE")
        for url in urls
        for header in headers
    ]
    for request, (status, body) in zip(asked, _by_tcp(tcp, *asked), strict=True):
        assert status == 401, (request, body)
        assert "s3cret" not in body


def test_who_has_the_token_may_do_all_by_tcp(tcp: Daemon) -> None:
    token = {"Authorization": f"Bearer {_TOKEN}"}
    made, listed, page, gone = _by_tcp(
        tcp, ("POST", "/v1/volumes", token, {"name": "web"}), ("GET", "/v1/volumes", token, None),
        ("GET", "/metrics", token, None), ("DELETE", "/v1/volumes/web", token, None),
    )  # fmt: skip
    assert made[0] == 201
    assert "web" in listed[1]
    assert '"web"' in page[1]
    assert gone[0] in (200, 204)


def test_the_plugin_is_not_to_be_had_by_tcp(tcp: Daemon) -> None:
    token = {"Authorization": f"Bearer {_TOKEN}"}
    ((status, _),) = _by_tcp(tcp, ("POST", "/VolumeDriver.List", token, {}))
    assert status == 404


def test_the_daemon_does_not_listen_on_tcp_without_a_token_that_is_a_secret(daemon: Daemon) -> None:
    empty, public = daemon.machine.disk / "empty", daemon.machine.disk / "public"
    empty.write_text("\n")
    empty.chmod(0o600)
    public.write_text(f"{_TOKEN}\n")
    public.chmod(0o644)
    daemon.stop()
    for words, reason in (
        ((), "--token-file"),
        (("--token-file", str(empty)), "token"),
        (("--token-file", str(public)), "open to others"),
        (("--token-file", "/nowhere"), "/nowhere"),
    ):
        said = daemon.call("serve", "--listen", "127.0.0.1:7778", *words)
        assert said.status in (1, 2), said
        assert reason in said.err.rpartition("fusevol: ")[2], said
    daemon.start()
