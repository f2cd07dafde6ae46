"""Every interleaving of runs that write one cache on an object store: the real code, step by step, in every order.

A step is one request, which the store does at once. A run that is not chosen is frozen; one that is never chosen again
is dead. What a run does next depends on the answers so far alone, so it is begun anew with these, until it asks for
one more: no threads. Steps that lead to what was met before are not followed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vqgpt.tokens import lease
from vqgpt.tokens.lease import Claim, HeldError, key_of
from vqgpt.tokens.object_store import ObjectStore

ROOT = "cache/root"
GONE = "gone"


class Asks(BaseException):
    """A run has come to a request that has no answer yet."""

    def __init__(self, *request: Any) -> None:
        super().__init__(request)
        self.request = request


class Violation(AssertionError):
    """A promise of the protocol is broken."""


class Overtaken(Exception):
    """What `Lease.check` makes known."""


class Answers:
    """Those of one run until now; in place of the module `time` too."""

    def __init__(self, answers: tuple[Any, ...]) -> None:
        self.left = iter(answers)

    def ask(self, *request: Any) -> Any:
        for answer in self.left:
            if answer == GONE:
                raise FileNotFoundError
            return answer
        raise Asks(*request)

    def monotonic(self) -> float:
        return self.ask("now")

    def sleep(self, seconds: float) -> None:
        self.ask("sleep", seconds)


class AskedStore(ObjectStore):
    """The real store, but for the requests themselves. An object's version is its content, as on S3."""

    def __init__(self, answers: Answers, folder: str, check_may_write: Callable[[], None] = lambda: None) -> None:
        self.answers, self.folder, self.check_may_write = answers, folder, check_may_write
        self.versions, self.has_conditional_updates = {}, True

    def files(self):
        return dict.fromkeys(self.answers.ask("list", self.folder), 1)

    def read(self, key, most_bytes):
        return self.answers.ask("read", self.folder + key)

    def _put(self, key, data, version):
        expected = version["e_tag"] if version else b""
        done = self.answers.ask("put", self.folder + key, data, expected if self.has_conditional_updates else None)
        return {"e_tag": data} if done else None

    def _get(self, key, size):
        data = self.answers.ask("get", self.folder + key)
        return ({"e_tag": data} if data else None), data

    def _delete(self, keys):
        for key in keys:
            self.answers.ask("delete", self.folder + key)


@dataclass(frozen=True)
class World:
    """The store, the time, and who has held the lease: of each run the number at which it got it."""

    objects: frozenset[tuple[str, bytes]] = frozenset()
    time: int = 0
    got_at: frozenset[tuple[str, int]] = frozenset()
    root_of: int = 0  # the number at which the run got the lease that wrote the root
    begun: frozenset[str] = frozenset()  # those that know that they have the lease
    dead: frozenset[str] = frozenset()

    @property
    def highest_key(self) -> str:
        return "lock/" + key_of(self.highest)

    @property
    def highest(self) -> int:
        return max((int(key[5:]) for key, _ in self.objects if key.startswith("lock/")), default=0)

    def after(self, name: str, kind: str, key: Any = "", data: Any = b"", expected: Any = None) -> tuple["World", Any]:
        """What a request of the run of this name makes of the world, and its answer. Raises Violation."""
        there = dict(self.objects)
        if kind == "list":
            return self, tuple(sorted(each.removeprefix(key) for each in there if each.startswith(key)))
        if kind in ("read", "get"):
            return self, there.get(key, GONE if kind == "read" else b"")
        if kind == "now":
            return self, self.time
        if kind == "sleep":
            return replace(self, time=self.time + key), None
        if kind == "is dead":
            return self, key in self.dead
        if kind == "holds":
            if name not in dict(self.got_at):
                raise Violation(f"{name} believes that it has the lease, which it never had")
            return replace(self, begun=self.begun | {name}), None
        if kind == "begun":
            return self, None
        if kind == "put" and expected is not None and there.get(key, b"") != expected:
            return self, False
        there.pop(key, None)
        if kind == "put":
            there[key] = data
        after = replace(self, objects=frozenset(there.items()))
        if after.highest < self.highest:
            raise Violation(f"{name} deleted the object that counts")
        if after.highest > self.highest and data != there.get(self.highest_key) and b'"holder": ""' not in data:
            after = replace(after, got_at=frozenset({**dict(self.got_at), name: after.highest}.items()))
        if key == ROOT:
            if dict(self.got_at).get(name, 0) < self.root_of:
                raise Violation(f"{name} overwrote the manifest of a run that had the lease after it")
            after = replace(after, root_of=dict(self.got_at)[name])
        return after, True


