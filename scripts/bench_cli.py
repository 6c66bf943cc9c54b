"""How long commands take with very many volumes and snapshots, in seconds and as ratios to `python -c pass`.

One volume is made with its snapshots; the others are its copies, under ids of their own. Each round runs every command
once, so that what else the machine does hits all alike; shown are medians over the rounds. A round before them is not
counted: it leaves the compiled modules that an installed program has, and an earlier run in a checkout.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec
import trio

from fusevol.api import VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver
from fusevol.home import Home

BIN = Path(sys.executable).parent
LABELS = {"app": "shop", "tier": "gold"}


async def fill(home: Path, volumes: int, snapshots: int) -> None:
    async with LocalDriver(Home(home)) as driver:
        first = await driver.create(
            VolumeLocator(name=name_of(0), volume_labels=LABELS), None, VolumeSpec(size=1 << 30)
        )
        for number in range(snapshots):
            await driver.snapshot(first, readonly=True, locator=VolumeLocator(name=f"s{number}"))
        [record] = await driver.inspect([first])
        taken = await driver.snapshots.of(record)
        data = home / "volumes"
        for number in range(1, volumes):
            volume_id = uuid.uuid4()
            # What nobody opens need not be there twice.
            shutil.copytree(data / first, data / str(volume_id), copy_function=os.link)
            locator = msgspec.structs.replace(record.locator, name=name_of(number))
            await driver.store.create_vol(msgspec.structs.replace(record, id=str(volume_id), locator=locator))
            for order, snapshot in enumerate(taken, 1):
                source = msgspec.structs.replace(snapshot.source, parent=str(volume_id))
                snapshot_id = str(uuid.uuid5(volume_id, str(order)))
                await driver.store.create_vol(msgspec.structs.replace(snapshot, id=snapshot_id, source=source))


def name_of(number: int) -> str:
    return f"volume-{number:05}"


def measure(command: list[str | Path], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; seconds that passed, and those of a processor."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    passed = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[1:]} failed with {process.returncode}")
    return passed, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--snapshots", type=int, default=10, help="of each volume")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument(
        "--json", action="store_true", help="print the medians as JSON: seconds, and those of a processor"
    )
    chosen = parser.parse_args()
    one = name_of(chosen.volumes // 2)
    lines = [
        "--help", "create --help", "ls", "ls --json", f"ls {one}", f"inspect {one}", f"inspect {one}@s0",
        f"snapshots {one}", f"usage {one}", "status", "pool ls", "gc --help",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fusevol-bench-") as directory:
        home = Path(directory) / "home"
        start = time.perf_counter()
        trio.run(fill, home, chosen.volumes, chosen.snapshots)
        made = time.perf_counter() - start
        commands: dict[str, list[str | Path]] = {"python -c pass": [sys.executable, "-c", "pass"]}
        commands |= {f"fusevol {line}": [BIN / "fusevol", *line.split()] for line in lines}
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment = kept | {"FUSEVOL_HOME": str(home), "PYTHONPYCACHEPREFIX": f"{directory}/compiled"}
        for _ in range(chosen.rounds + 1):
            for name, command in commands.items():
                taken[name].append(measure(command, environment))
    medians = {
        name: [statistics.median(column) for column in zip(*times[1:], strict=True)] for name, times in taken.items()
    }
    if chosen.json:
        print(json.dumps(medians, indent=2))
        return
    print(f"{chosen.volumes} volumes with {chosen.snapshots} snapshots each, made in {made:.1f} s; medians of ", end="")
    print(f"{chosen.rounds} rounds\n\n{'command':32} {'seconds':>8} {'ratio':>8} {'CPU s':>8}")
    for name, (passed, used) in medians.items():
        print(f"{name:32} {passed:8.3f} {passed / medians['python -c pass'][0]:8.2f} {used:8.3f}")


if __name__ == "__main__":
    main()
