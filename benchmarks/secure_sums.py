"""Attacks of a lying server on secure sums, drop-outs, and what the server's part takes.

    python benchmarks/secure_sums.py [--quick]

Each attack is one way to get at a single client's vector. The server has clients of its own among
the members, as many as the protocol stands, and knows all of their secrets. It sends what it likes,
keeps whatever honest members answer, and in the end tries to open the target's vector with all of
it. Against `Trusting` members, who check nothing, it succeeds; a test holds that.
"""

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from common import entry, is_quick, record
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlab.privacy import (
    Identity,
    Member,
    SecureSumError,
    Server,
    Terms,
    expand_seed,
    joined_secret,
    least_threshold,
    secure_sum,
    weights_at_zero,
)
from fedlab.privacy.secure import Advert, Words, arrivals, mask_seed
from fedlab.privacy.secure.member import SHARE

LOW_ORDER = (  # of Curve25519; RFC 7748, section 6.1, has them give a shared secret of zeros
    bytes(32),
    bytes([1] + 31 * [0]),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
)


class Trusting(Member):
    """A member who checks nothing, as a control: attacks must open its vectors."""

    @contextmanager
    def _round(self, number: int) -> Iterator[None]:
        yield

    def consistency_check(self, arrived: Iterable[int]) -> bytes:
        """Sign any list, also one without this client."""
        self._arrived = frozenset(arrived)
        return self._identity.sign(self.terms, self.number, "arrivals", arrivals(self._arrived))

    def _check_group(self, *_: object) -> None:
        pass

    def _check_adverts(self, adverts: Mapping[int, Advert]) -> None:
        pass


class Anything(Terms):
    """Terms that the server chose, and under which every signature is good, as a control."""

    def __post_init__(self) -> None:
        """Check nothing."""

    def check(self, *_: object) -> None:
        """Find every signature good."""


