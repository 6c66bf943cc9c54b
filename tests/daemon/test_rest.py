"""The REST API: a volume's whole life over HTTP, and what is refused."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.daemon.running import Daemon


def test_a_volume_lives_its_whole_life_over_http(daemon: Daemon, tmp_path: Path) -> None:
    made = daemon.api("POST", "/v1/volumes", {"name": "web", "size": "1G", "labels": {"tier": "gold"}})
    assert (made.status, made.body["size"], made.body["labels"]) == (201, 1 << 30, {"tier": "gold"})
    assert daemon.api("GET", "/v1/volumes").body == {"volumes": [made.body]}
    assert daemon.api("GET", f"/v1/volumes/{made.body['id']}").body == made.body

    changed = daemon.api(
        "PATCH", "/v1/volumes/web", {"name": "www", "size": "2G", "labels": {"tier": ""}, "group": "x"}
    )
    fields = ("name", "size", "labels", "group")
    assert (changed.status, *(changed.body[field] for field in fields)) == (200, "www", 2 << 30, {}, "x")

    place = tmp_path / "home" / "place"
    place.mkdir()
    assert daemon.api("POST", "/v1/volumes/www/mount", {"path": str(place)}).body["mounted_on"] == [str(place)]
    (place / "file").write_text("before")
    taken = daemon.api("POST", "/v1/volumes/www/snapshots", {"name": "one", "labels": {"why": "test"}})
    assert (taken.status, taken.body["name"], taken.body["labels"]) == (201, "one", {"why": "test"})
    assert daemon.api("GET", "/v1/volumes/www/snapshots").body == {"snapshots": [taken.body]}
    (place / "file").write_text("after")
    kept = daemon.api("POST", "/v1/volumes/www/restore", {"snapshot": "one"}).body["kept"]["name"]
    assert (place / "file").read_text() == "before"
    assert daemon.api("GET", "/v1/volumes/www/stats").body["writes"] > 0
    assert daemon.api("GET", "/v1/status").body["mounted"] == 1
    assert daemon.api("GET", "/v1/requests").body == {"request_count": 0, "requests": []}

    clone = daemon.api("POST", "/v1/volumes", {"name": "copy", "from": "www@one"})
    assert (clone.status, clone.body["parent"]) == (201, "www@one")
    assert daemon.api("DELETE", "/v1/volumes/www").status == 409
    assert daemon.api("POST", "/v1/volumes/www/unmount", {}).body["mounted_on"] == []
    assert daemon.api("DELETE", "/v1/volumes/www").status == 409
    for where in ("/v1/volumes/copy", "/v1/volumes/www/snapshots/one", f"/v1/volumes/www/snapshots/{kept}"):
        assert daemon.api("DELETE", where).status == 204
    assert daemon.api("DELETE", "/v1/volumes/www").status == 204
    assert daemon.api("GET", "/v1/volumes").body == {"volumes": []}


@pytest.mark.parametrize(
    ("method", "where", "body", "status", "says"),
    [
        ("GET", "/v1/volumes/nope", None, 404, 'volume "nope" does not exist'),
        ("GET", "/v1/nope", None, 404, "Not Found"),
        ("PUT", "/v1/volumes", {}, 405, "Method Not Allowed"),
        ("POST", "/v1/volumes", {}, 400, '"name" is missing'),
        ("POST", "/v1/volumes", {"name": "../x"}, 400, "not a valid name"),
        ("POST", "/v1/volumes", {"name": "x", "colour": "red"}, 400, "no option 'colour'"),
        ("POST", "/v1/volumes", {"name": "x", "size": [1]}, 400, "'size'"),
        ("POST", "/v1/volumes", {"name": "x", "from": "nope@one"}, 404, '"nope" does not exist'),
        ("POST", "/v1/volumes", {"name": "web"}, 409, "exists already"),
        ("POST", "/v1/volumes", [], 400, "makes no sense"),
        ("PATCH", "/v1/volumes/web", {"colour": "red"}, 400, "colour"),
        ("PATCH", "/v1/volumes/web", {"size": -1}, 400, "size"),
        ("PATCH", "/v1/volumes/web", {"encrypted": True}, 422, "encrypted"),
        ("POST", "/v1/volumes/web/mount", {"path": "/nowhere/at/all"}, 400, "/nowhere/at/all"),
        ("POST", "/v1/volumes/web/mount", {"path": "/mnt", "options": {"nope": ""}}, 400, "nope"),
        ("POST", "/v1/volumes/web/unmount", {}, 409, "not mounted"),
        ("POST", "/v1/volumes/web/restore", {"snapshot": "nope"}, 404, "nope"),
        ("GET", "/v1/volumes/web@one", None, 404, "web@one"),
    ],
)  # fmt: skip
def test_what_is_wrong_gets_a_status_and_a_line(
    refusing: Daemon, method: str, where: str, body: object, status: int, says: str
) -> None:
    answer = refusing.api(method, where, body)
    assert answer.status == status
    assert list(answer.body) == ["error"]
    assert says in answer.body["error"]
    assert "\n" not in answer.body["error"]
    assert [volume["name"] for volume in refusing.api("GET", "/v1/volumes").body["volumes"]] == ["web"]


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with one volume, for requests that change nothing."""
    with Daemon(tmp_path_factory.mktemp("refusing")) as running:
        assert running.api("POST", "/v1/volumes", {"name": "web"}).status == 201
        yield running


