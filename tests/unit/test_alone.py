"""Whether anybody else would have to wait for the process of a mount."""

import os
import socket

from fusevol.mount.kernel import unasked
from fusevol.mount.requests import Requests


def test_a_request_that_was_not_read_yet_waits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        calm = unasked(ours.fileno())
        assert calm()
        theirs.send(b"request")
        assert not calm()
        ours.recv(100)
        assert calm()


def test_a_device_that_was_closed_is_not_calm() -> None:
    ours, theirs = os.pipe()
    calm = unasked(ours)
    os.close(theirs)
    assert not calm()
    os.close(ours)


def test_a_request_is_alone_while_no_other_is_served() -> None:
    requests = Requests()
    seen = [requests.alone]
    numbers = []
    for _ in range(3):
        numbers.append(requests.begin("read", 1))
        seen.append(requests.alone)
    for number in numbers:
        requests.end(number)
        seen.append(requests.alone)
    assert seen == [True, True, False, False, False, True, True]