class Lying:
    """A run under a server that lies, and what this server knows of it.

    own: the server's clients. views: what a member is told in place of the truth. refusals: why
    honest members stopped. own_keys: number -> a key that a member takes for this client's, and
    that the server can use.
    """

    def __init__(
        self, chance: random.Random, *, trusting: bool = False, least: int | None = None
    ) -> None:
        """Draw sizes and vectors, and let everybody send keys. least: a threshold to take."""
        self.chance, clients = chance, chance.randint(3, 12)
        needed = chance.randint(least_threshold(clients), clients)
        most = min(2 * needed - clients - 1, needed - 2)
        everyone = list(range(1, clients + 1))
        self.own = set(chance.sample(everyone, chance.randint(0, most)))
        self.honest = [number for number in everyone if number not in self.own]
        self.target = chance.choice(self.honest)
        self.identities = {number: Identity() for number in everyone}
        directory = {number: identity.public for number, identity in self.identities.items()}
        kind, terms = (Trusting, Anything) if trusting else (Member, Terms)
        needed = least if least and trusting else needed
        self.terms = terms(os.urandom(16), needed, 3, directory)
        self.members = {n: kind(n, own, self.terms) for n, own in self.identities.items()}
        self.vectors = {n: words(chance, 3) for n in everyone}
        self.secret = self.vectors[self.target]
        self.refusals: list[str] = []
        self.adverts = {n: member.advertise_keys() for n, member in self.members.items()}
        self.own_keys = {n: self.members[n]._mask_key for n in self.own}
        self.letters: dict[int, dict[int, bytes]] = {}
        self.masked: dict[int, Words] = {}
        self.peers: dict[int, set[int]] = {}
        self.seeds: dict[int, dict[int, int]] = {n: {} for n in everyone}
        self.keys: dict[int, dict[int, int]] = {n: {} for n in everyone}

    def ask(self, number: int, what: str, *told: Any) -> Any:
        """A member's answer; None for one that refuses or has stopped."""
        try:
            return getattr(self.members[number], what)(*told)
        except SecureSumError as refusal:
            if number not in self.own:
                self.refusals.append(str(refusal))
            return None

    def share(self, views: Mapping[int, dict[int, Advert]] | None = None) -> None:
        """Round 1. views: the keys that some members are told."""
        for number in self.members:
            told = (views or {}).get(number, self.adverts)
            texts = self.ask(number, "share_keys", told)
            if texts is not None:
                self.letters[number] = texts
        for number, texts in self.letters.items():
            for own in self.own & texts.keys():  # these read what was written to them
                self.note(number, own, self.members[own], texts[own])

    def note(self, owner: int, reader: int, member: Member, text: bytes) -> None:
        """Read both shares out of a letter with a client's own key."""
        try:
            plain = member._unsealed(owner, text)
        except (SecureSumError, KeyError):  # it has stopped before it knew anybody's keys
            return
        self.keys[owner][reader] = int.from_bytes(plain[:SHARE], "big")
        self.seeds[owner][reader] = int.from_bytes(plain[SHARE:], "big")

    def mask(self, senders: Mapping[int, set[int]] | None = None) -> None:
        """Round 2. senders: whose letters some members are handed."""
        for number in self.members:
            told = (senders or {}).get(number, self.letters.keys() - {number})
            inbox = {n: self.letters[n].get(number, b"") for n in told if n in self.letters}
            answer = self.ask(number, "masked_input", inbox, self.vectors[number])
            if answer is not None:
                self.masked[number], self.peers[number] = answer, set(inbox)

    def sign(self, lists: Mapping[int, set[int]]) -> dict[frozenset[int], dict[int, bytes]]:
        """Round 3: signatures by list. The server's own clients sign every list."""
        found: dict[frozenset[int], dict[int, bytes]] = {}
        for number, there in lists.items():
            own = {
                n: self.identities[n].sign(self.terms, n, "arrivals", arrivals(there))
                for n in self.own
            }
            signed = found.setdefault(frozenset(there), own)
            if number not in self.own:
                answer = self.ask(number, "consistency_check", there)
                if answer is not None:
                    signed[number] = answer
        return found

    def reveal(self, number: int, there: set[int], signatures: Mapping[int, bytes]) -> None:
        """Round 4: note the shares that a member gives for a list."""
        answer = self.ask(number, "unmasking", signatures)
        for owner, value in (answer or {}).items():
            if owner in there or owner != number:  # of its own it has given a share of the seed
                (self.seeds if owner in there else self.keys)[owner][number] = value

    def finish(self, lists: Mapping[int, set[int]]) -> None:
        """Rounds 3 and 4 with these lists for these members, and signatures made up for more."""
        signed = self.sign(lists)
        for number, there in lists.items():
            if number not in self.own:
                given = signed[frozenset(there)]
                others = [s for each in signed.values() for s in each.values()]
                forged = {n: self.chance.choice([os.urandom(64), *others]) for n in there}
                lacks = len(given) < self.terms.threshold
                self.reveal(number, there, forged | given if lacks else given)

    def joined(self, shares: Mapping[int, int]) -> bytes | None:
        """A secret from all shares of it that the server holds, or None."""
        try:
            return joined_secret(shares, weights_at_zero(shares)) if shares else None
        except SecureSumError:
            return None

    def opened(self) -> Words | None:
        """The target's vector, if the server can take all masks off it."""
        target, seed = self.target, self.joined(self.seeds[self.target])
        if target not in self.masked or seed is None:
            return None
        found, mine = self.masked[target] - expand_seed(seed, 3), self.joined(self.keys[target])
        for other in self.peers[target]:
            pair, theirs = (target, other), self.joined(self.keys[other])
            if other in self.own_keys or theirs:
                key = self.own_keys.get(other) or X25519PrivateKey.from_private_bytes(theirs)
                known = mask_seed(key, self.adverts[target].mask, self.terms, pair)
            elif mine:
                key = X25519PrivateKey.from_private_bytes(mine)
                known = mask_seed(key, self.adverts[other].mask, self.terms, pair)
            else:
                return None
            mask = expand_seed(known, 3)
            found = found - mask if target < other else found + mask
        return found


def words(chance: random.Random, length: int) -> Words:
    """A vector of random words."""
    drawn = [chance.getrandbits(32) for _ in range(length)]
    return np.array(drawn, dtype=np.uint32)


def ghosts(run: Lying) -> Words | None:
    """Among those whose vectors arrived are numbers that nobody has."""
    run.share()
    run.mask()
    there = {run.target} | set(range(100, 100 + run.terms.threshold))
    run.finish(dict.fromkeys(run.honest, there))
    return run.opened()


def few_senders(run: Lying) -> Words | None:
    """The target is handed the shares of the server's own clients alone, and so masks little."""
    run.share()
    run.mask({run.target: set(run.own)})
    run.finish({n: set(run.members) for n in run.honest})
    return run.opened()


def threshold_of_one(run: Lying) -> Words | None:
    """The server says that one answer is enough, for a list of the target alone."""
    try:
        Terms(run.terms.run, 1, 3, run.terms.directory)
    except ValueError as refusal:
        run.refusals.append(str(refusal))
    run.share()
    run.mask()
    run.finish({n: {run.target} for n in run.honest})
    return run.opened()