def test_a_request_has_at_most_a_mebibyte(refusing: Daemon) -> None:
    assert refusing.api("POST", "/v1/volumes", {"name": "x" * (1 << 20)}).status == 413
    assert refusing.api("GET", "/healthz").body == {"status": "ok"}


def test_on_tcp_nobody_gets_in_without_the_token(tmp_path: Path) -> None:
    token = "0123456789abcdef-secret"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    file.chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Daemon(tmp_path, "--listen", f"127.0.0.1:{port}", "--token-file", str(file)):
        url = f"http://127.0.0.1:{port}"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            for where in ("/v1/volumes", "/metrics", "/healthz", "/nope"):
                refused = httpx.get(url + where, headers=headers)
                assert (refused.status_code, refused.json()) == (401, {"error": "the token is missing or wrong"})
            assert httpx.post(url + "/v1/volumes", headers=headers, json={"name": "x"}).status_code == 401
        allowed = httpx.get(url + "/v1/volumes", headers={"Authorization": f"Bearer {token}"})
        assert (allowed.status_code, allowed.json()) == (200, {"volumes": []})


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    file.chmod(0o644)
    words = [*daemon.words[1:], "--listen", "127.0.0.1:0"]
    assert "open to others" in daemon.command.fails(*words, "--token-file", str(file), status=2)
    file.chmod(0o600)
    file.write_text("short")
    assert "at least 16" in daemon.command.fails(*words, "--token-file", str(file), status=2)
    assert "only given together" in daemon.command.fails(*words, status=2)


def test_the_sockets_are_for_their_owner_alone(daemon: Daemon) -> None:
    for path in (daemon.plugin_socket, daemon.api_socket):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_metrics_are_those_of_prometheus(daemon: Daemon, tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    daemon.api("POST", "/v1/volumes", {"name": "web", "size": 1 << 30})
    daemon.volume("Mount", "web", ID="one")
    Path(daemon.volume("Path", "web")["Mountpoint"], "file").write_bytes(b"x" * 100_000)
    daemon.api("POST", "/v1/volumes/web/snapshots", {"name": "one"})
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(daemon.api("GET", "/metrics").body)
        for sample in family.samples
        if sample.labels.get("volume") == "web"
    }
    assert found["fusevol_volume_size_bytes"] == 1 << 30
    assert found["fusevol_volume_snapshots"] == 1
    assert (
        found["fusevol_volume_mounted"] == found["fusevol_volume_docker_uses"] == found["fusevol_volume_answers"] == 1
    )
    assert found["fusevol_volume_write_bytes_total"] >= 100_000
    assert found["fusevol_volume_used_bytes"] >= 100_000
    assert found["fusevol_volume_active_requests"] == 0


def test_a_client_that_goes_away_in_the_middle_ends_nothing_but_itself(refusing: Daemon) -> None:
    for rest in (b"", b"{", b"{" * 99):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(refusing.plugin_socket))
            client.sendall(b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + rest)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    assert refusing.api("GET", "/healthz").status == 200
    assert "Traceback" not in refusing.log.read_text()
