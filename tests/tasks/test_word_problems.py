"""Word problems: answers that follow from the text, many graphs, limits, and a tail of rare tokens."""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest

from drpo_bench.task_configs import WordProblemsConfig
from drpo_bench.tasks import Problem, make_task
from drpo_bench.tasks.base import problem_rng
from drpo_bench.tasks.quantities import Quantity, combine, graph_signature, operations, random_order
from drpo_bench.tasks.recipes import CHANGES, OPENINGS, Impossible, Numbers, steps_of
from drpo_bench.tasks.solution_words import ADVERBS, CONNECTIVES, NOUNS, OPENERS, VERBS
from drpo_bench.tasks.story import Sentence, Story, draw_story
from drpo_bench.tasks.story_words import ITEM_THEMES, plural
from drpo_bench.tasks.templates import KINDS
from drpo_bench.tasks.word_problems import Cast, solve, tell

SPOKEN = {"twice": 2, "half": 2} | {"three times": 3, "four times": 4, "five times": 5}
SPOKEN |= {"a third": 3, "a quarter": 4, "a fifth": 5, "a tenth": 10, "50%": 2, "25%": 4, "20%": 5, "10%": 10}
STEP = re.compile(r"(\w+) we (\w+) (\w+) (?:the|\w+'s) (\w+): (\d+)([-+*/])(\d+)=(\d+)")
CONFIGS = [
    WordProblemsConfig(),
    WordProblemsConfig(max_number=20),
    WordProblemsConfig(min_steps=2, max_steps=2, max_number=100, distractors=1.0),
    WordProblemsConfig(min_steps=6, max_steps=6, distractors=0.0),
]
IDS = ["default", "small", "two_steps", "six_steps"]


@cache
def draw(config: WordProblemsConfig, count: int = 400) -> list[Problem]:
    task = make_task(config)
    return [task.problem("warmstart", 0, index) for index in range(count)]