Does = Callable[[Answers, Claim], None]


class Point:
    """How far a run has come: what it was answered, and what it asks next, or how it ended, in a word."""

    def __init__(self, name: str, does: Does, answers: tuple[Any, ...] = ()) -> None:
        self.name, self.does, self.answers = name, does, answers
        self.further: dict[Any, Point] = {}
        self.request, self.end = self._find(Answers(answers))

    def answered(self, answer: Any) -> "Point":
        if answer not in self.further:
            self.further[answer] = Point(self.name, self.does, (*self.answers, answer))
        return self.further[answer]

    def _find(self, answers: Answers) -> tuple[Any, str]:
        lease.time = answers
        try:
            self.does(answers, Claim(holder=self.name, run="", nonce=f"{ord(self.name):032x}"))
        except Asks as asked:
            return asked.request, ""
        except HeldError:
            return None, "held"
        except Overtaken:
            return None, "overtaken"
        return None, "done"


def writing(commits: int) -> Does:
    """A run that takes the lease, commits, and gives it back."""

    def does(answers: Answers, claim: Claim) -> None:
        lock = AskedStore(answers, "lock/")

        def check() -> None:
            if not lease.is_held_by(lock, claim):
                raise Overtaken

        cache = AskedStore(answers, "cache/", check)
        lease.take(lock, claim, 1, lambda other: answers.ask("is dead", other.holder), lambda other: None)
        answers.ask("holds")
        root = answers.ask("get", ROOT)
        for _ in range(commits):
            check()
            root += claim.holder.encode()
            cache.write("root", root)
        lease.release(lock, claim)

    return does


def renewing(answers: Answers, claim: Claim) -> None:
    """The thread beside a run of the same name, once."""
    answers.ask("begun")
    lease.renew(AskedStore(answers, "lock/"), claim)


def explore(*runs: tuple[str, Does], deaths: bool = False, freezes: int = 0) -> set[tuple[str, ...]]:
    """Go through all interleavings of named runs; returns how these can end. Raises Violation.

    With `deaths` a run may also die, and be known to have died, before each of its steps. `freezes` bounds how often a
    run is left before its end; 0 for no bound.
    """
    begun = (World(), tuple(Point(*run) for run in runs), -1, freezes)
    ends, met, open_states = set(), {begun}, [begun]
    while open_states:
        world, points, moving, left = open_states.pop()
        able = [place for place, point in enumerate(points) if can_move(world, point)]
        for place in able:
            costs = int(freezes > 0 and moving in able and moving != place)
            if costs > left:
                continue
            followers = [step(world, points[place])]
            if deaths:
                followers.append((replace(world, dead=world.dead | {points[place].name}), "died"))
            for after, point in followers:
                changed = (*points[:place], point, *points[place + 1 :])
                state = (after, changed, place if freezes else -1, left - costs)
                if state not in met:
                    met.add(state)
                    open_states.append(state)
        if not able:
            words = tuple(point if isinstance(point, str) else "never begun" for point in points)
            ends.add(words)
            check_the_last(world, dict(reversed([(name, word) for (name, _), word in zip(runs, words, strict=True)])))
    return ends


def step(world: World, point: Point) -> tuple[World, Point | str]:
    """The world, and the run or how it ended, after its next request, and what it tells without one."""
    while True:
        world, answer = world.after(point.name, *point.request)
        point = point.answered(answer)
        if point.end or point.request != ("holds",):
            return world, point.end or point


def can_move(world: World, point: Point | str) -> bool:
    """False at the end, and for the thread of a run that does not hold the lease yet."""
    return not isinstance(point, str) and (point.request != ("begun",) or point.name in world.begun)


def check_the_last(world: World, ends: dict[str, str]) -> None:
    """Raise Violation if the run that got the lease last was refused something."""
    if world.got_at:
        last = max(world.got_at, key=lambda got: got[1])[0]
        if ends[last] not in ("done", "died"):
            raise Violation(f"{last} was the last to get the lease, and was refused: {ends}")
