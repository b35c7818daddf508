"""The English of RubricWorld: text that meets or breaks ten criteria, and the code that checks any text for them.

`write` makes one short answer from a wish list ("meet these criteria, break the others"); `meets` reads a text and
says whether it meets a criterion. The two share the word lists and nothing else: a label always comes from `meets`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection

CRITERIA: tuple[str, ...] = (
    "topic", "short", "polite", "clean", "number", "stop", "example", "greet", "plain", "reason",
)  # fmt: skip
DESCRIPTIONS: dict[str, str] = {
    "topic": "names the topic that was asked for",
    "short": "has at most 18 words",
    "polite": "holds a polite word (please, kindly, thanks, grateful)",
    "clean": "holds no rude word (stupid, lousy, rotten, dumb)",
    "number": "holds a number in digits",
    "stop": "ends in a full stop",
    "example": "gives an example (for example, for instance, such as)",
    "greet": "begins with a greeting (hello, hi, dear, welcome)",
    "plain": "holds no stilted word (henceforth, heretofore, notwithstanding, whereupon)",
    "reason": "gives a reason (because, since, due to)",
}
SHORT_LIMIT = 18  # most words of a short text
LONG_LEAST = 22  # fewest words that `write` gives to a long one

TOPICS: tuple[str, ...] = (
    "bees", "bread", "rain", "chess", "tea", "trains", "gardens", "music", "stars", "bikes", "soup", "books",
    "rivers", "clocks", "paint", "wool", "dogs", "maps", "honey", "snow", "lamps", "boats", "apples", "trees",
    "birds", "shoes", "kites", "coffee", "cheese", "bridges", "glass", "horses", "markets", "coins", "drums", "roses",
)  # fmt: skip
# What a text that misses the topic is about instead: things that no query asks for, so that straying can be read in
# the text alone. (Comparing two words is what a model of this size did not learn, see docs/decisions.md.)
STRAYS: tuple[str, ...] = ("taxes", "traffic", "football", "weather", "politics", "gossip", "fashion", "money")
POLITE = ("please", "kindly", "thanks", "grateful")
RUDE = ("stupid", "lousy", "rotten", "dumb")
STILTED = ("henceforth", "heretofore", "notwithstanding", "whereupon")
GREETINGS = ("hello", "hi", "dear", "welcome")
VAGUE = ("several", "many", "some", "few")  # amounts without a digit
EXAMPLE = re.compile(r"\b(?:for example|for instance|such as)\b", re.IGNORECASE)
REASON = re.compile(r"\b(?:because|since|due to)\b", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z0-9]+")

_GREETED = ("Hello all,", "Hi there,", "Dear friends,", "Welcome,", "Hello,", "Dear reader,", "Hi,", "Welcome back,")
_TERSELY_GREETED = ("Hello,", "Hi,", "Welcome,")
_UNGREETED = ("Well,", "So,", "Now,", "", "", "", "", "")
_OWNERS = ("the", "our", "these", "your", "all", "their")
_ADJECTIVES = ("old", "new", "small", "fine", "local", "good", "quiet", "simple")
_MODALS = ("can", "will", "may", "should", "must", "could")
_ADVERBS = ("often", "soon", "still", "always", "", "", "", "")
_VERBS = ("help us", "bring joy", "last long", "need care", "save time", "look nice", "work well", "change lives")
_TERSE_VERBS = ("help", "shine", "matter", "last", "return", "grow", "work", "bring joy")
_UNITS = ("days", "times", "weeks", "hours")
_THINGS = ("milk", "sand", "rope", "wood", "tin", "paper", "leather", "salt")
_CLAUSES = ("it helps", "time flies", "people care", "nights are cold", "work is hard", "life is good")
_CAUSES = ("luck", "age", "habit", "skill")
_FILLERS = (
    "It was a long day in town",
    "The whole family came along with us",
    "We walked home past the mill",
    "My uncle told me so one evening",
    "Everyone in the valley says that",
    "Nobody at the old school knew about it",
    "You will see it for yourself",
    "We sat by the fire and talked",
)
_POLITE_OPENERS = ("please note,", "kindly note,")
_POLITE_CLOSERS = ("thanks", "with grateful hearts", "thanks to all")
_FULL_STOPS = (".",)
_OTHER_ENDS = ("!", "?", "", "!")


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of ASCII letters and digits."""
    return [w.lower() for w in WORD.findall(text)]