def swapped_keys(run: Lying) -> Words | None:
    """The target is told keys of the server's for all others, whose letters the server writes."""
    fakes: dict[int, Member] = {}
    for number in run.members.keys() - {run.target}:
        identity = Identity()  # the server has the keys, but not the client's identity
        terms = Anything(run.terms.run, 1, 3, {number: identity.public})
        fakes[number] = Trusting(number, identity, terms)
        fakes[number].terms = run.terms
    told = {n: fake.advertise_keys() for n, fake in fakes.items()}
    mode = run.chance.randrange(3)
    for number, advert in told.items():
        stolen = run.adverts[number].signature if mode == 0 else os.urandom(64)
        told[number] = advert if mode == 2 else replace(advert, signature=stolen)
    told[run.target] = run.adverts[run.target]
    run.share({run.target: told})
    for number, fake in fakes.items():
        fake._adverts = told
        run.letters[number] = run.letters.get(number, {}) | {
            run.target: fake._sealed(run.target, bytes(2 * SHARE))
        }
        if run.target in run.letters:
            run.note(run.target, number, fake, run.letters[run.target][number])
    run.mask()
    run.own_keys |= {n: fake._mask_key for n, fake in fakes.items()}
    run.finish({run.target: set(run.members)})
    return run.opened()


