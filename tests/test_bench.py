"""The arithmetic of comparisons, what is counted, and what is said where a peer is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from drpo_bench.analysis.growth import draw_growth
from drpo_bench.bench import docpage, growth, hf, report, startup, timing, trl, vllm
from drpo_bench.bench.regression import fallen_behind
from drpo_bench.bench.report import Request, against
from drpo_bench.bench.shapes import STOPS, Shape, random_model
from drpo_bench.bench.table import comparison_rows, warnings
from drpo_bench.bench.timing import Comparison, Measured, take_turns
from drpo_bench.errors import UserError
from drpo_bench.precision_configs import PrecisionConfig

SMALL = Shape(problems=3, group_size=2, prompt=4, response=6)
FP32 = PrecisionConfig.model_validate("fp32")


def request(**changes) -> Request:
    fields = {"peer": None, "part": "speed", "size": "nano", "threads": 1, "precision": "fp32", "repeats": 1}
    places = {"peer_python": None, "warmstarts": Path("warmstarts"), "against": None}
    return Request(**fields | places | changes)


def test_a_ratio_is_of_rates_and_the_medians_of_turns():
    ours, theirs = Measured((1.0, 2.0, 1.0), (100, 100, 50)), Measured((4.0, 4.0, 4.0), (100, 100, 100))
    comparison = Comparison("rollout", ours, "peer", theirs)
    assert comparison.ratios == [4.0, 2.0, 2.0]  # 100, 50, 50 tokens a second against 25
    data = comparison.data()
    assert (data["ratio"], data["ratio_range"], data["doubtful"]) == (2.0, [2.0, 4.0], False)
    assert data["ours"] == {"seconds": 1.0, "tokens_per_s": 50.0, "spread": 1.0, "repeats": 3}
    batches = Comparison("batch", ours, "peer", theirs, by_rate=False)
    assert batches.ratios == [4.0, 2.0, 4.0]  # seconds alone


def test_turns_that_disagree_are_doubtful_and_warned_of():
    close = Comparison("rollout", Measured((1.0, 1.2), (10, 10)), "peer", Measured((1.1, 1.1), (10, 10)))
    assert close.is_doubtful
    said = warnings({"others": 0.5, "comparisons": [close.data()]})
    assert said == [
        "other processes took 50% of the machine when we began",
        "rollout: peer: some turns say the opposite; nothing follows",
    ]


def test_contestants_take_turns_and_the_first_round_does_not_count(monkeypatch):
    clock, order = iter(range(100)), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))

    def work(name: str) -> int:
        order.append(name)
        return len(order)

    first, second = take_turns([lambda: work("a"), lambda: work("b")], repeats=2)
    assert order == ["a", "b"] * 3
    assert (first.tokens, second.tokens, first.seconds) == ((3, 5), (4, 6), (1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peer": "vlm"}, "--peer vlm: unknown; did you mean 'vllm'?"),
        ({"size": "nanoo"}, "--size nanoo: unknown; did you mean 'nano'?"),
        ({"precision": "int8"}, "--precision int8: unknown"),
        ({"peer": "trl", "precision": "bf16"}, "TRL trains in fp32 on a CPU"),
        ({"part": "startups"}, "--part startups: unknown; did you mean 'startup'?"),
        ({"peer": "hf", "part": "growth"}, "--part growth: measured without a peer"),
        ({"against": Path("nowhere.json")}, "only ratios to a peer are compared"),
        ({"peer": "hf", "against": Path("nowhere.json")}, "--against nowhere.json: no such file"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        request(**changes).check()


def test_a_python_that_is_not_there_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"--peer-python .*no such file"):
        trl.find_python(tmp_path / "python")
    assert trl.find_python(Path(sys.executable)) == Path(sys.executable)


@pytest.mark.parametrize("peer", ["trl", "vllm"])
def test_a_peer_that_is_not_installed_is_not_measured_and_the_remedy_told(peer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trl, "find_spec", lambda name: None)
    monkeypatch.setattr(vllm, "is_installed", lambda: False)
    for comparison in against(request(peer=peer), FP32, SMALL):
        _, row = comparison_rows([comparison.data()])
        assert row[2] == "not measured"
        (said,) = warnings({"others": 0.0, "comparisons": [comparison.data()]})
        assert "is not installed; `make " in said


def test_transformers_is_not_compared_in_a_format_it_emulates_not():
    for comparison in hf.compare("nano", PrecisionConfig.model_validate("fp8_rollout"), SMALL, 1):
        assert comparison.data()["not_measured"] == "transformers has no emulated fp8_rollout to compare with"


def test_transformers_samples_as_many_tokens_as_are_counted():
    model = random_model("nano").eval()
    assert hf.generation(model, SMALL, ragged=False)() == SMALL.rows * SMALL.response
    with torch.no_grad():  # the first stop token is all it can say: a token a row
        model.get_output_embeddings().weight.zero_()
        model.base_model.norm.weight.fill_(1.0)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data.zero_()
    head.bias.data.fill_(-1e4)
    head.bias.data[STOPS[0]] = 0.0
    model.set_output_embeddings(head)
    assert hf.generation(model, SMALL, ragged=True)() == SMALL.rows


def test_a_batch_of_every_format_is_measured_and_the_table_fits_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(report, "Shape", lambda: SMALL)
    monkeypatch.setenv("COLUMNS", "80")
    report.bench(request(), as_json=False)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for name in ("rollout", "trainer", "rollout fp8_rollout (emulated)"):
        assert name in said


def test_only_a_ratio_that_is_lower_in_every_turn_and_by_a_margin_has_fallen_behind():
    def report_of(*ratios: float, **changes) -> dict:
        row = {"what": "rollout", "peer": "HF", "ratio": ratios[1], "ratio_range": [ratios[0], ratios[2]]}
        fields = {"size": "nano", "precision": "fp32", "threads": 1, "shape": "s"}
        return fields | {"comparisons": [row]} | changes

    before = [report_of(9.0, 9.5, 9.9, size="mini"), report_of(2.0, 2.4, 2.8)]
    assert fallen_behind(report_of(1.6, 1.8, 1.9), before) == ["rollout: 1.80 times HF, was 2.40"]
    assert not fallen_behind(report_of(1.6, 1.8, 2.1), before)  # some turns were as good
    assert not fallen_behind(report_of(1.9, 1.95, 1.99), [report_of(2.0, 2.1, 2.2)])  # within the margin
    nothing = ["nothing was measured that the earlier bench measured too"]  # which is no success
    assert fallen_behind(report_of(1.0, 1.0, 1.0, threads=2), before) == nothing
    missing = {"what": "rollout", "peer": "HF", "not_measured": "not installed"}
    assert fallen_behind(report_of(1.0, 1.0, 1.0) | {"comparisons": [missing]}, before) == nothing


def test_a_bench_that_has_fallen_behind_says_so_and_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "Shape", lambda: SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trl, "find_spec", lambda name: None)
    file = tmp_path / "before.json"
    assert not report.bench(request(peer="hf"), as_json=True)["fallen_behind"]
    earlier = json.loads(capsys.readouterr().out)
    for row in earlier["comparisons"]:
        row["ratio"], row["ratio_range"] = 1e6, [1e6, 1e6]
    file.write_text(json.dumps([earlier]))
    assert len(report.bench(request(peer="hf", against=file), as_json=False)["fallen_behind"]) == 2
    assert "fallen behind: rollout, equal lengths" in capsys.readouterr().out
    file.write_text("{")
    with pytest.raises(UserError, match="--against"):
        report.bench(request(peer="hf", against=file), as_json=False)


def test_growth_is_measured_along_every_axis_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(growth, "BASE", SMALL)
    cases = growth.cases
    monkeypatch.setattr(growth, "cases", lambda largest: cases(2))
    found = report.part(request(part="growth"))["growth"]
    draw_growth(**found, out=tmp_path)
    assert set(found["slopes"]) == {"rollouts", "response tokens", "parameters", "vocabulary"}
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert len((tmp_path / "growth.csv").read_text().splitlines()) == 1 + len(found["points"]) == 9


def test_a_slope_is_of_the_upper_half():
    points = [growth.Point("n", n, n**2.0 if n > 3 else 1.0, float(n)) for n in (1, 2, 4, 8, 16)]
    assert growth.slopes([points[2], *points[3:]])["n"] == pytest.approx((2.0, 1.0))
    assert growth.slopes(points)["n"] == pytest.approx((8 / 3, 1.0))  # from 2 to 16: 1 to 256


@pytest.mark.slow
def test_the_start_of_a_run_is_timed_in_processes_of_its_own(monkeypatch, tmp_path):
    short = ("warmstart.target=0.0", "warmstart.max_steps=10", "eval.problems=8")
    monkeypatch.setattr(startup, "RUN", (*startup.RUN, "--no-tracking", *(x for s in short for x in ("--set", s))))
    monkeypatch.setattr(startup, "IMPORTS", {"import torch": "import torch"})
    found = startup.measure(tmp_path, 1)
    assert found["range"][0] <= found["seconds"] <= found["range"][1]
    assert 0 < found["imports"]["import torch"] < found["seconds"]
    with pytest.raises(RuntimeError, match="ended with 2"):
        startup.run_cli("no_such_experiment", tmp_path)


def test_the_page_has_a_table_a_title_with_the_warnings_below_it():
    def of(size: str, others: float) -> dict:
        row = Comparison("rollout", Measured((1.0, 1.0), (10, 10)), "HF", Measured((2.0, 2.0), (10, 10))).data()
        fields = {"cpu": "x", "threads": 2, "shape": "s", "gpu": "no GPU", "part": "speed", "precision": "fp32"}
        return fields | {"size": size, "others": others, "comparisons": [row]}

    lines = "\n".join(docpage.page({"hf_nano_fp32": of("nano", 0.5), "hf_mini_fp32": of("mini", 0.0)}))
    assert lines.count("| size, precision |") == 1
    assert "| nano, fp32 | rollout | 10 | 5 | 2.00 | 2.00 to 2.00 |\n| mini, fp32 | rollout | 10" in lines
    assert lines.endswith("\nnano, fp32: other processes took 50% of the machine when we began.")


def test_a_part_that_is_there_is_not_measured_again_and_the_tables_go_between_the_marks(monkeypatch, tmp_path):
    folder, file = tmp_path / "bench", tmp_path / "performance.md"
    folder.mkdir()
    report = {"cpu": "x", "threads": 2, "shape": "s", "gpu": "no GPU", "part": "startup", "size": "nano"}
    found = {"seconds": 5.0, "range": [4.0, 6.0], "imports": {"import torch": 1.0}}
    (folder / "startup.json").write_text(json.dumps(report | {"precision": "fp32", "others": 0.0, "startup": found}))
    monkeypatch.setattr(docpage, "PARTS", {"startup": ()})
    file.write_text(f"before\n{docpage.BEGIN}\nold\n{docpage.END}\nafter\n")
    docpage.main(file, folder)
    text = file.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith(f"{docpage.END}\nafter\n")
    assert "| start to first training step | 5.0 | 4.0 to 6.0 |" in text
    assert json.loads((tmp_path / "performance.json").read_text())[0]["startup"] == found
