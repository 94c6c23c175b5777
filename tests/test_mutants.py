"""Mutation test: each loss's formula is broken in many ways, and the checks must notice every one.

Checks that nothing can fail would prove nothing. Named mutants (scaled, wrong sign, other anchor) are wrappers; the
others are made from the source of the formula and of the helpers it calls: comparisons turned round (the mask on the
wrong side), + for -, * for /, constants moved, a term dropped, a detach removed.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from drpo_bench.losses import LOSSES
from drpo_bench.verify.checks import Check, check_closed_form, checks_of

SWAPPED_ANCHOR = {"mu": "old", "old": "mu", "prox": "mu"}
WITHOUT_ANCHOR = {"reinforce"}  # no ratio, so no anchor to swap


def scaled(formula):
    return lambda tokens, **params: 1.01 * formula(tokens, **params)


def wrong_sign(formula):
    return lambda tokens, **params: -formula(tokens, **params)


def other_anchor(formula):
    return lambda tokens, **params: formula(replace(tokens, anchor=SWAPPED_ANCHOR[tokens.anchor]), **params)


def noticed(loss_id: str, monkeypatch: pytest.MonkeyPatch, spec) -> bool:
    """Whether some check of the loss fails, or raises, with this row in the registry."""
    monkeypatch.setitem(LOSSES, loss_id, spec)
    try:
        return not check_closed_form(loss_id).ok or any(not check.ok for check in checks_of(loss_id))
    except (AssertionError, ValueError, RuntimeError, TypeError, KeyError, IndexError, OverflowError):
        return True


@pytest.mark.parametrize("loss_id", LOSSES)
@pytest.mark.parametrize("mutate", [scaled, wrong_sign, other_anchor])
def test_named_mutants_are_caught(loss_id, mutate, monkeypatch):
    if mutate is other_anchor and loss_id in WITHOUT_ANCHOR:
        return
    spec = LOSSES[loss_id]
    assert noticed(loss_id, monkeypatch, replace(spec, formula=mutate(spec.formula)))


FLIPPED = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def mutated_nodes(tree: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every single change to a function: what it is, and how it is made in place."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
            yield f"comparison turned round: {ast.unparse(node)}", lambda n=node: flip(n)
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield f"operator of {ast.unparse(node)}", lambda n=node: setattr(n, "op", OPERATORS[type(n.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield f"sign of {ast.unparse(node)}", lambda n=node: setattr(n, "op", ast.UAdd())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            yield f"negation of {ast.unparse(node)}", lambda n=node: setattr(n, "op", ast.UAdd())
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)
        ):
            yield (
                f"constant {node.value} of {ast.unparse(parents[node])}",
                lambda n=node: setattr(n, "value", n.value + 0.25),
            )
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "detach":
            yield f"detach of {ast.unparse(node)}", lambda n=node: setattr(n.func, "attr", "clone")


def flip(node: ast.Compare) -> None:
    node.ops[0] = FLIPPED[type(node.ops[0])]()


def functions_of(formula: Callable[..., object]) -> Iterator[Callable[..., object]]:
    """The formula and the helpers of the loss modules that it calls, each once."""
    seen: dict[str, Callable[..., object]] = {}
    waiting = [formula]
    while waiting:
        function = waiting.pop()
        if function.__name__ in seen:
            continue
        seen[function.__name__] = function
        for name in function.__code__.co_names:
            callee = function.__globals__.get(name)
            if inspect.isfunction(callee) and callee.__module__.startswith("drpo_bench.losses."):
                waiting.append(callee)
    yield from seen.values()


def source_mutants(formula: Callable[..., object]) -> Iterator[tuple[str, Callable[..., object]]]:
    """The formula with one change in itself or in a helper."""
    for function in functions_of(formula):
        if function.__name__ in ("token_keys", "mixed"):  # one hash is as random as another; order and seed are checked
            continue
        tree = without_annotations(function)
        for number, (what, _) in enumerate(mutated_nodes(tree)):
            changed = copy.deepcopy(tree)
            list(mutated_nodes(changed))[number][1]()
            yield f"{function.__name__}: {what}", rebuilt(formula, function.__name__, changed)


def without_annotations(function: Callable[..., object]) -> ast.Module:
    """The function's source without docstring and annotations, which are no code to mutate."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body, definition.returns = definition.body[1:], None
    for argument in [*definition.args.args, *definition.args.kwonlyargs]:
        argument.annotation = None
    return tree


def rebuilt(formula: Callable[..., object], name: str, tree: ast.Module) -> Callable[..., object]:
    """The formula in which the function `name` is the tree's; every function on the way is compiled again."""
    namespace: dict[str, object] = {}
    for function in functions_of(formula):
        namespace |= function.__globals__
    for function in functions_of(formula):
        code = tree if function.__name__ == name else ast.parse(textwrap.dedent(inspect.getsource(function)))
        exec(compile(ast.fix_missing_locations(code), f"<mutant of {name}>", "exec"), namespace)
    return namespace[formula.__name__]


# Changes that change no gradient anywhere, by loss: what survives must be these, each once.
ADDS_A_CONSTANT = (  # to the loss, whose gradient alone matters
    "dis_loss: constant 0.0 of torch.where(kept, -tokens.advantages * tokens.ratio(), 0.0)",
    "opsm_loss: constant 0.0 of loss.masked_fill((tokens.advantages < 0) & moved_away, 0.0)",
    "clip_cov_loss: constant 0.0 of loss.masked_fill(tokens.selected, 0.0)",
    "kl_cov_loss: constant 0.0 of torch.where(tokens.selected, coef * tokens.log_ratio().abs(), 0.0)",
    "ipo_loss: constant 0.0 of torch.where(kept, -tokens.advantages * tokens.ratio(), 0.0)",
    "neg_mask_loss: constant 0.0 of (-tokens.advantages * tokens.ratio()).masked_fill(masked, 0.0)",
    "mask_drpo_loss: constant 0.0 of torch.where(masked, penalty, 0.0)",
    "penalty_loss: operator of ratio - 1",  # k3's; those of tv and chi2 are caught
    "penalty_loss: constant 1 of ratio - 1",
)
SAME_SIGN = (  # of a product and of a quotient
    "cppo_loss: operator of tokens.advantages * shift",
    "mask_drpo_loss: operator of advantages * shift",
)
NEVER_READ = (
    "cppo_loss: constant 0 of tokens.by_rollout(torch.ones_like(shift)) > 0",  # 1 > 0.25 too
    "cppo_loss: constant 1 of min=1",  # a response of one token divides 0 by it
    "cppo_loss: constant 0.0 of torch.where(present, 1 - (1 - last_weight) * position / last, 0.0)",  # of the padding
)
EQUIVALENT = Counter((*ADDS_A_CONSTANT, *SAME_SIGN, *NEVER_READ))


@pytest.mark.parametrize("loss_id", LOSSES)
def test_mutants_of_the_source_are_caught(loss_id, monkeypatch):
    spec = LOSSES[loss_id]
    survivors = []
    mutants = [("formula", what, mutant) for what, mutant in source_mutants(spec.formula)]
    if spec.select is not None:
        mutants += [("select", what, mutant) for what, mutant in source_mutants(spec.select)]
    for field, what, mutant in mutants:
        with monkeypatch.context() as patch:
            if not noticed(loss_id, patch, replace(spec, **{field: mutant})):
                survivors.append(what)
    unexpected = Counter(survivors) - EQUIVALENT
    assert not unexpected, "\n".join(unexpected)
    assert mutants


def test_a_check_that_is_not_a_number_does_not_hold():
    assert not Check("x", float("nan"), 1.0).ok
