"""Grading: the number after the last `####`, compared exactly with the gold answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MARKER = "####"
WINDOW = 200  # characters read after the marker; a number that fills them is no answer

# Every quantifier runs over characters that nothing after it can match: linear time.
_NUMBER = re.compile(
    r"\s*(?:(?P<sign>[-+\u2212])\s*)?(?:\$\s*)?(?P<inner_sign>[-\u2212])?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?P<decimals>\.[0-9]+)?"
    r"(?:/(?P<denominator>[0-9]+))?"
)
# What must not follow: 12abc, 1.2.3, 1,2, 3/4/5, 12/x and 1e5 are not the numbers they start with.
_CONTINUED = re.compile(r"[^\W\d]|[.,]?\d|/")


@dataclass(frozen=True)
class Verdict:
    """What the grader says of a response."""

    status: Literal["correct", "wrong", "unparsable"]

    @property
    def reward(self) -> float:
        """1 for a correct answer, else 0."""
        return 1.0 if self.status == "correct" else 0.0


def grade_final_answer(answer: str, response: str) -> Verdict:
    """Compare the number after the last `####` of the response with the gold answer.

    Tolerated: `$`, thousands commas, spaces, a trailing period or unit, `%`, `.0`, the Unicode minus.
    """
    gold = parse_number(answer)
    if gold is None:
        raise ValueError(f"the gold answer {answer!r} is not a number")
    start = response.rfind(MARKER)
    found = None if start < 0 else parse_number(response[start + len(MARKER) :])
    if found is None:
        return Verdict("unparsable")
    return Verdict("correct" if found == gold else "wrong")


def parse_number(text: str) -> Fraction | None:
    """The number that the text starts with, exactly; None where it starts with none."""
    window = text[:WINDOW]
    match = _NUMBER.match(window)
    if match is None or match.end() == WINDOW or _CONTINUED.match(window, match.end()):
        return None
    if match["sign"] and match["inner_sign"]:
        return None
    value = Fraction((match["digits"].replace(",", "") or "0") + (match["decimals"] or ""))
    if match["denominator"] is not None:
        if int(match["denominator"]) == 0:
            return None
        value /= int(match["denominator"])
    negative = match["sign"] in ("-", "\u2212") or match["inner_sign"]
    return -value if negative else value