def numbers_of(prompt: str) -> Counter[int]:
    """Every number that a reader finds in the text, spoken ones too."""
    found: Counter[int] = Counter()
    for phrase, number in SPOKEN.items():
        found[number] += len(re.findall(rf"(?<!\w){phrase}(?!\w)", prompt))
        prompt = re.sub(rf"(?<!\w){phrase}(?!\w)", "", prompt)
    found.update(int(digits) for digits in re.findall(r"\d+", prompt))
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_the_answer_follows_from_the_equations_and_these_from_the_text(config: WordProblemsConfig) -> None:
    for problem in draw(config):
        steps = STEP.findall(problem.solution)
        assert len(steps) == problem.solution.count("=")
        assert config.min_steps <= len(steps) <= config.max_steps
        given, results = numbers_of(problem.prompt), set()
        for *_, left, sign, right, result in steps:
            x, y = int(left), int(right)
            assert {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[sign] == int(result), problem
            assert 1 <= int(result) <= config.max_number
            for operand in (x, y):
                assert operand in results or operand in given, problem
            results.add(int(result))
        assert steps[-1][-1] == problem.answer


@pytest.mark.parametrize("config", [WordProblemsConfig(distractors=0.0), CONFIGS[3]], ids=["default", "six_steps"])
def test_without_distractors_every_number_of_the_text_is_used(config: WordProblemsConfig) -> None:
    for problem in draw(config):
        used = {int(operand) for step in STEP.findall(problem.solution) for operand in (step[4], step[6])}
        assert {number for number, count in numbers_of(problem.prompt).items() if count} <= used, problem


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_no_number_exceeds_the_limit(config: WordProblemsConfig) -> None:
    for problem in draw(config):
        numbers = [int(digits) for digits in re.findall(r"\d+", problem.prompt + problem.solution)]
        assert max(numbers) <= config.max_number


def test_distractors() -> None:
    share = []
    for distractors in (0.0, 0.5, 1.0):
        problems = draw(WordProblemsConfig(distractors=distractors))
        hits = [
            re.search(r"years old|minutes from|hours a day\.|people at|also has| of \w+ has \d", p.prompt)
            for p in problems
        ]
        share.append(sum(hit is not None for hit in hits) / len(problems))
    assert share[0] == 0
    assert abs(share[1] - 0.5) < 0.1
    assert share[2] == 1


def test_number_of_distinct_graphs() -> None:
    config = WordProblemsConfig()
    stories = [draw_story(config, problem_rng("word_problems", "train", 0, index)) for index in range(2000)]
    signatures = Counter(graph_signature(story.root) for story in stories)
    assert len(signatures) >= 100  # 25 are asked for
    assert sum(count >= 5 for count in signatures.values()) >= 40  # and not only as curiosities
    steps = Counter(len(operations(story.root)) for story in stories)
    assert set(steps) == {2, 3, 4, 5, 6}
    assert min(steps.values()) > 100


def test_signature_masks_numbers_and_reading_order_only() -> None:
    def n(value: int) -> Quantity:
        return Quantity(value)

    packs = combine("+", combine("*", n(4), n(12)), n(3))
    assert graph_signature(packs) == "((n*n)+n)"
    assert graph_signature(combine("+", n(9), combine("*", n(2), n(5)))) == "((n*n)+n)"
    assert graph_signature(combine("-", n(9), combine("*", n(2), n(4)))) == "(n-(n*n))"
    assert graph_signature(combine("-", combine("*", n(2), n(4)), n(1))) == "((n*n)-n)"


def test_a_shared_quantity_is_one_step_and_independent_ones_change_places() -> None:
    left, right = combine("+", Quantity(1), Quantity(2)), combine("*", Quantity(4), Quantity(5))
    root = combine("+", combine("-", right, left), left)  # (4*5 - (1+2)) + (1+2)
    assert len(operations(root)) == 4
    orders = Counter(tuple(node.value for node in random_order(root, random.Random(seed))) for seed in range(1000))
    assert set(orders) == {(20, 3, 17, 20), (3, 20, 17, 20)}
    assert 0.6 < orders[20, 3, 17, 20] / 1000 < 0.8  # 0.7 by construction


def test_a_story_told_by_hand() -> None:
    bought = combine("*", Quantity(4), Quantity(12))
    bought.owner = 0
    rest = combine("-", bought, Quantity(10))
    rest.owner = 0
    items = KINDS["items"]
    story = Story(
        combine("+", rest, Quantity(5)),
        ITEM_THEMES[0],
        [
            Sentence(items.openings["n * k"][0], {"n": 4, "k": 12}, 0),
            Sentence("{S} {drops} {k} of the {items}.", {"k": 10, "drops": "eats"}, 0, pronoun=True),
            Sentence(items.openings["k"][0], {"k": 5}, 1),
            Sentence(items.total, {}, 0),
        ],
        [0, 1],
    )
    things = {
        "item": "peach",
        "items": plural("peach"),
        "box": "box",
        "boxes": plural("box"),
        "everyone": "Mia and Leo",
    }
    cast = Cast(["Mia", "Leo", "Ava"], [True, False, True], things)
    assert tell(story, cast) == (
        "Mia buys 4 boxes of peaches with 12 peaches in each box. She eats 10 of the peaches. Leo has 5 peaches. "
        "How many peaches do Mia and Leo have altogether?\n"
    )
    solution = solve(story, cast, random.Random(0))
    assert [step[4:] for step in STEP.findall(solution)] == [
        ("4", "*", "12", "48"),
        ("48", "-", "10", "38"),
        ("38", "+", "5", "43"),
    ]
    assert re.findall(r"(Mia's|the) \w+:", solution) == ["Mia's", "Mia's", "the"]
    assert solution.endswith(".\n#### 43")


@pytest.mark.parametrize("formula", [*OPENINGS, *CHANGES])
def test_recipes_compute_their_formula_within_the_limit(formula: str) -> None:
    """The formula over the numbers that the sentence states is the value of the quantity."""
    for seed in range(200):
        rng = random.Random(seed)
        numbers, base = Numbers(rng, 100), Quantity(rng.choice((12, 20, 30, 60)))
        try:
            result, fields = OPENINGS[formula](numbers) if formula in OPENINGS else CHANGES[formula](numbers, base)
        except Impossible:
            continue
        values = {"x": base.value, **{name: value for name, value in fields.items() if isinstance(value, int)}}
        for name, field in (("t", "times"), ("d", "half")):
            if field in fields:
                said = str(fields[field])
                values[name] = SPOKEN[said] if said in SPOKEN else int(said.split()[0])
        assert eval(formula, {}, values) == result.value
        nodes = operations(result)
        assert len(nodes) == steps_of(formula)
        assert all(1 <= node.value <= 100 for node in nodes)
        assert all(value >= 2 for value in values.values())  # "2 apples", never "1 apples"


@pytest.mark.parametrize("limit", [20, 1000])
def test_divisions_are_exact_and_no_fitting_number_is_impossible(limit: int) -> None:
    for formula in ("x / d", "x / k", "x - x / d"):
        with pytest.raises(Impossible):
            CHANGES[formula](Numbers(random.Random(0), limit), Quantity(7))  # 7 has no divisor that is said
    with pytest.raises(Impossible):
        CHANGES["x + k"](Numbers(random.Random(0), limit), Quantity(limit))


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("apple", "apples"),
        ("peach", "peaches"),
        ("box", "boxes"),
        ("lily", "lilies"),
        ("day", "days"),
        ("quiz", "quizzes"),
    ],
)
def test_plural(singular: str, expected: str) -> None:
    assert plural(singular) == expected


