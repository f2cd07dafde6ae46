"""The lease on an object store excludes, whoever is frozen, wakes or dies, at whichever of its requests.

FREEZES=4 goes deeper with three runs: millions of states, minutes, gigabytes.
"""

import os
import time

import pytest

from tests.interleavings import AskedStore, Violation, explore, renewing, writing
from vqgpt.tokens import lease
from vqgpt.tokens.lease import current, key_of

FREEZES = int(os.environ.get("FREEZES", "1"))
ONE = writing(commits=1)


@pytest.fixture(autouse=True)
def own_clock(monkeypatch):
    monkeypatch.setattr(lease, "time", time)  # as it is again after the runs


def test_two_runs_in_every_order():
    late, alive = ("overtaken", "done"), ("held", "done")  # one woke too late; the other showed that it lives
    assert explore(("A", ONE), ("B", ONE)) == {("done", "done"), late, late[::-1], alive, alive[::-1]}


def test_two_runs_of_which_each_may_die():
    ends = explore(("A", ONE), ("B", ONE), deaths=True, freezes=FREEZES + 1)
    assert {("died", "done"), ("done", "died"), ("died", "died")} < ends


def test_two_runs_of_several_commits():
    assert ("done", "done") in explore(("A", writing(commits=3)), ("B", writing(commits=3)), freezes=FREEZES + 2)


def test_the_thread_that_renews_beside_its_run():
    ends = explore(("A", ONE), ("A", renewing), ("B", ONE), freezes=FREEZES + 1)
    assert ("done", "done", "held") in ends


def test_three_runs():
    ends = explore(("A", ONE), ("B", ONE), ("C", ONE), freezes=FREEZES)
    assert ("done", "done", "done") in ends
    assert all("done" in words for words in ends)


def release_by_deletion(store, ours):
    """As it was: numbers restart."""
    number, claim = current(store)
    if claim == ours:
        store.delete([key_of(number)])


def advance_without_a_look(store, number, claim):
    """As it was: who creates the next number has the lease."""
    key = key_of(number + 1)
    if not store.create(key, claim.encoded):
        return False
    store.delete([below for below in store.files() if below < key])
    return True


def current_without_a_second_look(store):
    """The number of one moment, and the claim of another."""
    number = max(map(int, store.files()), default=0)
    try:
        return number, lease._read(store, number) if number else None
    except FileNotFoundError:
        return number, None


def put_unconditionally(self, key, data, version, conditional=AskedStore._put):
    self.has_conditional_updates = key != "root"
    return conditional(self, key, data, version if key != "root" else {"e_tag": b"any"})


@pytest.mark.parametrize(
    ("place", "name", "weakened", "words"),
    [
        (lease, "release", release_by_deletion, "deleted the object that counts"),
        (lease, "_advance", advance_without_a_look, "believes that it has the lease, which it never had"),
        (lease, "current", current_without_a_second_look, "was the last to get the lease, and was refused"),
        (AskedStore, "_put", put_unconditionally, "overwrote the manifest of a run that had the lease after it"),
    ],
)
def test_each_part_of_the_protocol_is_needed(monkeypatch, place, name, weakened, words):
    """The first, second and fourth are how it was before."""
    monkeypatch.setattr(place, name, weakened)
    with pytest.raises(Violation, match=words):
        explore(("A", ONE), ("A", renewing), ("B", ONE), freezes=4)
