"""Sentence templates of the stories, by kind of amount and by the formula that each of them states.

{S} is the subject (a name, or He or She), {N} the same person by name, {O} the other person, {he} and {his}
belong to {S}; {items}, {item}, {boxes}, {box} and verbs come from the theme, numbers from the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Templates = Mapping[str, tuple[str, ...]]  # formula of recipes.py -> sentences that say it


@dataclass(frozen=True)
class Kind:
    """Everything that can be said of one kind of amount."""

    openings: Templates  # the first thing that is known of somebody
    changes: Templates
    comparisons: Templates  # somebody else's amount, relative to one that is known
    conversions: Mapping[str, Templates]  # to the kind that the amount then is
    endings: Templates  # questions that take one more operation
    question: str
    total: str = ""
    difference: str = ""
    handover: str = ""
    cumulative: bool = False  # "Mia runs 5 laps" and "Mia runs 3 more": what was compared stays as it is


ITEMS = Kind(
    openings={
        "k": ("{S} has {k} {items}.", "{S} starts with {k} {items}.", "{S} owns {k} {items}."),
        "n * k": (
            "{S} buys {n} {boxes} of {items} with {k} {items} in each {box}.",
            "{S} receives {n} {boxes}, each holding {k} {items}.",
            "{S} {makes} {k} {items} an hour for {n} hours.",
            "{S} {makes} {k} {items} a day for {n} days.",
            "{S} lays out {items} in {n} rows of {k}.",
        ),
        "n * k + m": (
            "{S} has {n} {boxes} of {k} {items} and {m} loose {items}.",
            "{S} {makes} {k} {items} a day for {n} days and then {m} more.",
        ),
        "a + b": (
            "{S} has {a} {color} {items} and {b} {color2} {items}.",
            "{S} {makes} {a} {items} on {day} and {b} on {day2}.",
        ),
        "a + b + c": ("{S} {makes} {a} {items} on {day}, {b} on {day2} and {c} on {day3}.",),
        "a + a * t": (
            "{S} {makes} {a} {items} on {day} and {times} as many on {day2}.",
            "{S} has {a} {color} {items} and {times} as many {color2} {items}.",
        ),
        "a + a / d": ("{S} {makes} {a} {items} on {day} and {half} as many on {day2}.",),
    },
    changes={
        "x + k": (
            "{S} {gets} {k} more {items}.",
            "Then {N} {gets} another {k} {items}.",
            "A {friend} brings {N} {k} more {items}.",
        ),
        "x - k": (
            "{S} {drops} {k} of the {items}.",
            "Then {N} {drops} {k} {items}.",
            "{S} gives {k} {items} to a {friend}.",
        ),
        "x * t": ("By {season}, {N} has {times} as many {items} as before.",),
        "x / d": ("{S} keeps only {half} of the {items}.",),
        "x + n * k": (
            "{S} buys {n} more {boxes} of {k} {items} each.",
            "{S} {gets} {k} more {items} a day for {n} days.",
            "Each of {n} {friends} brings {N} {k} {items}.",
        ),
        "x - n * k": (
            "{S} gives {k} {items} to each of {n} {friends}.",
            "{S} {drops} {k} {items} a day for {n} days.",
            "{S} fills {n} {boxes} with {k} {items} each and gives them away.",
        ),
        "x - x / d": ("{S} {drops} {half} of the {items}.", "{S} gives {half} of the {items} to a {friend}."),
        "x + x / d": ("A {friend} gives {N} {half} as many {items} as {he} already has.",),
        "x + x * t": ("Later {N} {gets} {times} as many {items} as {he} already has.",),
    },
    comparisons={
        "x + k": ("{S} has {k} more {items} than {O}.",),
        "x - k": ("{S} has {k} fewer {items} than {O}.",),
        "x * t": ("{S} has {times} as many {items} as {O}.",),
        "x / d": ("{S} has {half} as many {items} as {O}.",),
        "x * t + k": ("{S} has {k} more than {times} as many {items} as {O}.",),
        "x * t - k": ("{S} has {k} fewer than {times} as many {items} as {O}.",),
        "x / d + k": ("{S} has {k} more than {half} as many {items} as {O}.",),
    },
    conversions={
        "money": {
            "x * k": ("{S} sells all of the {items} for ${k} each.",),
        },
        "boxes": {
            "x / k": ("{S} packs all of the {items} into {boxes} of {k}.",),
        },
    },
    endings={
        "x / k": (
            "{S} shares the {items} equally among {k} {friends}. How many {items} does each of them get?",
            "{S} can wrap {k} {items} an hour. How many hours does {N} need to wrap all of the {items}?",
            "{S} arranges all of the {items} in rows of {k}. How many rows are there?",
        ),
        "k - x": (
            "{S} needs {k} {items} for the {event}. How many more {items} does {N} need?",
            "{S} would like to have {k} {items}. How many {items} are missing?",
        ),
    },
    question="How many {items} does {N} have now?",
    total="How many {items} do {everyone} have altogether?",
    difference="How many more {items} does {N} have than {O}?",
    handover="{S} gives all of {his} {items} to {O}.",
)

BOXES = Kind(
    openings={},
    changes={
        "x + k": ("{S} buys {k} more {boxes} of {items}.",),
        "x - k": ("{S} gives {k} of the {boxes} to a {friend}.",),
        "x - x / d": ("{S} leaves {half} of the {boxes} at the {place}.",),
    },
    comparisons={},
    conversions={
        "money": {
            "x * k": ("{S} sells every {box} for ${k}.",),
        },
    },
    endings={
        "x / k": ("A cart carries {k} {boxes}. How many trips of the cart does it take to move all of them?",),
    },
    question="How many {boxes} does {N} have now?",
)

ACTIVITY = Kind(
    openings={
        "k": ("{S} {runs} {k} {items}.", "In the morning, {N} {runs} {k} {items}."),
        "n * k": ("{S} {runs} {k} {items} a day for {n} days.", "{S} {runs} {k} {items} a week for {n} weeks."),
        "a + b": ("{S} {runs} {a} {items} on {day} and {b} on {day2}.",),
        "a + b + c": ("{S} {runs} {a} {items} on {day}, {b} on {day2} and {c} on {day3}.",),
        "a + a * t": ("{S} {runs} {a} {items} on {day} and {times} as many on {day2}.",),
        "a + a / d": ("{S} {runs} {a} {items} on {day} and {half} as many on {day2}.",),
        "n * k + m": ("{S} {runs} {k} {items} a day for {n} days and {m} {items} on the day after.",),
    },
    changes={
        "x + k": ("{S} {runs} another {k} {items} later.", "After lunch, {N} {runs} {k} more {items}."),
        "x + n * k": ("After that, {N} {runs} {k} {items} a day for {n} more days.",),
        "x + x * t": ("The next week, {N} {runs} {times} as many {items} as {he} has so far.",),
        "x + x / d": ("The next week, {N} {runs} {half} as many {items} as {he} has so far.",),
    },
    comparisons={
        "x + k": ("{S} {runs} {k} more {items} than {O}.",),
        "x - k": ("{S} {runs} {k} fewer {items} than {O}.",),
        "x * t": ("{S} {runs} {times} as many {items} as {O}.",),
        "x / d": ("{S} {runs} {half} as many {items} as {O}.",),
        "x * t + k": ("{S} {runs} {k} more than {times} as many {items} as {O}.",),
        "x / d + k": ("{S} {runs} {k} more than {half} as many {items} as {O}.",),
    },
    conversions={
        "money": {
            "x * k": ("For a good cause, {N} gets ${k} for every {item}.", "{S} is paid ${k} for every {item}."),
        },
    },
    endings={
        "k - x": ("{S} has a goal of {k} {items}. How many {items} are left?",),
        "x * k": ("Every {item} takes {k} minutes. How many minutes does {N} need?",),
        "x / k": (
            "All of this takes {N} {k} weeks. How many {items} is that per week on average?",
            "{S} manages {k} {items} an hour. How many hours does all of it take?",
        ),
    },
    question="How many {items} is that for {N} in all?",
    total="How many {items} is that for {everyone} together?",
    cumulative=True,
    difference="How many more {items} is that for {N} than for {O}?",
)

MONEY = Kind(
    openings={
        "k": ("{S} has ${k}.", "{S} has saved ${k}."),
        "n * k": (
            "{S} earns ${k} an hour and works for {n} hours.",
            "{S} saves ${k} a week for {n} weeks.",
            "{S} earns ${k} a day by {chore} and does so for {n} days.",
        ),
        "a + b": (
            "{S} gets ${a} for {chore} and ${b} for some other chores.",
            "{S} earns ${a} on {day} and ${b} on {day2}.",
        ),
        "a + b + c": ("{S} earns ${a} on {day}, ${b} on {day2} and ${c} on {day3}.",),
        "a + a * t": ("{S} earns ${a} on {day} and {times} as much on {day2}.",),
        "a + a / d": ("{S} earns ${a} on {day} and {half} as much on {day2}.",),
        "n * k + m": ("{S} works for {n} hours at ${k} an hour and gets a tip of ${m}.",),
    },
    changes={
        "x + k": ("{S} gets ${k} from {his} {relative}.", "Then {N} earns ${k} by {chore}."),
        "x - k": ("{S} spends ${k} on a {thing}.", "{S} lends ${k} to a {friend}."),
        "x * t": ("By {season}, {N} has {times} as much money as before.",),
        "x / d": ("{S} keeps {half} of the money and donates the rest.",),
        "x + n * k": (
            "{S} earns another ${k} an hour for {n} hours of {chore}.",
            "Each of {n} {friends} gives {N} ${k}.",
        ),
        "x - n * k": ("{S} buys {n} {things} for ${k} each.", "{S} pays ${k} a week for {n} weeks of lessons."),
        "x - x / d": (
            "{S} spends {half} of the money on a {thing}.",
            "{S} donates {half} of the money to the {place}.",
        ),
        "x + x / d": ("A {friend} gives {N} {half} as much money as {he} already has.",),
        "x + x * t": ("Later {N} earns {times} as much money as {he} already has.",),
    },
    comparisons={
        "x + k": ("{S} has ${k} more than {O}.",),
        "x - k": ("{S} has ${k} less than {O}.",),
        "x * t": ("{S} has {times} as much money as {O}.",),
        "x / d": ("{S} has {half} as much money as {O}.",),
        "x * t + k": ("{S} has ${k} more than {times} as much money as {O}.",),
        "x * t - k": ("{S} has ${k} less than {times} as much money as {O}.",),
        "x / d + k": ("{S} has ${k} more than {half} as much money as {O}.",),
    },
    conversions={},
    endings={
        "x / k": (
            "{S} shares the money equally among {k} {friends}. How much money does each of them get?",
            "{S} buys {things} for ${k} each with all of the money. How many {things} does {N} get?",
        ),
        "k - x": ("{S} wants to buy a {thing} for ${k}. How much more money does {N} need?",),
    },
    question="How much money does {N} have now?",
    total="How much money do {everyone} have altogether?",
    difference="How much more money does {N} have than {O}?",
    handover="{S} gives all of {his} money to {O}.",
)

KINDS = {"items": ITEMS, "boxes": BOXES, "activity": ACTIVITY, "money": MONEY}
DISTRACTORS = (
    "{S} is {k} years old.",
    "{S} lives {k} minutes from the {place}.",
    "The {place} is open for {k} hours a day.",
    "There are {k} people at the {place}.",
    "A {friend} of {N} has {k} {others}.",
    "{S} also has {k} {others}.",
)


def all_templates() -> list[str]:
    """Every sentence of every kind."""
    found = list(DISTRACTORS)
    for kind in KINDS.values():
        found += [kind.question, kind.total, kind.difference, kind.handover]
        for templates in (
            kind.openings,
            kind.changes,
            kind.comparisons,
            kind.endings,
            *kind.conversions.values(),
        ):
            found += [sentence for sentences in templates.values() for sentence in sentences]
    return found