def test_share_of_rare_tokens() -> None:
    """The grammar gives at least 7% of the solution's tokens a probability of at most 0.01."""
    task = make_task(WordProblemsConfig())
    tokenizer, rare, total = task.tokenizer(), 0, 0
    for problem in draw(WordProblemsConfig()):
        total += len(tokenizer.encode(problem.solution).ids) + 1
        for position, step in enumerate(STEP.findall(problem.solution)):
            lists = (CONNECTIVES if position else OPENERS, ADVERBS, VERBS, NOUNS)
            for words, word in zip(lists, step, strict=False):
                rank = words.words.index(word) + 1
                rare += 1 / (rank * sum(1 / other for other in range(1, len(words.words) + 1))) <= 0.01
    assert rare / total >= 0.07


def test_pronouns_stand_for_the_subject_of_the_sentence_before() -> None:
    for problem in draw(WordProblemsConfig()):
        sentences = re.split(r"(?<=[.?]) ", problem.prompt)
        assert not sentences[0].startswith(("He ", "She "))
        for before, sentence in pairwise(sentences):
            if sentence.startswith(("He ", "She ")):
                assert re.match(r"[A-Z][a-z]+ ", before)
                assert not before.startswith(("The ", "There ", "A ", "Each ", "By ", "Then ", "After ", "In ", "For "))


def test_steps_say_whose_amount_they_find() -> None:
    asked = 0
    for problem in draw(WordProblemsConfig()):
        owners = re.findall(r"(\w+)'s \w+:", problem.solution)
        assert all(owner in problem.prompt for owner in owners)
        question = re.search(r"How (?:many \w+|much money) does (\w+) have now\?", problem.prompt)
        if question:
            asked += 1
            assert re.search(rf" {question[1]}'s \w+: [^:]*$", problem.solution)
    assert asked > 70


def test_in_an_activity_nobody_who_was_compared_goes_on() -> None:
    compared = 0
    for problem in draw(WordProblemsConfig(distractors=0.0), 1500):
        sentences = re.split(r"(?<=[.?]) ", problem.prompt)
        for position, sentence in enumerate(sentences):
            match = re.match(
                r"(\w+) (?!has )\w+ [^.]* than (\w+)\.|(\w+) (?!has )\w+ [^.]* many \w+ as (\w+)\.", sentence
            )
            if match:
                compared += 1
                people = [name for name in match.groups() if name]
                for later in sentences[position + 1 : -1]:
                    assert not re.match(
                        rf"(?:In the morning, |After lunch, |After that, |The next week, )?{people[1]} ", later
                    )
    assert compared > 50
