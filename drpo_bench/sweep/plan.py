"""An experiment file and its sweep: TOML, `--set`, axes that multiply, include and exclude rules."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from drpo_bench.config import ExperimentInfo, RunConfig, canonical
from drpo_bench.errors import UserError, did_you_mean, explain
from drpo_bench.precision_configs import ALIASES
from drpo_bench.shipped import shipped_experiments

# Short axis names, and the field of the config that each one sets.
AXES = {"model": "model.name", "architecture": "model.architecture"}
Table = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """A resolved experiment file: its name, its source and every run of its sweep."""

    info: ExperimentInfo
    source: str
    runs: tuple[RunConfig, ...]
    axes: tuple[str, ...]


def load_experiment(name: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Experiment:
    """Read an experiment file (a path, or the name of a shipped one) and expand its sweep.

    Raises UserError naming file and field for everything that is wrong with it.
    """
    path = find_experiment(name)
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    for override in overrides:
        apply_override(data, override)
    return expand(data, str(path), parse_only(only))


def find_experiment(name: str) -> Path:
    """A path as given, or `<name>.toml` among the shipped experiments."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise UserError(f"{name}: no such experiment file")
        return path
    shipped = shipped_experiments()
    if name not in shipped:
        hint = did_you_mean(name, shipped) or f"; shipped: {', '.join(shipped)}"
        raise UserError(f"{name}: neither a file nor a shipped experiment{hint}")
    return shipped[name]


def apply_override(data: Table, override: str) -> None:
    """Apply one `--set a.b=c`; c is a TOML value, or a bare string."""
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {override}: must be field=value")
    key, value = key.strip(), toml_value(text.strip())
    if key.startswith("sweep.") and isinstance(data.get("sweep", {}), dict):
        data.setdefault("sweep", {})[key.removeprefix("sweep.").strip('"')] = value  # an axis may have dots
        return
    set_field(data, key, value, source="--set")


def toml_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: `--set loss.id=drpo` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def set_field(data: Table, dotted: str, value: Any, source: str) -> None:
    """Set `a.b.c` in nested tables, making the tables on the way."""
    *parents, last = dotted.split(".")
    table = data
    for depth, part in enumerate(parents):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{source}: {dotted}: {'.'.join(parents[: depth + 1])} is not a table")
    table[last] = value


