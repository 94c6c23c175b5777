"""docs/adding-a-loss.md works: its code, taken from the page, passes every check, and its mutants are noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drpo_bench import loss_configs as configs
from drpo_bench.loss_configs import regularized as regularized_configs
from drpo_bench.losses import LOSSES, regularized
from drpo_bench.losses.listing import SECTIONS, describe
from drpo_bench.verify import closed_forms
from drpo_bench.verify.checks import checks_of
from drpo_bench.verify.variants import VARIANTS

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-loss.md"


@pytest.fixture
def huber(monkeypatch):
    """The page's loss, put where the page says."""
    function, config, row, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for code, module in ((function, regularized), (config, regularized_configs)):
        names = dict(vars(module))
        exec(code, names)
        for name in set(names) - set(vars(module)) - {"__builtins__"}:
            monkeypatch.setattr(module, name, names[name], raising=False)
    spec = eval("{" + row + "}", {"configs": configs, **vars(regularized), "LossSpec": type(LOSSES["pg_is"])})
    closed_form, variants = (part.strip() for part in test.split("..."))
    monkeypatch.setitem(LOSSES, "huber", spec["huber"])
    form = eval("{" + closed_form + "}", {"np": closed_forms.np})
    monkeypatch.setitem(closed_forms.CLOSED_FORMS, "huber", form["huber"])
    monkeypatch.setitem(VARIANTS, "huber", eval("{" + variants + "}")["huber"])
    return spec["huber"]


def test_the_example_passes_every_check_and_explains_itself(huber):
    failed = [check for check in checks_of("huber") if not check.ok]
    assert not failed
    doc = describe("huber")
    assert set(doc.sections) == set(SECTIONS)
    assert doc.parameters == {"coef": 1.0, "width": 0.5}
    assert not doc.zero_advantage_zero_gradient


def test_a_slip_in_the_example_is_noticed(huber, monkeypatch):
    from dataclasses import replace

    formula = huber.formula
    slip = replace(huber, formula=lambda tokens, coef, width: formula(tokens, coef=coef, width=1.1 * width))
    monkeypatch.setitem(LOSSES, "huber", slip)
    assert any(not check.ok for check in checks_of("huber"))