def two_views(run: Lying) -> Words | None:
    """Some are told that the target is there and some that it is not; then the other way round."""
    run.share()
    run.mask()
    everyone = set(run.members)
    without, group = (
        everyone - {run.target},
        set(run.chance.sample(run.honest, len(run.honest) // 2)),
    )
    run.finish({n: everyone if n in group | {run.target} else without for n in run.honest})
    run.finish({n: without if n in group - {run.target} else everyone for n in run.honest})
    return run.opened()


def second_mask(run: Lying) -> Words | None:
    """The target masks two vectors; their difference is that of what it sent."""
    run.share()
    run.mask()
    other = words(run.chance, 3)
    run.secret = run.secret - other
    inbox = {n: text[run.target] for n, text in run.letters.items() if n != run.target}
    again = run.ask(run.target, "masked_input", inbox, other)
    return None if again is None else run.masked[run.target] - again


def equal_keys(run: Lying) -> Words | None:
    """Two clients have the same keys, so that one's masks take the other's off the target's."""
    others = sorted(run.members.keys() - {run.target})
    low, high = ([n for n in others if (n < run.target) == side] for side in (True, False))
    pairs = list(zip(low, high, strict=False)) or [(others[0], others[1])]
    told = dict(run.adverts)
    for one, two in pairs:
        copied = replace(run.adverts[two], mask=run.adverts[one].mask)
        if two in run.own:  # it may sign what it likes
            keys = copied.mask + copied.encryption
            signature = run.identities[two].sign(run.terms, two, "keys", keys)
            copied = replace(copied, signature=signature)
        told[two] = copied
    run.share({n: told | {n: run.adverts[n]} for n in run.honest})
    run.mask()
    run.finish({n: set(run.members) for n in run.honest})
    return run.opened()


def low_order(run: Lying) -> Words | None:
    """Keys with which everybody agrees on the same secret, signed where the server can sign."""
    told = dict(run.adverts)
    for number in run.members.keys() - {run.target}:
        weak = Advert(run.chance.choice(LOW_ORDER), run.adverts[number].encryption, b"")
        keys, signer = weak.mask + weak.encryption, run.identities[number]
        if number in run.own:
            told[number] = replace(weak, signature=signer.sign(run.terms, number, "keys", keys))
        elif not run.own:
            told[number] = replace(weak, signature=run.adverts[number].signature)
    run.share({n: told | {n: run.adverts[n]} for n in run.honest})
    run.mask()
    run.finish({n: set(run.members) for n in run.honest})
    return run.opened()


def replay(run: Lying) -> Words | None:
    """Keys of earlier runs, which the server knows since their clients had dropped out of these."""
    before = type(run.terms)(os.urandom(16), run.terms.threshold, 3, run.terms.directory)
    told, kind, whole = dict(run.adverts), type(run.members[1]), run.chance.random() < 0.5
    for number in run.members.keys() - {run.target}:
        old = kind(number, run.identities[number], before)
        advert = old.advertise_keys()
        run.own_keys[number] = old._mask_key
        signature = advert.signature if run.chance.random() < 0.5 else told[number].signature
        now = replace(told[number], mask=advert.mask, signature=signature)
        told[number] = advert if whole and kind is Member else now
    run.share({run.target: told})
    run.mask()
    run.finish({n: set(run.members) for n in run.honest})
    return run.opened()


ATTACKS: tuple[Callable[[Lying], Words | None], ...] = (
    ghosts,
    few_senders,
    threshold_of_one,
    swapped_keys,
    two_views,
    second_mask,
    equal_keys,
    low_order,
    replay,
)


def attempt(
    attack: Callable[[Lying], Words | None], seed: int, *, trusting: bool = False
) -> tuple[bool, list[str]]:
    """Whether an attack opens a vector, and why honest members stopped."""
    least = 1 if attack is threshold_of_one else None
    run = Lying(random.Random(f"{attack.__name__} {seed}"), trusting=trusting, least=least)
    found = attack(run)
    return found is not None and np.array_equal(found, run.secret), run.refusals


def dropped_out(seed: int) -> str:
    """A run in which clients drop out at random: 'exact', 'aborted', or else 'wrong'."""
    chance = random.Random(seed)
    clients = chance.randint(2, 12)
    needed = chance.randint(least_threshold(clients), clients)
    vectors = {number: words(chance, 3) for number in range(1, clients + 1)}
    rate = chance.choice((0.02, 0.08, 0.25))
    before = {n for n in vectors if chance.random() < rate}
    after = {n for n in vectors if chance.random() < rate} - before
    there = vectors.keys() - before
    opens = len(there - after) >= needed
    try:
        found = secure_sum(vectors, needed, dropped_before=before, dropped_after=after).total
    except SecureSumError:
        return "wrong" if opens else "aborted"
    right = sum((vectors[n] for n in there), np.zeros(3, np.uint32))
    return "exact" if opens and np.array_equal(found, right) else "wrong"


def seconds(clients: int, length: int) -> tuple[float, float]:
    """Seconds of the server's part of a run, and of one client's, where a fifth drop out."""
    chance, spent = np.random.default_rng(0), {"server": 0.0, "client": 0.0}

    def timed(who: str, work: Callable[..., Any], *told: Any) -> Any:
        began = time.process_time()  # of one core, whatever else the machine does
        answer = work(*told)
        spent[who] += time.process_time() - began
        return answer

    identities = {number: Identity() for number in range(1, clients + 1)}
    directory = {number: identity.public for number, identity in identities.items()}
    terms = Terms(os.urandom(16), least_threshold(clients), length, directory)
    vectors = {n: chance.integers(0, 2**32, length, dtype=np.uint32) for n in identities}
    members = {n: timed("client", Member, n, own, terms) for n, own in identities.items()}
    server, there = Server(terms), list(members)[clients // 5 :]
    sent = {n: timed("client", member.advertise_keys) for n, member in members.items()}
    adverts = timed("server", server.keys, sent)
    texts = {n: timed("client", member.share_keys, adverts) for n, member in members.items()}
    letters = timed("server", server.letters, texts)
    masked = {n: timed("client", members[n].masked_input, letters[n], vectors[n]) for n in there}
    arrived = timed("server", server.inputs, masked)
    signed = {n: timed("client", members[n].consistency_check, arrived) for n in there}
    signatures = timed("server", server.signatures, signed)
    shares = {n: timed("client", members[n].unmasking, signatures) for n in there}
    total = timed("server", server.total, shares)
    assert np.array_equal(total, sum((vectors[n] for n in there), np.zeros(length, np.uint32)))
    return spent["server"], spent["client"] / clients


def main() -> None:
    """Try all attacks and drop-outs, time the server, and record what they came to."""
    quick = is_quick()
    tries = 10 if quick else 125
    found = [attempt(attack, seed) for attack in ATTACKS for seed in range(tries)]
    assert all(refusals for _, refusals in found), "an attack that nobody noticed"
    runs = [dropped_out(seed) for seed in range(100 if quick else 1000)]
    length, note = (1000, ", quick") if quick else (100_000, "")
    taken = [seconds(50, length) for _ in range(1 if quick else 5)]
    about = f"{len(ATTACKS)} attacks of a lying server, 3 to 12 clients, some its own{note}"
    case = f"50 clients, {length:,} numbers, 10 dropped out, one core{note}"
    lower = {"higher": False, "seeds": 1}
    record(
        "reliability",
        {
            "secagg_attempts": entry(len(found), "attacks", None, higher=True, seeds=1, note=about),
            "secagg_opened": entry(
                sum(opened for opened, _ in found), "vectors", 0, **lower, note=about
            ),
            "secagg_dropout_runs": entry(
                len(runs),
                "runs",
                None,
                higher=True,
                seeds=1,
                note=f"{runs.count('exact')} exact, {runs.count('aborted')} aborted{note}",
            ),
            "secagg_dropout_wrong": entry(
                runs.count("wrong"), "runs", 0, **lower, note=f"neither exact nor aborted{note}"
            ),
            "secagg_active_server_s_50x100k": entry(
                median(server for server, _ in taken), "s", 2, **lower, note=case
            ),
            "secagg_active_client_s_50x100k": entry(
                median(client for _, client in taken),
                "s",
                None,
                **lower,
                note=f"of one client; {case}",
            ),
        },
        quick,
    )


if __name__ == "__main__":
    main()