def has_field(data: Table, dotted: str) -> bool:
    """Whether `a.b.c` is set in nested tables."""
    node: Any = data
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def parse_only(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`loss=drpo,precision=bf16` as a rule; an axis that is named twice allows both values."""
    rule: dict[str, list[Any]] = {}
    for part in ",".join(texts).split(",") if texts else []:
        axis, sign, value = part.partition("=")
        if not sign:
            raise UserError(f"--only {','.join(texts)}: must be axis=value[,axis=value]")
        rule.setdefault(axis.strip(), []).append(toml_value(value.strip()))
    return rule


def expand(data: Table, source: str, only: Mapping[str, Any]) -> Experiment:
    """Every run of the sweep, in the order of the axes, each one once."""
    base = deepcopy(data)
    sweep = base.pop("sweep", {})
    if not isinstance(sweep, dict):
        raise UserError(f"{source}: sweep: must be a table of axes")
    exclude = _rules(sweep.pop("exclude", []), source, "exclude")
    include = _rules(sweep.pop("include", []), source, "include")
    _check_axes(base, sweep, source)

    runs: dict[str, RunConfig] = {}
    for point in _product(sweep):
        run = _resolve(base, point, source)
        if run.run_id in runs:
            raise UserError(f"{source}: sweep: two of its points are the same run, {run.run_id}")
        runs[run.run_id] = run
    for number, rule in enumerate(include):
        for point in _included(rule, sweep, f"{source}: sweep.include[{number}]"):
            run = _resolve(base, point, source)
            runs.setdefault(run.run_id, run)
    everything = list(runs.values())
    dropped = {
        run.run_id
        for number, rule in enumerate(exclude)
        for run in matching(everything, rule, f"{source}: sweep.exclude[{number}]")
    }
    chosen = [run for run in everything if run.run_id not in dropped]
    if only:
        check_values(chosen, only, "--only")
        chosen = matching(chosen, only, "--only")
    if not chosen:
        raise UserError(f"{source}: sweep: no run is left after exclude and --only")
    return Experiment(chosen[0].experiment, source, tuple(chosen), tuple(sweep))


def _included(rule: Table, sweep: Table, source: str) -> Iterator[Table]:
    """Points of an include rule: its own values, times the axes that it leaves open."""
    for axis, value in rule.items():
        if isinstance(value, list) and not value:
            raise UserError(f"{source}: {axis}: is empty")
    return _product({**sweep, **{axis: _as_list(value) for axis, value in rule.items()}})


def _product(axes: Table) -> Iterator[Table]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _resolve(base: Table, point: Table, source: str) -> RunConfig:
    """One validated run: class defaults < file and --set < the point's axis values."""
    data = deepcopy(base)
    for axis, value in point.items():
        if axis in ("task", "precision") and isinstance(value, str):
            value = {"name": value} if axis == "task" else {"preset": value}
        set_field(data, AXES.get(axis, axis), deepcopy(value), source)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise explain(error, source, RunConfig) from None


def _rules(rules: Any, source: str, kind: str) -> list[Table]:
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise UserError(f"{source}: sweep.{kind}: must be a list of tables")
    return rules


def _check_axes(base: Table, sweep: Table, source: str) -> None:
    for axis, values in sweep.items():
        if not isinstance(values, list):
            raise UserError(f"{source}: sweep.{axis}: must be a list of values")
        if not values:
            raise UserError(f"{source}: sweep.{axis}: is empty")
        if axis == "loss" and not all(isinstance(value, dict) for value in values):
            raise UserError(f"{source}: sweep.loss: must be a list of tables, each with an id")
        if axis.split(".")[0] not in {*RunConfig.model_fields, *AXES}:
            hint = did_you_mean(axis, [*RunConfig.model_fields, *AXES, "include", "exclude"])
            raise UserError(f"{source}: sweep.{axis}: unknown axis{hint}")
        if has_field(base, AXES.get(axis, axis)):
            raise UserError(f"{source}: {AXES.get(axis, axis)}: also a sweep axis; set sweep.{axis} instead")


def matching(runs: Sequence[RunConfig], rule: Mapping[str, Any], source: str) -> list[RunConfig]:
    """The runs for which every entry of the rule holds; a list allows any of its values.

    Values are compared with the resolved config: defaults, aliases and infinities count. Raises UserError
    for an axis that does not exist.
    """
    found = list(runs)
    for axis, wanted in rule.items():
        found = [run for run in found if any(_equal(field_of(run, axis, source), item) for item in _as_list(wanted))]
    return found


def check_values(runs: Sequence[RunConfig], rule: Mapping[str, Any], source: str) -> None:
    """Raise UserError for a value that no run has, with the nearest one that some run has."""
    for axis, wanted in rule.items():
        values = [field_of(run, axis, source) for run in runs]
        for item in _as_list(wanted):
            if not any(_equal(value, item) for value in values):
                known = dict.fromkeys(_name(value) for value in values)
                hint = did_you_mean(_name(item), known) or f"; there are {', '.join(known)}"
                raise UserError(f"{source}: {axis}: no run has {_name(item)}{hint}")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def field_of(run: RunConfig, axis: str, source: str) -> Any:
    """The value of an axis in a resolved run, as canonical data; precision is its name."""
    if axis == "precision":
        return run.precision.name
    node: Any = canonical(run.model_dump())
    for part in AXES.get(axis, axis).split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{source}: {axis}: no such field{did_you_mean(axis, [*AXES, *RunConfig.model_fields])}")
        node = node[part]
    return node


def _equal(value: Any, wanted: Any) -> bool:
    """A table matches its id or name, or a table of some of its entries; a preset its aliases."""
    wanted = canonical(wanted)
    if isinstance(value, dict) and isinstance(wanted, dict):
        return all(value.get(key) == item for key, item in wanted.items())
    if isinstance(value, dict):
        return wanted in (value.get("id"), value.get("name"))
    return bool(value == wanted or (isinstance(wanted, str) and value == ALIASES.get(wanted)))


def _name(value: Any) -> str:
    """A value in a message."""
    return str(value.get("id") or value.get("name") or value) if isinstance(value, dict) else str(value)
