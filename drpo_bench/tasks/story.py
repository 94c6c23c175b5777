"""Stories: a random computation graph told sentence by sentence, ending in a question about its root."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from string import Formatter

from drpo_bench.task_configs import WordProblemsConfig
from drpo_bench.tasks import recipes
from drpo_bench.tasks.quantities import Quantity, combine
from drpo_bench.tasks.recipes import Fields, Impossible, Numbers, steps_of
from drpo_bench.tasks.story_words import ACTIVITY_THEMES, DAYS, FILLERS, ITEM_THEMES, MONEY_THEME, Theme
from drpo_bench.tasks.templates import DISTRACTORS, KINDS, Kind, Templates

MOST_PEOPLE = 3
OPTIONS = {"change": 4, "compare": 3, "convert": 2, "end": 3, "meet": 1, "hand over": 1}  # relative weights
DIFFERENCES = 0.35  # share of the questions about two people that ask how much more one has
PRONOUNS = 0.6  # how often somebody who was just the subject becomes He or She


@dataclass(slots=True)
class Sentence:
    """A template, what fills it, and whom it is about."""

    template: str
    fields: Fields
    subject: int
    other: int = -1
    pronoun: bool = False


@dataclass(slots=True)
class Story:
    """What happens and what is asked; names and things are still open."""

    root: Quantity
    theme: Theme
    sentences: list[Sentence]  # the last one is the question
    asked: list[int]  # the people that the question is about


def draw_story(config: WordProblemsConfig, rng: random.Random) -> Story:
    """A story whose answer takes min_steps..max_steps operations."""
    while True:
        try:
            return _Teller(config, rng).tell(rng.randint(config.min_steps, config.max_steps))
        except Impossible:  # the numbers left no way on; rare
            continue


class _Teller:
    """The state of one story while it grows: who has what, and how many operations are left."""

    def __init__(self, config: WordProblemsConfig, rng: random.Random) -> None:
        self.config, self.rng = config, rng
        self.numbers = Numbers(rng, config.max_number)
        self.theme = rng.choice(rng.choice((ITEM_THEMES, ITEM_THEMES, ACTIVITY_THEMES, (MONEY_THEME,))))
        self.kind: Kind = KINDS[self.theme.kind]
        self.runs = rng.choice(self.theme.verbs.get("runs", ("",)))  # one activity a story
        self.previous = ""  # the last formula: no two sentences in a row say the same
        self.sentences: list[Sentence] = []
        self.holdings: dict[int, Quantity] = {}
        self.settled: set[int] = set()  # whose amount cannot change without making a comparison ambiguous
        self.people = 0
        self.left = 0

    def tell(self, steps: int) -> Story:
        """Grow the story until exactly the operations of the question are left."""
        self.left = steps
        self._meet(steps)
        ended = False
        while not ended and self.left > len(self.holdings) - 1:
            ended = self._continue()
        asked = list(self.holdings)
        root = self.holdings[asked[0]] if len(asked) == 1 else self._merge()
        if not ended and len(asked) == 1:
            self._say(self.kind.question, {}, asked[0])
        if self.rng.random() < self.config.distractors:
            self._distract()
        self._use_pronouns()
        return Story(root, self.theme, self.sentences, asked)

    def _continue(self) -> bool:
        """One more event; true where it was the question."""
        spare = self.left - (len(self.holdings) - 1)
        person = self.rng.choice(list(self.holdings))
        free = [other for other in self.holdings if other not in self.settled]
        alone, room = len(self.holdings) == 1, self.people < MOST_PEOPLE and spare >= 1
        allowed = {
            "change": bool(free),
            "compare": room and spare >= 2 and bool(self.kind.comparisons),
            "meet": room and bool(self.kind.openings),
            "hand over": not alone and bool(self.kind.handover),
            "convert": alone and bool(self.kind.conversions),
            "end": alone and spare == 1,
        }
        names = [name for name in OPTIONS if allowed[name]]
        if not names:
            raise Impossible
        option = self.rng.choices(names, [OPTIONS[name] for name in names])[0]
        if option == "meet":
            self._meet(spare - 1)
        elif option == "compare":
            newcomer = self._newcomer()
            self._apply(self.kind.comparisons, spare - 1, person, newcomer)
            if self.kind.cumulative:
                self.settled |= {person, newcomer}
        elif option == "hand over":
            self._hand_over()
        elif option == "convert":
            becomes = self.rng.choice(list(self.kind.conversions))
            self._apply(self.kind.conversions[becomes], spare, person, person)
            self.kind = KINDS[becomes]
        elif option == "end":
            self._apply(self.kind.endings, spare, person, person)
        else:
            person = self.rng.choice(free)
            self._apply(self.kind.changes, spare, person, person)
        return option == "end"

    def _newcomer(self) -> int:
        self.people += 1
        return self.people - 1

    def _meet(self, spare: int) -> None:
        """Somebody new, with an amount of their own."""
        formula = self._choose(self.kind.openings, spare)
        amount, fields = recipes.OPENINGS[formula](self.numbers)
        person = self._newcomer()
        self._say(self.rng.choice(self.kind.openings[formula]), fields, person)
        self._own(person, amount, steps_of(formula))

    def _apply(self, templates: Templates, spare: int, source: int, target: int) -> None:
        """What the target has follows from what the source has."""
        formula = self._choose(templates, spare)
        amount, fields = recipes.CHANGES[formula](self.numbers, self.holdings[source])
        self._say(self.rng.choice(templates[formula]), fields, target, source)
        self._own(target, amount, steps_of(formula))

    def _choose(self, templates: Templates, spare: int) -> str:
        fitting = [formula for formula in templates if steps_of(formula) <= spare and formula != self.previous]
        if not fitting:
            raise Impossible
        self.previous = self.rng.choice(fitting)
        return self.previous

    def _own(self, person: int, amount: Quantity, steps: int) -> None:
        amount.owner = person
        self.holdings[person] = amount
        self.left -= steps

    def _add(self, left: Quantity, right: Quantity) -> Quantity:
        if left.value + right.value > self.numbers.limit:
            raise Impossible
        return combine("+", left, right)

    def _hand_over(self) -> None:
        giver, taker = self.rng.sample(list(self.holdings), 2)
        both = self._add(self.holdings[taker], self.holdings.pop(giver))
        self._say(self.kind.handover, {}, giver, taker)
        self._own(taker, both, 1)

    def _merge(self) -> Quantity:
        """Ask about everybody: the total, or of two people the difference."""
        people = sorted(self.holdings, key=lambda person: -self.holdings[person].value)
        first, second, *_ = (self.holdings[person] for person in people)
        if len(people) == 2 and first.value > second.value and self.rng.random() < DIFFERENCES:
            self._say(self.kind.difference, {}, people[0], people[1])
            return combine("-", first, second)
        root, *others = self.holdings.values()
        for other in others:
            root = self._add(root, other)
        self._say(self.kind.total, {}, people[0])
        return root

    def _distract(self) -> None:
        """A fact with a number that nothing depends on, anywhere between the opening and the question."""
        age = self.rng.randint(recipes.SMALLEST + 4, 20)
        self._say(self.rng.choice(DISTRACTORS), {"k": age}, self.rng.randrange(self.people))
        self.sentences.insert(self.rng.randint(1, len(self.sentences) - 2), self.sentences.pop())

    def _say(self, template: str, fields: Fields, subject: int, other: int = -1) -> None:
        """Append a sentence; whatever is neither a number nor a name is drawn here."""
        named = fields_of(template)
        pair = self.rng.randrange(len(FILLERS["color"]))
        for name in named:
            words = self.theme.verbs.get(name) or FILLERS.get(name)
            if name.startswith("day"):
                fields[name] = DAYS[(pair + int(name[3:] or 1)) % len(DAYS)]
            elif name == "runs":
                fields[name] = self.runs
            elif words:
                fields[name] = words[pair] if name.startswith("color") else self.rng.choice(words)
        self.sentences.append(Sentence(template, fields, subject, other))

    def _use_pronouns(self) -> None:
        previous = -1
        for sentence in self.sentences:
            named = sentence.template.startswith("{S}")
            sentence.pronoun = named and sentence.subject == previous and self.rng.random() < PRONOUNS
            previous = sentence.subject if named else -1


@cache
def fields_of(template: str) -> tuple[str, ...]:
    """The names of the fields of a template."""
    return tuple(name for _, name, _, _ in Formatter().parse(template) if name)
