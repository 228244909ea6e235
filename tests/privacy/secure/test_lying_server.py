"""A server that lies opens nobody, and honest members say what was wrong."""

import os
import random
import re
from dataclasses import replace

import pytest
from secure_sums import ATTACKS, LOW_ORDER, attempt
from test_secure_sum import Run

from fedlab.core import ParameterError
from fedlab.privacy import Identity, Member, SecureSumError, Terms
from fedlab.privacy.secure import arrivals

SAID = {
    "ghosts": "cannot have sent a vector",
    "few_senders": "sent shares, fewer than the threshold",
    "threshold_of_one": "threshold=1: choose more than two thirds",
    "swapped_keys": "does not fit its keys: they were changed",
    "two_views": "signed the list, fewer than the threshold|does not fit its arrivals",
    "second_mask": "asked for masked_input, but consistency_check is next",
    "equal_keys": "does not fit its keys|have equal keys",
    "low_order": "is of low order|does not fit its keys",
    "replay": "does not fit its keys: .* another run's",
}
# members that check nothing still refuse weak keys, and bind masks to the pair
STAND_ANYWAY = ("equal_keys", "low_order")


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_opens_a_vector_and_all_are_named(attack):
    for seed in range(12):
        opened, refusals = attempt(attack, seed)
        assert not opened
        assert any(re_found(SAID[attack.__name__], refusal) for refusal in refusals), refusals


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.__name__ not in STAND_ANYWAY])
def test_every_attack_opens_members_that_check_nothing(attack):
    found = [attempt(attack, seed, trusting=True)[0] for seed in range(12)]
    # where all clients must answer, two need a share that the target never gives
    assert sum(found) >= (4 if attack.__name__ in ("ghosts", "two_views") else 12)


def re_found(pattern, text):
    """Whether a pattern is in a text."""
    return bool(re.search(pattern, text))


@pytest.mark.parametrize("weak", LOW_ORDER)
@pytest.mark.parametrize("field", ["mask", "encryption"])
def test_a_key_of_low_order_is_refused_whoever_signed_it(weak, field):
    run = Run()
    adverts = {n: member.advertise_keys() for n, member in run.members.items()}
    bad = replace(adverts[2], **{field: weak})
    signature = run.identities[2].sign(run.terms, 2, "keys", bad.mask + bad.encryption)
    with pytest.raises(SecureSumError, match="client 1: of client 2, a public key is of low order"):
        run.members[1].share_keys(adverts | {2: replace(bad, signature=signature)})


def test_an_equal_key_is_refused_whoever_signed_it_and_however_it_is_written():
    for change, message in (
        (lambda theirs: {"mask": theirs.mask}, "clients 1 and 2 have equal keys"),
        (lambda theirs: {"encryption": theirs.mask}, "clients 1 and 2 have equal keys"),
        (
            lambda theirs: {"mask": theirs.mask[:31] + bytes([theirs.mask[31] ^ 128])},
            "clients 1 and 2 have equal keys",
        ),
        (lambda theirs: {"mask": b"short"}, "of client 2, a public key is of low order, or not"),
    ):
        run = Run()
        adverts = {n: member.advertise_keys() for n, member in run.members.items()}
        bad = replace(adverts[2], **change(adverts[1]))
        signature = run.identities[2].sign(run.terms, 2, "keys", bad.mask + bad.encryption)
        with pytest.raises(SecureSumError, match=message):
            run.members[3].share_keys(adverts | {2: replace(bad, signature=signature)})


def test_keys_of_too_few_of_ghosts_or_without_ones_own_are_refused():
    for change, message in (
        (lambda a: {n: a[n] for n in (1, 2, 3)}, "3 clients sent keys, fewer than the threshold 4"),
        (lambda a: a | {9: a[2]}, r"\[9\] cannot have sent keys"),
        (lambda a: {n: a[n] for n in (2, 3, 4, 5)}, "its own keys are not among those"),
        (lambda a: a | {1: replace(a[1], mask=a[2].mask)}, "its own keys .* or were changed"),
        (lambda a: a | {2: a[3], 3: a[2]}, "the signature of client 2 does not fit its keys"),
        (lambda a: a | {2: replace(a[2], signature=b"")}, "the signature of client 2 does not fit"),
    ):
        run = Run()
        adverts = {n: member.advertise_keys() for n, member in run.members.items()}
        with pytest.raises(SecureSumError, match=message):
            run.members[1].share_keys(change(adverts))


