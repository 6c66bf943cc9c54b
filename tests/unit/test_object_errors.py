"""What a store says, or why it says nothing, is one line that names the server."""

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fusevol.backends import open_backend
from fusevol.backends.object.errors import in_words
from fusevol.errors import BackendError

S3_ERROR = "<?xml version='1.0'?>\n<Error><Code>{}</Code><Message>{}</Message><Resource>/b</Resource></Error>"


class Store(http.server.ThreadingHTTPServer):
    """A server that has one answer to everything; None for none at all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answer: tuple[int, str] | None = None
        self.done = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever does not want our answer may go."""


class Answering(http.server.BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        if self.server.answer is None:
            self.server.done.wait(30)
            return
        status, text = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Store]:
    with Store() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.done.set()
        found.shutdown()
        thread.join()


async def said(endpoint: str, retries: int = 0) -> str:
    """The error of a listing."""
    backend = open_backend(
        "object",
        url="s3://b/x",
        config={"endpoint": endpoint, "access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"},
        client_options={"allow_http": True, "timeout": "500ms"},
        retry_config={"max_retries": retries, "retry_timeout": 5},
    )
    try:
        with pytest.raises(BackendError) as caught:
            await backend.list()
    finally:
        await backend.aclose()
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, S3_ERROR.format("InvalidAccessKeyId", "It does not exist.")),
         "403 Forbidden: InvalidAccessKeyId: It does not exist."),
        ((400, S3_ERROR.format("InvalidRequest", "")), "400 Bad Request: InvalidRequest"),
        ((400, "what?\nno"), "400 Bad Request"),
        ((301, ""), "Received redirect without LOCATION, this normally indicates an incorrectly configured region"),
        (None, "it does not answer in time"),
    ],
)  # fmt: skip
async def test_an_answer_is_shown_as_the_store_meant_it(
    server: Store, answer: tuple[int, str] | None, words: str
) -> None:
    server.answer = answer
    endpoint = f"http://127.0.0.1:{server.server_port}"
    assert await said(endpoint) == f".volumes: {endpoint}: {words}"


async def test_how_often_it_was_asked_is_said(server: Store) -> None:
    server.answer = (503, S3_ERROR.format("SlowDown", "Please reduce your request rate."))
    text = await said(f"http://127.0.0.1:{server.server_port}", retries=1)
    assert text.endswith(": 503 Service Unavailable: SlowDown: Please reduce your request rate. (asked 2 times)")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no.such.host.invalid", "failed to lookup address information"),
    ],
)
async def test_a_server_that_is_not_there_is_named(endpoint: str, words: str) -> None:
    assert (await said(endpoint)).startswith(f".volumes: {endpoint}: {words}")


async def test_a_server_without_tls_is_one(server: Store) -> None:
    server.answer = (200, "")
    endpoint = f"https://127.0.0.1:{server.server_port}"
    assert await said(endpoint) == f".volumes: {endpoint}: no TLS: InvalidMessage, InvalidContentType"


@pytest.mark.parametrize("text", ["", "a\nb", "Generic S3 error: odd\n\nDebug source:\nGeneric {\n}"])
def test_what_is_none_of_these_keeps_its_first_line(text: str) -> None:
    assert in_words(text) == text.partition("\n")[0]
