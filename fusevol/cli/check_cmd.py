"""fusevol check."""

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_json, progress
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

__all__ = ["check", "report_problems"]


def check(name: NameArgument, json: JsonOption = False) -> None:
    """Check that a volume is sound, and say what is wrong. Nothing is changed.

    It reads the log, its maps, and all data of the volume and its snapshots. The exit status is 1 where anything is
    wrong. A mounted volume can be checked while it is in use.

    Example:

    \b
      fusevol check web
    """
    report_problems(name, json=json, full=True)


def report_problems(name: str, *, json: bool, full: bool) -> None:
    """Run a check, or unless `full` a scrub, and print what it finds."""
    import typer

    from fusevol.driver import LocalDriver
    from fusevol.driver.upkeep import CheckReport

    what = "check" if full else "scrub"

    async def work(driver: LocalDriver) -> tuple[str, CheckReport]:
        volume = await driver.resolve(name)
        with progress(f"{what} {volume.locator.name}") as tell:
            run = driver.upkeep.check if full else driver.upkeep.scrub
            return volume.locator.name, await run(volume, tell)

    found, report = drive(work)
    if json:
        print_json({"volume": found, "verified": report.verified, "problems": report.problems})
    else:
        for problem in report.problems:
            holders = f" ({', '.join(problem.holders)})" if problem.holders else ""
            print(f"{problem.what}{holders}")
        count = len(report.problems)
        verdict = f"{count} problem{'s' if count > 1 else ''}" if count else "no problems"
        print(f'volume "{found}": {verdict}; {format_size(report.verified)} verified')
    if report.problems:
        raise typer.Exit(1)