def test_shares_of_ghosts_or_from_oneself_are_refused():
    for strange, message in ((9, r"\[9\] cannot have sent shares"), (1, "shares of its own")):
        run = Run()
        letters = run.shared()[1]
        with pytest.raises(SecureSumError, match=message):
            run.members[1].masked_input(letters | {strange: letters[2]}, run.vectors[1])


def test_lists_without_oneself_or_with_those_that_sent_no_shares_are_refused():
    for there, message in (
        ([1, 2, 3], "3 clients sent a vector, fewer than the threshold 5"),
        ([1, 2, 3, 1, 2], "3 clients sent a vector, fewer than the threshold 5"),
        ([1, 2, 3, 6], r"\[6\] cannot have sent a vector"),
    ):
        run = Run(6, 5)
        run.shared(without=[6])
        run.masked([1])
        with pytest.raises(SecureSumError, match=message):
            run.members[1].consistency_check(there)
    run = Run(6, 5)
    run.shared()
    run.masked([1])
    with pytest.raises(SecureSumError, match="it is told that its own vector did not arrive"):
        run.members[1].consistency_check([2, 3, 4, 5, 6])


def test_shares_are_given_only_for_t_signatures_of_the_same_list():
    for change, message in (
        (lambda own, other: {n: own[n] for n in (1, 2, 3)}, "3 clients signed the list, fewer"),
        (lambda own, other: own | {5: other[2]}, r"\[5\] cannot have signed the list"),
        (lambda own, other: own | {2: own[3]}, "of client 2 does not fit its arrivals"),
        (lambda own, other: own | {2: other[2]}, "of client 2 does not fit its arrivals"),
        (lambda own, other: own | {2: b"short"}, "of client 2 does not fit its arrivals"),
    ):
        run, there = Run(), [1, 2, 3, 4]
        run.shared()
        run.masked(there)
        own = run.signed(there)
        other = {
            n: run.identities[n].sign(run.terms, n, "arrivals", b"another list") for n in there
        }
        with pytest.raises(SecureSumError, match=message):
            run.members[1].unmasking(change(own, other))


def test_a_signature_of_keys_is_none_of_a_list():
    run = Run()
    advert, keys = run.members[2].advertise_keys(), "keys"
    run.terms.check(2, keys, advert.mask + advert.encryption, advert.signature)
    with pytest.raises(SecureSumError, match="does not fit its arrivals"):
        run.terms.check(2, "arrivals", advert.mask + advert.encryption, advert.signature)
    for change in ({"threshold": 5}, {"length": 5}, {"run": bytes(16)}):
        with pytest.raises(SecureSumError, match="does not fit its keys"):
            replace(run.terms, **change).check(
                2, keys, advert.mask + advert.encryption, advert.signature
            )


def test_a_client_is_in_a_run_once_and_under_its_own_number():
    run = Run()
    with pytest.raises(SecureSumError, match="this client has been in this run before"):
        Member(1, run.identities[1], run.terms)
    for number, identity in ((1, Identity()), (2, run.identities[3]), (9, run.identities[1])):
        with pytest.raises(SecureSumError, match="has another identity under this number"):
            Member(number, identity, run.terms)
    again = Terms(os.urandom(16), 4, 4, run.terms.directory)
    assert Member(1, run.identities[1], again).advertise_keys() is not None


def mangled(chance, message):
    """A message of the server's with something changed in it."""
    found = dict(message)
    where, other = chance.choice(list(found)), chance.choice(list(found))
    how = chance.randrange(5)
    if how == 0:
        del found[where]
    elif how == 1:
        found[where], found[other] = found[other], found[where]
    elif how == 2:
        found[chance.choice([0, -1, 99, 2**70, "1", None])] = found[where]
    elif isinstance(found[where], bytes):
        found[where] = mangled_bytes(chance, found[where])
    else:
        field = chance.choice(["mask", "encryption", "signature"])
        bad = mangled_bytes(chance, getattr(found[where], field))
        found[where] = replace(found[where], **{field: bad})
    return found


