"""When snapshots are to be taken: schedules as text, and the times they mean.

    periodic=60,24; daily=03:00,7; weekly=Sunday@04:00; monthly=1@05:00,12

Parts are joined by `;`. What follows a comma is how many snapshots to keep; without, 7 daily, 5 weekly, 5 periodic and
12 monthly ones. Days begin and end by the clock on the wall: a time that a change of the clocks skips comes as much
later as they were put forward, and one that they repeat comes once, the first time. `periodic` counts its minutes from
1970 in UTC, so that an hourly one comes on the hour wherever hours are whole. A month that has no 31st has its last day
instead. Times here are seconds since 1970.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from fusevol.errors import InvalidArgument, NotSupported

__all__ = ["DEFAULT_KEEP", "SCHEDULE_LABEL", "Rule", "Schedule", "parse_schedule", "utc_text"]

#: Label of a snapshot that was taken by schedule; its value is the kind of rule.
SCHEDULE_LABEL = "fusevol.schedule"

#: How many snapshots of a kind are kept where nobody says.
DEFAULT_KEEP = {"interval": 5, "periodic": 5, "daily": 7, "weekly": 5, "monthly": 12}

_MINUTES_MAX = 366 * 24 * 60
_KEEP_MAX = 100_000
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORMS = {
    "periodic": "periodic=MINUTES[,KEEP]",
    "daily": "daily=HH:MM[,KEEP]",
    "weekly": "weekly=Sunday@HH:MM[,KEEP]",
    "monthly": "monthly=DAY@HH:MM[,KEEP]",
}
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Rule:
    """One part of a schedule.

    kind: a key of DEFAULT_KEEP. keep: how many snapshots of it stay. every: minutes, of the kinds interval and
    periodic. day: of the week from 0 for Monday, or of the month from 1. hour, minute: by the clock on the wall.
    """

    kind: str
    keep: int
    every: int = 0
    day: int = 0
    hour: int = 0
    minute: int = 0

    def after(self, moment: float, zone: tzinfo | None = None) -> float:
        """The first time later than `moment`. zone: whose clock it is; None for that of this host."""
        if self.every:
            period = self.every * 60
            return float((moment // period + 1) * period)
        # A clock that was put forward by hours makes a day's time come after the next day has begun.
        today = datetime.fromtimestamp(moment, zone).date()
        times = (self._on(day, zone) for day in self._days(today - _DAY))
        return next(time for time in times if time > moment)

    def _on(self, day: date, zone: tzinfo | None) -> float:
        return datetime(day.year, day.month, day.day, self.hour, self.minute, tzinfo=zone).timestamp()

    def _days(self, first: date) -> Iterator[date]:
        """The days of this rule from `first` on."""
        day = first
        while True:
            if self.kind == "weekly":
                fits = day.weekday() == self.day
            else:
                fits = self.kind == "daily" or day.day == min(self.day, monthrange(day.year, day.month)[1])
            if fits:
                yield day
            day += _DAY


@dataclass(frozen=True)
class Schedule:
    """All rules of a volume; none where nothing is to be taken."""

    rules: tuple[Rule, ...] = ()

    @property
    def keep(self) -> dict[str, int]:
        """How many snapshots are kept of each kind: rules of one kind have theirs together."""
        found: dict[str, int] = {}
        for rule in self.rules:
            found[rule.kind] = found.get(rule.kind, 0) + rule.keep
        return found

    def of(self, kind: str) -> tuple[Rule, ...]:
        """The rules of a kind."""
        return tuple(rule for rule in self.rules if rule.kind == kind)

    def after(self, moment: float, kind: str = "", zone: tzinfo | None = None) -> float | None:
        """The first time later than `moment`, of any rule or of those of one kind; None where there is none."""
        return min((rule.after(moment, zone) for rule in self.rules if kind in ("", rule.kind)), default=None)


def parse_schedule(text: str, interval: int = 0) -> Schedule:
    """Read a schedule. interval: minutes of one more rule, the kind `interval`; 0 for none. Both may be empty.

    Raises InvalidArgument for what is no schedule, NotSupported for the policies of openstorage, which are kept
    elsewhere and have no content here.
    """
    rules = []
    if interval:
        if not 1 <= interval <= _MINUTES_MAX:
            raise InvalidArgument(f"snapshot_interval: {interval} is not between 1 and {_MINUTES_MAX} minutes")
        rules.append(Rule("interval", DEFAULT_KEEP["interval"], every=interval))
    for part in text.split(";") if text.strip() else ():
        rule = _rule(part.strip())
        if any((rule.kind, rule.every, rule.day, rule.hour, rule.minute)
               == (other.kind, other.every, other.day, other.hour, other.minute) for other in rules):  # fmt: skip
            raise InvalidArgument(f"snapshot_schedule: {part.strip()!r} says the same as another part")
        rules.append(rule)
    return Schedule(tuple(rules))


def _rule(part: str) -> Rule:
    kind, equals, value = (word.strip() for word in part.partition("="))
    if kind == "policy":
        raise NotSupported(
            "snapshot_schedule: there are no policies here to refer to by policy=", hint="say when: daily=03:00,7"
        )
    if kind not in _FORMS or not equals:
        raise InvalidArgument(
            f"snapshot_schedule: {part!r} is not part of a schedule", hint=f"parts are {', '.join(_FORMS.values())}"
        )
    when, comma, kept = (word.strip() for word in value.partition(","))
    keep = _number(kept, _KEEP_MAX) if comma else DEFAULT_KEEP[kind]
    found = _at(kind, when, keep) if keep else None
    if found is None:
        raise InvalidArgument(f"snapshot_schedule: {part!r} is not of the form {_FORMS[kind]}")
    return found


def _at(kind: str, when: str, keep: int) -> Rule | None:
    """The rule of a kind with those times; None where they are none."""
    if kind == "periodic":
        minutes = _number(when, _MINUTES_MAX)
        return Rule(kind, keep, every=minutes) if minutes else None
    name, _, clock = when.rpartition("@")
    time = _TIME.fullmatch(clock)
    if kind == "daily":
        day: int | None = None if name else 0
    elif kind == "weekly":
        day = _WEEKDAYS.index(name.lower()) if name.lower() in _WEEKDAYS else None
    else:
        day = _number(name, 31) or None
    if time is None or day is None:
        return None
    return Rule(kind, keep, day=day, hour=int(time[1]), minute=int(time[2]))


def _number(text: str, most: int) -> int:
    """A number from 1 to `most`; 0 for anything else."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(most)) else 0
    return number if number <= most else 0


def utc_text(moment: float) -> str:
    """A time as RFC 3339, to the second, in UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
