"""FaultyBackend: failures on demand, by script or by chance, the same every time for the same seed.

    backend = FaultyBackend(inner, [fail("write", nth=3, error=NoSpace), delay("flush", seconds=0.01)])
    backend.add(torn(probability=0.01), full(after=1 << 20))
    backend.clear()

A rule says which call, when, and what happens. When: `nth` (that call only, counted from 1), `every`
(each k-th), `probability`, or none of them (always); `volume_id` and `times` narrow it further.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar, Unpack

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Manifest
from fusevol.backends.checks import flat
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.errors import BackendError, FusevolError, InvalidArgument, NoSpace

__all__ = ["CALLS", "SECTOR", "FaultyBackend", "Rule", "delay", "fail", "flip", "full", "short", "torn"]

#: The calls a rule may name. `read` includes `read_nowait`.
CALLS = (
    "create",
    "delete",
    "list",
    "used_size",
    "read",
    "write",
    "flush",
    "discard",
    "get_manifest",
    "put_manifest",
)
#: What a disk writes whole or not at all.
SECTOR = 512

_T = TypeVar("_T")
#: An error class, an instance, or a function that makes one.
ErrorSource = type[Exception] | Exception | Callable[[], Exception]


@dataclass(slots=True, kw_only=True)
class Rule:
    """What happens to which call, and when. Make one with the functions of this module.

    `seen` and `fired` count matching calls and those the rule struck. `budget` is what is left of a
    full() rule's bytes; raise it to "free space".
    """

    call: str
    effect: str
    error: ErrorSource = BackendError
    seconds: float = 0.0
    until: trio.Event | None = None
    keep: int | None = None
    nth: int | None = None
    every: int | None = None
    probability: float | None = None
    budget: int | None = None
    volume_id: str | None = None
    times: int | None = None
    seen: int = 0
    fired: int = 0
    # The draw for the next matching call, kept so that looking ahead does not change the outcome.
    _draw: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise InvalidArgument(f"no call {self.call!r} to fail; known: {', '.join(CALLS)}")
        if sum(when is not None for when in (self.nth, self.every, self.probability, self.budget)) > 1:
            raise InvalidArgument("a rule takes one of nth, every and probability")

    def matches(self, call: str, volume_id: str) -> bool:
        """Whether the call is one that the rule counts."""
        return call == self.call and self.volume_id in (None, volume_id)

    def strikes(self, size: int, random_: random.Random) -> bool:
        """Whether the rule strikes the next matching call, of `size` bytes. Asking twice changes nothing."""
        if self.times is not None and self.fired >= self.times:
            return False
        if self.nth is not None:
            return self.seen + 1 == self.nth
        if self.every is not None:
            return (self.seen + 1) % self.every == 0
        if self.budget is not None:
            return size > self.budget
        if self.probability is not None:
            if self._draw is None:
                self._draw = random_.random()
            return self._draw < self.probability
        return True

    def count(self, size: int, struck: bool) -> None:
        """Take note that a matching call went through."""
        self.seen += 1
        self.fired += struck
        self._draw = None
        if self.budget is not None and size <= self.budget:
            self.budget -= size

    def make_error(self) -> Exception:
        """The error to raise."""
        error = self.error() if callable(self.error) else self.error
        if isinstance(error, FusevolError) and str(error) == error.summary:
            error.args = (f"{error.summary} (injected into {self.call})",)
        return error


class When(TypedDict, total=False):
    """Which of the matching calls a rule strikes; see the module's docstring."""

    nth: int
    every: int
    probability: float
    volume_id: str
    times: int


def fail(call: str, *, error: ErrorSource = BackendError, after: bool = False, **when: Unpack[When]) -> Rule:
    """Raise `error` instead of making the call; with `after`, once the call has had its effect."""
    return Rule(call=call, effect="fail-after" if after else "fail", error=error, **when)


def delay(call: str, *, seconds: float = 0.0, until: trio.Event | None = None, **when: Unpack[When]) -> Rule:
    """Sleep, or wait until an event is set, before the call. A `read_nowait` that would wait returns None."""
    return Rule(call=call, effect="delay", seconds=seconds, until=until, **when)


def short(*, keep: int | None = None, **when: Unpack[When]) -> Rule:
    """Write only the first `keep` bytes (a random part if not given) and return how many they were."""
    return Rule(call="write", effect="short", keep=keep, **when)


def torn(*, error: ErrorSource = BackendError, **when: Unpack[When]) -> Rule:
    """Write a random subset of the sectors, then raise `error`.

    Where writes are atomic or ranges cannot be written again, the subset is all or nothing.
    """
    return Rule(call="write", effect="torn", error=error, **when)


def full(*, after: int, error: ErrorSource = NoSpace, volume_id: str | None = None) -> Rule:
    """Refuse, without effect, every write that would take the bytes written beyond `after`."""
    return Rule(call="write", effect="fail", error=error, budget=after, volume_id=volume_id)


def flip(**when: Unpack[When]) -> Rule:
    """Flip one random bit of what a read returns."""
    return Rule(call="read", effect="flip", **when)