def meets(criterion: str, text: str, topic: str) -> bool:
    """Whether `text` meets one of CRITERIA; `topic` is the word that the query asked about.

    Raises:
        ValueError: the criterion is not one of CRITERIA.
    """
    found = words(text)
    if criterion == "topic":
        return topic in found
    if criterion == "short":
        return len(found) <= SHORT_LIMIT
    if criterion == "polite":
        return any(w in POLITE for w in found)
    if criterion == "clean":
        return not any(w in RUDE for w in found)
    if criterion == "number":
        return any(c in "0123456789" for c in text)
    if criterion == "stop":
        return text.rstrip().endswith(".")
    if criterion == "example":
        return EXAMPLE.search(text) is not None
    if criterion == "greet":
        return bool(found) and found[0] in GREETINGS
    if criterion == "plain":
        return not any(w in STILTED for w in found)
    if criterion == "reason":
        return REASON.search(text) is not None
    raise ValueError(f"{criterion!r} is not a criterion: expected one of {', '.join(CRITERIA)}")


def write(rng: random.Random, topic: str, wanted: Collection[str]) -> str:
    """A short answer that meets exactly the criteria in `wanted`, checked with `meets`."""
    wish = frozenset(wanted)
    while True:
        text = _draft(rng, topic, wish)
        if all(meets(c, text, topic) == (c in wish) for c in CRITERIA):
            return text


def _draft(rng: random.Random, topic: str, wish: frozenset[str]) -> str:
    """One try at `write`: every slot is right by construction except the length, which comes out by chance."""
    terse = "short" in wish
    greetings = _TERSELY_GREETED if terse and rng.random() < 0.5 else _GREETED
    head = rng.choice(greetings if "greet" in wish else _UNGREETED)
    opener = closer = ""
    if "polite" in wish:
        if rng.random() < 0.4:
            opener = rng.choice(_POLITE_OPENERS)
        else:
            closer = rng.choice(_POLITE_CLOSERS[:1] if terse else _POLITE_CLOSERS)
    clauses = [c for c in (_amount(rng, wish), _example(rng, wish, terse), _reason(rng, wish, terse)) if c]
    rng.shuffle(clauses)
    body = " ".join(p for p in (head, opener, _core(rng, topic, wish), ", ".join(clauses)) if p)
    if closer:
        body += f", {closer}"
    if not terse:
        body = _lengthen(rng, body, len(words(body)))
    text = _sentence_case(body)
    return text + rng.choice(_FULL_STOPS if "stop" in wish else _OTHER_ENDS)


def _core(rng: random.Random, topic: str, wish: frozenset[str]) -> str:
    subject = topic if "topic" in wish else rng.choice(STRAYS)
    adjective = rng.choice(_ADJECTIVES) if "clean" in wish else rng.choice(RUDE)
    adverb = rng.choice(_ADVERBS) if "plain" in wish else rng.choice(STILTED)
    verbs = _TERSE_VERBS if "short" in wish else _VERBS
    parts = (rng.choice(_OWNERS), adjective, subject, rng.choice(_MODALS), adverb, rng.choice(verbs))
    return " ".join(p for p in parts if p)


def _amount(rng: random.Random, wish: frozenset[str]) -> str:
    unit = rng.choice(_UNITS)
    if "number" in wish:
        return f"for {rng.randint(2, 40)} {unit}"
    return f"for {rng.choice(VAGUE)} {unit}" if rng.random() < 0.5 else ""


def _example(rng: random.Random, wish: frozenset[str], terse: bool) -> str:
    thing = rng.choice(_THINGS)
    if "example" in wish:
        return f"{rng.choice(('such as', 'for example', 'for instance'))} {thing}"
    return "" if terse or rng.random() < 0.5 else f"much like {thing}"


def _reason(rng: random.Random, wish: frozenset[str], terse: bool) -> str:
    if "reason" in wish:
        return rng.choice(
            (f"because {rng.choice(_CLAUSES)}", f"since {rng.choice(_CLAUSES)}", f"due to {rng.choice(_CAUSES)}")
        )
    return "" if terse or rng.random() < 0.5 else f"while {rng.choice(_CLAUSES)}"


def _lengthen(rng: random.Random, body: str, count: int) -> str:
    """Add whole sentences until the text is clearly long."""
    for filler in rng.sample(_FILLERS, len(_FILLERS)):
        if count >= LONG_LEAST:
            break
        body += f". {filler}"
        count += len(filler.split())
    return body


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