def mangled_bytes(chance, text):
    """Bytes that are longer, shorter, others, or changed in one place."""
    place = chance.randrange(len(text))
    changed = text[:place] + bytes([text[place] ^ 1 << chance.randrange(8)]) + text[place + 1 :]
    return chance.choice([text[:place], text + b"x", b"", bytes(len(text)), changed])


def test_mangled_messages_are_refused_with_a_reason_and_never_raise_anything_else():
    chance, said = random.Random(0), []
    for _ in range(100):
        run, spoiled, there = Run(), chance.randrange(4), [1, 2, 3, 4, 5]
        told = [
            lambda message, now=number == spoiled: mangled(chance, message) if now else message
            for number in range(4)
        ]
        adverts = {n: member.advertise_keys() for n, member in run.members.items()}
        one = run.members[1]
        try:
            texts = {n: m.share_keys(adverts) for n, m in run.members.items() if n > 1}
            one.share_keys(told[0](adverts))
            one.masked_input(told[1]({n: text[1] for n, text in texts.items()}), run.vectors[1])
            one.consistency_check(told[2](dict.fromkeys(there, b"here")))
            signed = {
                n: run.identities[n].sign(run.terms, n, "arrivals", arrivals(there)) for n in there
            }
            one.unmasking(told[3](signed))
        except SecureSumError as refusal:
            said.append(str(refusal))
            with pytest.raises(SecureSumError, match="it has stopped"):
                one.unmasking({})
    assert all(re_found("client 1: |signature of client", text) for text in said)
    assert len(said) > 50


ODD = [
    None,
    7,
    2.5,
    "text",
    b"bytes",
    object(),
    [1],
    [[1]],
    {1: None},
    {None: b""},
    {"1": 2},
    {-1: 0},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("step", ["share_keys", "masked_input", "consistency_check", "unmasking"])
def test_objects_of_wrong_types_are_refused_as_messages_are(step, odd):
    run = Run()
    adverts = {n: member.advertise_keys() for n, member in run.members.items()}
    mine = run.members[1]
    if step != "share_keys":
        letters = {n: member.share_keys(adverts) for n, member in run.members.items()}
    if step in ("consistency_check", "unmasking"):
        mine.masked_input({n: sent[1] for n, sent in letters.items() if n != 1}, run.vectors[1])
    if step == "unmasking":
        mine.consistency_check(run.members)
    given = (odd, run.vectors[1]) if step == "masked_input" else (odd,)
    with pytest.raises(SecureSumError, match="client 1: "):
        getattr(mine, step)(*given)
    with pytest.raises(SecureSumError, match="it has stopped"):
        getattr(mine, step)(*given)


@pytest.mark.parametrize(
    "part", [None, 7, "text", [1], object()], ids=lambda value: type(value).__name__
)
def test_messages_with_parts_of_wrong_types_are_refused(part):
    run = Run()
    adverts = {n: member.advertise_keys() for n, member in run.members.items()}
    letters = {n: member.share_keys(adverts) for n, member in run.members.items() if n > 2}
    for number, bad in ((1, part), (2, replace(adverts[3], mask=part))):
        with pytest.raises(SecureSumError, match=f"client {number}: "):
            run.members[number].share_keys(adverts | {3: bad})
    mine = run.members[3]
    sealed = {n: sent[3] for n, sent in letters.items() if n != 3}
    with pytest.raises(ParameterError, match="vector="):
        mine.masked_input(sealed, part)


def test_letters_of_wrong_types_are_refused_when_they_are_opened():
    run = Run()
    adverts = {n: member.advertise_keys() for n, member in run.members.items()}
    letters = {n: member.share_keys(adverts) for n, member in run.members.items()}
    mine = run.members[1]
    sealed = {n: sent[1] for n, sent in letters.items() if n != 1}
    mine.masked_input(sealed | {2: 7}, run.vectors[1])
    mine.consistency_check(run.members)
    signatures = {
        n: run.identities[n].sign(run.terms, n, "arrivals", arrivals(run.members)) for n in adverts
    }
    with pytest.raises(SecureSumError, match="client 1: "):
        mine.unmasking(signatures)