class FaultyBackend(Wrapper):
    """Applies rules to the calls that pass through.

    Every rule counts and draws on its own, so adding one does not move another's faults. Of the rules
    that strike one call, all delays are served, and then the first other one, in the order they were added.
    """

    def __init__(self, inner: Backend, rules: Iterable[Rule] = (), *, seed: int = 0) -> None:
        super().__init__(inner)
        self._seed = seed
        self._added = 0
        self._rules: list[tuple[Rule, random.Random]] = []
        self.add(*rules)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in force."""
        return tuple(rule for rule, _ in self._rules)

    def add(self, *rules: Rule) -> None:
        """Put more rules in force, from the next call on. A rule counts the calls after it was added."""
        for rule in rules:
            self._rules.append((rule, random.Random(f"{self._seed}:{self._added}")))
            self._added += 1

    def clear(self) -> None:
        """Drop all rules; calls under way keep the faults they met."""
        self._rules.clear()

    def _struck(self, call: str, volume_id: str, size: int, *, count: bool = True) -> Iterator[Rule]:
        """The rules that strike this call: a delay each, then at most one of another kind."""
        struck, other = [], None
        for rule, random_ in self._rules:
            if not rule.matches(call, volume_id):
                continue
            strikes = rule.strikes(size, random_)
            if strikes and rule.effect == "delay":
                struck.append(rule)
            elif strikes and other is None:
                other = rule
            if count:
                rule.count(size, strikes and (rule.effect == "delay" or rule is other))
        return iter(struck if other is None else [*struck, other])

    async def _before(self, call: str, volume_id: str, size: int = 0) -> Rule | None:
        """Serve delays and failures before the call; return what is to happen in or after it."""
        last = None
        for rule in self._struck(call, volume_id, size):
            if rule.effect == "delay":
                if rule.until is not None:
                    await rule.until.wait()
                else:
                    await trio.sleep(rule.seconds)
            elif rule.effect == "fail":
                raise rule.make_error()
            else:
                last = rule
        return last

    def _random(self, rule: Rule) -> random.Random:
        return next((r for known, r in self._rules if known is rule), random.Random(self._seed))

    @staticmethod
    def _after(rule: Rule | None, result: _T) -> _T:
        if rule is not None and rule.effect == "fail-after":
            raise rule.make_error()
        return result

    def _flipped(self, rule: Rule | None, data: Buffer) -> Buffer:
        if rule is None or rule.effect != "flip" or not len(data):
            return self._after(rule, data)
        random_, damaged = self._random(rule), bytearray(data)
        damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        return bytes(damaged)

    async def create(self, volume_id: str) -> None:
        """Apply the rules and forward."""
        rule = await self._before("create", volume_id)
        await self.inner.create(volume_id)
        self._after(rule, None)

    async def delete(self, volume_id: str) -> None:
        """Apply the rules and forward."""
        rule = await self._before("delete", volume_id)
        await self.inner.delete(volume_id)
        self._after(rule, None)

    async def list(self) -> list[str]:
        """Apply the rules and forward."""
        rule = await self._before("list", "")
        return self._after(rule, await self.inner.list())

    async def used_size(self, volume_id: str) -> int:
        """Apply the rules and forward."""
        rule = await self._before("used_size", volume_id)
        return self._after(rule, await self.inner.used_size(volume_id))

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Apply the rules and forward."""
        rule = await self._before("read", volume_id, size)
        return self._flipped(rule, await self.inner.read(volume_id, size, offset))

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Apply the rules for read and forward. What is not answered is not counted either."""
        for rule in self._struck("read", volume_id, size, count=False):
            if rule.effect == "delay":
                return None
            if rule.effect == "fail":
                self._struck("read", volume_id, size)
                raise rule.make_error()
        data = self.inner.read_nowait(volume_id, size, offset)
        if data is None:
            return None
        return self._flipped(next(self._struck("read", volume_id, size), None), data)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Apply the rules and forward."""
        view = flat(data)
        rule = await self._before("write", volume_id, len(view))
        if rule is not None and rule.effect == "short" and len(view):
            keep = self._random(rule).randrange(len(view)) if rule.keep is None else rule.keep
            view = view[:keep]
        elif rule is not None and rule.effect == "torn":
            await self._tear(volume_id, view, offset, self._random(rule))
            raise rule.make_error()
        return self._after(rule, await self.inner.write(volume_id, view, offset))

    async def _tear(self, volume_id: str, view: memoryview, offset: int, random_: random.Random) -> None:
        if self.traits.atomic_writes or not self.traits.rewritable:
            if random_.random() < 0.5:
                await self.inner.write(volume_id, view, offset)
            return
        start = 0
        while start < len(view):
            stop = min(len(view), start + SECTOR - (offset + start) % SECTOR)
            if random_.random() < 0.5:
                await self.inner.write(volume_id, view[start:stop], offset + start)
            start = stop

    async def flush(self, volume_id: str) -> None:
        """Apply the rules and forward."""
        rule = await self._before("flush", volume_id)
        await self.inner.flush(volume_id)
        self._after(rule, None)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Apply the rules and forward."""
        rule = await self._before("discard", volume_id, length)
        await self.inner.discard(volume_id, length, offset)
        self._after(rule, None)

    async def get_manifest(self, volume_id: str) -> Manifest:
        """Apply the rules and forward."""
        rule = await self._before("get_manifest", volume_id)
        return self._after(rule, await self.inner.get_manifest(volume_id))

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Apply the rules and forward."""
        rule = await self._before("put_manifest", volume_id, len(data))
        return self._after(rule, await self.inner.put_manifest(volume_id, data, if_version))
