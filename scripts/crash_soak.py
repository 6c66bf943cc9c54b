"""Run the crash oracle (fusevol/testing/crash.py) for many seeds; see scripts/crash_soak --help."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from fusevol.testing.crash import check_cut, record

CUTS_PER_WORKLOAD = 25


def check_workload(seed: int, numbers: range) -> tuple[int, list[tuple[int, str]]]:
    """Record one workload and check some cuts: how many there were in all, and what failed at which."""
    cuts, failures = 0, []
    try:
        recorded = record(seed)
    except AssertionError as error:
        return 0, [(0, str(error))]
    for number in numbers:
        try:
            cuts += check_cut(recorded, number)
        except AssertionError as error:
            cuts += 1
            failures.append((number, str(error)))
    return cuts, failures


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="crash_soak", description="Cut the power under random workloads, recover, compare with a model."
    )
    parser.add_argument("--cuts", type=int, default=5000, metavar="N", help="stop after so many (default 5000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the first workload (default 0)")
    parser.add_argument("--cut", type=int, metavar="C", help="check this cut of the workload --seed alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: all)")
    return parser.parse_args(arguments)


def results(first: int, jobs: int, enough: list[int]) -> Iterator[tuple[int, int, list[tuple[int, str]]]]:
    """Seed, cuts and failures of workload after workload, until `enough` is not empty any more."""
    with ProcessPoolExecutor(jobs) as pool:
        pending: dict[Future[tuple[int, list[tuple[int, str]]]], int] = {}
        seed = first
        while pending or not enough:
            while len(pending) < 2 * jobs and not enough:
                pending[pool.submit(check_workload, seed, range(CUTS_PER_WORKLOAD))] = seed
                seed += 1
            done = next(as_completed(pending))
            yield pending.pop(done), *done.result()


def main() -> int:
    options = parse()
    if options.cut is not None:
        _, failures = check_workload(options.seed, range(options.cut, options.cut + 1))
        print(failures[0][1] if failures else f"seed {options.seed}, cut {options.cut}: as it should be")
        return bool(failures)
    began, cuts, workloads, failed = time.monotonic(), 0, 0, 0
    enough: list[int] = []
    progress = sys.stderr.isatty()
    for seed, checked, failures in results(options.seed, options.jobs, enough):
        cuts, workloads, failed = cuts + checked, workloads + 1, failed + len(failures)
        for number, reason in failures:
            print(f"{reason}\n  again: scripts/crash_soak --seed {seed} --cut {number}", flush=True)
        if progress:
            print(f"\r{cuts} of {options.cuts} cuts, {failed} failed ", end="", file=sys.stderr, flush=True)
        if cuts >= options.cuts and not enough:
            enough.append(cuts)
    if progress:
        print("\r\033[K", end="", file=sys.stderr)
    seconds = time.monotonic() - began
    print(
        f"{'FAILED' if failed else 'passed'}: {cuts} cuts in {workloads} workloads from seed {options.seed} on, "
        f"{failed} failed, {seconds:.0f} s"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
