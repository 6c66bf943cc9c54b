"""For all tests: a shell has its background jobs ignore SIGINT, which the programs they start would inherit."""

import signal
from collections.abc import Iterator

import pytest

from tests.s3 import S3, s3_server

signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server for all tests, each of which takes a folder of its own."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
