"""Word problems: synthetic grade-school stories with a long-tailed vocabulary and worked solutions.

Every step of a solution draws its connective, adverb, verb and noun from Zipf-weighted lists, and
independent steps come in a random order: that is the tail of rare tokens.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drpo_bench.task_configs import WordProblemsConfig
from drpo_bench.tasks.base import Problem, Split, draw_in_split, problem_rng
from drpo_bench.tasks.grading import Verdict, grade_final_answer
from drpo_bench.tasks.quantities import equation, random_order
from drpo_bench.tasks.solution_words import ADVERBS, CONNECTIVES, NOUNS, OPENERS, VERBS
from drpo_bench.tasks.story import MOST_PEOPLE, Sentence, Story, draw_story
from drpo_bench.tasks.story_words import (
    BOYS,
    GIRLS,
    ITEM_THEMES,
    WORDS,
    plural,
)
from drpo_bench.tasks.templates import all_templates

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SIGNS = (" ", "\n", ". ", ".", "? ", "?", ", ", ": ", "$", "% ", "'s ", *"+-*/=", "\n#### ")


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays the people of a story, and with what things."""

    names: list[str]
    girls: list[bool]
    things: dict[str, str]


class WordProblems:
    """The task `word_problems`."""

    name = "word_problems"

    def __init__(self, config: WordProblemsConfig) -> None:
        self.config = config

    def problem(self, split: Split, seed: int, index: int) -> Problem:
        """The story number `index`, recast until it falls in the split, and one of its worked solutions."""
        rng = problem_rng(self.name, split, seed, index)
        story = draw_story(self.config, rng)

        def draw() -> tuple[Cast, str]:
            cast = draw_cast(story, rng)
            return cast, tell(story, cast)

        cast, prompt = draw_in_split(split, draw, lambda drawn: drawn[1])
        return Problem(prompt, str(story.root.value), solve(story, cast, rng))

    def tokenizer(self) -> Tokenizer:
        """Every word that a prompt or a solution can hold."""
        from drpo_bench.tasks.tokenization import word_tokenizer

        return word_tokenizer(vocabulary())

    def grade(self, problem: Problem, response: str) -> Verdict:
        """The number after the last `####`."""
        return grade_final_answer(problem.answer, response)


def draw_cast(story: Story, rng: random.Random) -> Cast:
    """Names, and the things that the story is about; `others` are different things, for distractors."""
    names = rng.sample(GIRLS + BOYS, MOST_PEOPLE)
    item, other = rng.choice(story.theme.items), rng.choice(rng.choice(ITEM_THEMES).items)
    while other == item:
        other = rng.choice(rng.choice(ITEM_THEMES).items)
    things = {"item": item, "items": plural(item), "others": plural(other)}
    if story.theme.boxes:
        box = rng.choice(story.theme.boxes)
        things |= {"box": box, "boxes": plural(box)}
    asked = [names[person] for person in story.asked]
    things["everyone"] = " and ".join([", ".join(asked[:-1]), asked[-1]]) if len(asked) > 1 else asked[0]
    return Cast(names, [name in GIRLS for name in names], things)


def tell(story: Story, cast: Cast) -> str:
    """The prompt: the story and its question."""
    return " ".join(_write(sentence, cast) for sentence in story.sentences) + "\n"


def _write(sentence: Sentence, cast: Cast) -> str:
    name, girl = cast.names[sentence.subject], cast.girls[sentence.subject]
    return sentence.template.format(
        S=("She" if girl else "He") if sentence.pronoun else name,
        N=name,
        O=cast.names[sentence.other],
        he="she" if girl else "he",
        his="her" if girl else "his",
        **cast.things,
        **sentence.fields,
    )


def solve(story: Story, cast: Cast, rng: random.Random) -> str:
    """A worked solution: every operation once, in an order in which its operands are known."""
    steps: list[str] = []
    for node in random_order(story.root, rng):
        opener = CONNECTIVES.draw(rng) if steps else OPENERS.draw(rng)
        owner = "the" if node.owner < 0 else f"{cast.names[node.owner]}'s"
        steps.append(f"{opener} we {ADVERBS.draw(rng)} {VERBS.draw(rng)} {owner} {NOUNS.draw(rng)}: {equation(node)}.")
    return f"{' '.join(steps)}\n#### {story.root.value}"


def vocabulary() -> list[str]:
    """Every piece of every prompt and solution; a word has its space with it unless a sign follows."""
    pieces: dict[str, None] = dict.fromkeys(SIGNS)
    for template in all_templates():
        pieces.update(dict.fromkeys(re.findall(r"[A-Za-z]+ ?", re.sub(r"\{\w+\}", "0", template))))
        for name, following in re.findall(r"\{(\w+)\}(.)", template):
            for word in WORDS.get(name, ()):
                for piece in re.findall(r"[A-Za-z]+ ?", word + following):
                    pieces[piece] = None
    for name in GIRLS + BOYS:  # "Mia has", "than Mia.", "Mia's"
        pieces.update({f"{name} ": None, name: None})
    for words in (("we", "the", "and"), OPENERS.words, CONNECTIVES.words, ADVERBS.words, VERBS.words):
        pieces.update({f"{word} ": None for word in words})
    return [*pieces, *NOUNS.words]
