"""Quantities: the computation graph behind a problem, its equations and its shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

APPLY: dict[str, Callable[[int, int], int]] = {
    "+": int.__add__,
    "-": int.__sub__,
    "*": int.__mul__,
    "/": int.__floordiv__,
}
LATER_STEP = 0.3  # of several operations that are ready, how often the first one is passed over


@dataclass(eq=False, slots=True)  # two equal quantities are still two steps
class Quantity:
    """A given number (no operator), or an operation on two quantities; a graph, for one may be used twice."""

    value: int
    text: str = ""  # the expression, as arithmetic writes it
    operator: str = ""
    left: Quantity | None = None
    right: Quantity | None = None
    owner: int = -1  # the person of a story who has this much


def combine(operator: str, left: Quantity, right: Quantity, text: str = "") -> Quantity:
    """The operation on two quantities."""
    return Quantity(APPLY[operator](left.value, right.value), text, operator, left, right)


def operations(root: Quantity) -> list[Quantity]:
    """The operations below and including the root, each once, operands before their users."""
    found: list[Quantity] = []
    seen: set[int] = set()

    def visit(node: Quantity) -> None:
        if node.left is None or node.right is None or id(node) in seen:
            return
        seen.add(id(node))
        visit(node.left)
        visit(node.right)
        found.append(node)

    visit(root)
    return found


def random_order(root: Quantity, rng: random.Random) -> list[Quantity]:
    """The operations in a random order that knows the operands of each; reading order is likeliest."""
    waiting = operations(root)
    pending = {id(node) for node in waiting}
    order: list[Quantity] = []
    while waiting:
        ready = [node for node in waiting if id(node.left) not in pending and id(node.right) not in pending]
        choice = 0
        while choice < len(ready) - 1 and rng.random() < LATER_STEP:
            choice += 1
        node = ready[choice]
        waiting.remove(node)
        pending.remove(id(node))
        order.append(node)
    return order


def equation(node: Quantity) -> str:
    """`46-7=39`."""
    assert node.left is not None and node.right is not None, "a given number is no equation"
    return f"{node.left.value}{node.operator}{node.right.value}={node.value}"


def graph_signature(root: Quantity) -> str:
    """The shape of the computation with every given number masked: `((n*n)+n)`.

    Operands of sums and products are sorted, so that reading order makes no new graph.
    """
    if root.left is None or root.right is None:
        return "n"
    left, right = graph_signature(root.left), graph_signature(root.right)
    if root.operator in "+*" and left > right:
        left, right = right, left
    return f"({left}{root.operator}{right})"
