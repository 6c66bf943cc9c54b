"""Processors are kept awake while requests come one after the other, and no longer."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from fusevol.driver.server import mount_options
from fusevol.mount.options import MountOptions
from fusevol.mount.wakeful import RATE, SPELL, Wakefulness


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def _content(device: Path) -> bytes:
    return device.read_bytes()


def _serve(wakefulness: Wakefulness, rate: float, start: float) -> float:
    """Requests at this rate for two spells; returns when they end."""
    end = start + 2 * SPELL
    count = int(2 * SPELL * rate)
    for number in range(count):
        wakefulness.served += 1
        wakefulness.notice(start + number / rate)
    wakefulness.notice(end)
    return end


async def test_many_requests_keep_them_awake_and_a_pause_lets_them_sleep(
    device: Path, autojump_clock: trio.testing.MockClock
) -> None:
    wakefulness = Wakefulness(device)
    wakefulness.notice(100.0)
    _serve(wakefulness, 3 * RATE, 100.0)
    assert wakefulness.awake
    assert _content(device) == struct.pack("i", 0)
    await trio.sleep(3 * SPELL)
    assert not wakefulness.awake


async def test_few_requests_do_not(device: Path) -> None:
    wakefulness = Wakefulness(device)
    wakefulness.notice(100.0)
    _serve(wakefulness, RATE / 3, 100.0)
    assert not wakefulness.awake


async def test_requests_before_a_pause_do_not_count(device: Path) -> None:
    wakefulness = Wakefulness(device)
    wakefulness.notice(100.0)
    wakefulness.served += 20
    wakefulness.notice(160.0)
    assert not wakefulness.awake


async def test_where_it_may_not_it_does_not(tmp_path: Path) -> None:
    wakefulness = Wakefulness(tmp_path / "missing" / "device")
    wakefulness.notice(100.0)
    _serve(wakefulness, 3 * RATE, 100.0)
    assert not wakefulness.awake


def test_it_can_be_asked_for_and_forbidden() -> None:
    assert MountOptions().wakeful is None
    assert MountOptions().with_words(["wakeful"]).wakeful is True
    assert MountOptions().with_words(["nowakeful"]).wakeful is False
    assert mount_options({"nowakeful": ""}, "web")[0].wakeful is False
