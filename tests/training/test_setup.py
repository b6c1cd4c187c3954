import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from omegaconf import DictConfig, OmegaConf
from single_runs import at

from bantam import budget
from bantam.budget import OverBudget
from bantam.kernels import compiler
from bantam.training import costs, terminal
from bantam.training.folder import STATE, write_checkpoint
from bantam.training.setup import RunInfo, prepare, prepare_resumed

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize(("limit", "fits"), [(9681, True), (9680, False)])
def test_the_budget_is_strict(composed: Compose, info: RunInfo, limit: int, fits: bool) -> None:
    cfg = composed("data=mnist5k", f"budget.parameters={limit}")
    if fits:
        assert prepare(cfg, info).parameters == 9680
    else:
        with pytest.raises(OverBudget, match="has 9,680 parameters, 1 over the 9,679 that"):
            prepare(cfg, info)


def test_of_many_keys_over_budget_names_the_widest(composed: Compose, info: RunInfo) -> None:
    with pytest.raises(OverBudget, match="lower model.late3 or model.late2 or model.early2 or raise"):
        prepare(composed("model=flexible", "model.late3=40"), info)


def test_over_budget_names_count_excess_and_remedy_before_data_are_opened(
    composed: Compose, info: RunInfo
) -> None:
    cfg = composed("model.width=17", "data.root=/nowhere", "data=mnist")
    with pytest.raises(OverBudget) as caught:
        prepare(cfg, info)
    assert str(caught.value) == (
        "model=v2 has 10,897 parameters, 898 over the 9,999 that budget.parameters=10,000 allows: "
        "lower model.width to 16 or raise budget.parameters"
    )
    assert sum(layer.parameters for layer in caught.value.layers) == 10_897


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["budget.multiply_adds=1885408"],
            "model=v2 has 1,885,408 multiply-adds, 1 over the 1,885,407 that budget.multiply_adds=1,885,408 "
            "allows: lower model.width to 15 or raise budget.multiply_adds",
        ),
        (
            ["budget.bytes=39400"],
            "model=v2 has 39,400 bytes of weights, 1 over the 39,399 that budget.bytes=39,400 allows: "
            "lower model.width to 15 or raise budget.bytes",
        ),
        (
            ["budget.activations=50000"],
            "model=v2 has 80,128 bytes of activations, 30,129 over the 49,999 that budget.activations=50,000 "
            "allows: lower model.width to 9 or raise budget.activations",
        ),
        (
            [
                "model.width=20",
                "budget.multiply_adds=2000000",
                "budget.activations=60000",
                "budget.parameters=null",
            ],
            "model=v2 has 2,915,480 multiply-adds, 915,481 over the 1,999,999 that budget.multiply_adds=2,000,000 "
            "allows, and 100,160 bytes of activations, 40,161 over the 59,999 that budget.activations=60,000 "
            "allows: lower model.width to 11 or raise budget.multiply_adds and budget.activations",
        ),
        (
            ["budget.activations=1"],
            "model=v2 has 80,128 bytes of activations, 80,128 over the 0 that budget.activations=1 allows: "
            "lower model.width or raise budget.activations",
        ),
    ],
)
def test_every_limit_names_cost_excess_key_and_remedy(
    composed: Compose, info: RunInfo, overrides: list[str], message: str
) -> None:
    with pytest.raises(OverBudget) as caught:
        prepare(composed("data=mnist5k", *overrides), info)
    assert str(caught.value) == message


def test_a_network_is_counted_once_and_another_one_or_another_image_again(
    composed: Compose, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, count = list[torch.nn.Module](), budget.layers

    def listed(model: torch.nn.Module, image: tuple[int, int, int]) -> list[budget.Layer]:
        counted.append(model)
        return count(model, image)

    monkeypatch.setattr(costs, "_counted", {})
    monkeypatch.setattr(budget, "layers", listed)
    found = [
        costs.count(composed("data=mnist5k", *overrides), info.choices)[1]
        for overrides in (
            ["model.width=5"],
            ["model.width=5", "optimizer.lr=0.01"],
            ["model.width=6"],
            ["model.width=5", "data.side=32"],
        )
    ]
    assert len(counted) == 3
    assert found[0] == found[1]
    assert found[0]["parameters"] < found[2]["parameters"]
    assert found[0]["multiply_adds"] < found[3]["multiply_adds"]


def test_null_does_not_limit(composed: Compose, info: RunInfo) -> None:
    fitting = prepare(composed("data=mnist5k", "model.width=40", "budget.parameters=null"), info)
    assert fitting.parameters == fitting.costs["parameters"] > 10_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=16"], "epochs is 16, 1 over budget.epochs=15: lower epochs or raise budget.epochs"),
        (["batch_size=100000"], "batch_size is 100,000, but mnist5k has 4,000 images to train on"),
        (["model._target_=os.system"], "model=v2 cannot be built: .*whitelist"),
        (["model._target_=bantam.data.os.system"], "model=v2 cannot be built: .*whitelist"),
        (["data._target_=bantam.training.folder.write"], "data=.* cannot be built: .*whitelist"),
        (["+optimizer.colour=1"], "optimizer=sgd cannot be built: it takes no colour: its keys are lr, momentum"),
        (["+optimizer.lrr=1"], r"optimizer=sgd cannot be built: it takes no lrr: did you mean optimizer.lr\?"),
        (
            ["+scheduler.gama=1"],
            r"scheduler=step cannot be built: it takes no gama: did you mean scheduler.gamma\?",
        ),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer=sgd cannot be built: Nesterov"),
        (["scheduler._target_=torch.optim.lr_scheduler.Nope"], "scheduler=step cannot be built"),
        (["+scheduler.last_epoch=3"], "scheduler=step cannot be built: .*initial_lr"),
        (["device=cuda"], "device is cuda, which this machine does not have"),
        (["data.validation=4000"], "data.validation is 4,000"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    composed: Compose, info: RunInfo, overrides: list[str], message: str
) -> None:
    if overrides == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ValueError, match=message):
        prepare(composed("data=mnist5k", *overrides), info)
    assert not list(info.folder.iterdir())


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize(("batch_size", "fitting"), [(3, 4), (93, 94), (1, 2)])
def test_a_last_batch_of_one_image_is_refused_where_batch_norm_has_one_value_of_it(
    composed: Compose, info: RunInfo, kernels: str, batch_size: int, fitting: int
) -> None:
    cfg = composed("data=mnist5k", f"batch_size={batch_size}", f"kernels={kernels}")
    assert prepare(cfg, info).parameters == 9680  # its maps have several values
    head = composed("data=mnist5k", "model=flexible", "model.head=12", "model.late3=16", f"kernels={kernels}")
    assert prepare(head, info).cfg.batch_size == 128  # of 4,000 images, 32 are left
    head.batch_size = batch_size
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}: .* single one.*use batch_size={fitting}$"):
        prepare(head, info)
    head.batch_size = fitting
    assert prepare(head, info).cfg.batch_size == fitting


def test_a_schedule_that_leaves_the_sensible_is_refused_before_training(composed: Compose, info: RunInfo) -> None:
    cfg = OmegaConf.create(OmegaConf.to_container(composed("data=mnist5k")))
    assert prepare(cfg, info).epoch_rates == pytest.approx([0.025] * 6 + [0.0025] * 6 + [0.00025] * 3)
    cfg.scheduler = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "_partial_": True, "gamma": -0.5}
    with pytest.raises(ValueError, match=r"scheduler=step sets the learning rate of epoch 2 to -0.0125"):
        prepare(cfg, info)
    cfg.scheduler = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 0}
    with pytest.raises(ValueError, match=r"scheduler=step fails after epoch 1 \(.*zero\)"):
        prepare(cfg, info)


@pytest.mark.whole
def test_precision_auto_is_bfloat16_where_the_processor_computes_in_it(
    composed: Compose, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*overrides: str) -> torch.dtype:
        return prepare(composed(*SMALL, *overrides), info).precision

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert chosen() == chosen("kernels=torch") == chosen("model=skeleton") == torch.bfloat16
    assert chosen("precision=float32") == chosen("kernels=torch", "precision=float32") == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert chosen() == chosen("model=skeleton") == torch.float32
    assert chosen("precision=bfloat16") == torch.bfloat16


@pytest.mark.whole
def test_kernels_auto_takes_c_on_a_cpu_where_it_can_and_else_pytorch(
    composed: Compose, info: RunInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(*overrides: str) -> str:
        return prepare(composed(*SMALL, "precision=float32", *overrides), info).kernels

    assert chosen("kernels=torch") == "torch"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "bfloat16", lambda: False)
        assert chosen("precision=bfloat16") == "torch"
        with pytest.raises(ValueError, match="kernels is native, but this processor does not compute in bfloat16"):
            chosen("precision=bfloat16", "kernels=native")
    assert chosen("channels_last=false") == "torch"
    assert chosen("model=skeleton") == "torch"  # it has no block that the C code knows
    monkeypatch.setenv("CC", "no-such-compiler")
    compiler.library.cache_clear()
    assert chosen() == "torch"
    with pytest.raises(ValueError, match="kernels is native, but there is no C compiler .* kernels=auto"):
        chosen("kernels=native")
    monkeypatch.undo()
    compiler.library.cache_clear()
    if shutil.which(os.environ.get("CC", "cc")):
        assert chosen() == chosen("kernels=native") == "native"
        if compiler.bfloat16():
            assert chosen("precision=bfloat16") == chosen("precision=bfloat16", "kernels=native") == "native"


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "arm64"), ("linux", "riscv64")])
def test_no_kind_of_processor_is_left_to_pytorch_without_a_word(
    system: str, machine: str, composed: Compose, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    cfg = composed(*SMALL, "device=cpu")
    if shutil.which(os.environ.get("CC", "cc")):
        prepared = prepare(cfg, info)
        assert (prepared.kernels, prepared.left_to_pytorch) == ("native", "")
    monkeypatch.setattr("sys.platform", system)
    for command, why in (
        ("no-such-compiler", "there is no C compiler"),
        ("false", "false cannot compile the blocks"),
    ):
        monkeypatch.setenv("CC", command)
        compiler.library.cache_clear()
        prepared = prepare(cfg, info)
        assert prepared.kernels == "torch"
        assert why in prepared.left_to_pytorch
    compiler.library.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("channels_last=false",), "in channels_last; device is cpu, channels_last False: use kernels=auto"),
        (("compile=true",), "kernels is native, but compile is true"),
        (("model=skeleton",), "kernels is native, but model=skeleton has no block"),
    ],
)
def test_kernels_native_refuses_what_it_does_not_compute(
    composed: Compose, tmp_path: Path, overrides: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match="kernels is native") as error:
        prepare(composed(*SMALL, "kernels=native", *overrides), at(tmp_path, model="skeleton"))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "cc", "warning"),
    [
        (("model=v2",), "cc", ""),
        (("model=v2", "kernels=torch"), "no-such-compiler", ""),
        (("model=v2", "channels_last=false"), "no-such-compiler", ""),
        (("model=v2",), "no-such-compiler", "kernels=auto falls back to PyTorch: there is no C compiler"),
        (("model=v2",), "false", "kernels=auto falls back to PyTorch: .*false cannot compile the blocks"),
        (
            ("model=skeleton",),
            "cc",
            r"back to PyTorch: .* no block that C computes, .*convolutions \(7 without a batch norm",
        ),
        (("model=dilated",), "cc", r"kernels=auto: PyTorch computes 3 of 7 convolutions \(3 with dilation 2\)"),
        (("model=dilated", "kernels=native"), "cc", "kernels=native: PyTorch computes 3 of 7 convolutions"),
    ],
)
def test_a_warning_says_why_pytorch_computes_what_c_might(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    cc: str,
    warning: str,
) -> None:
    if cc == "cc" and compiler.compiler() is None:
        pytest.skip("there is no C compiler")
    model = overrides[0].removeprefix("model=")
    with monkeypatch.context() as patch:
        if cc != "cc":
            patch.setenv("CC", cc)
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            compiler.library.cache_clear()
        terminal.describe(
            prepare(composed("data=mnist5k", "precision=float32", *overrides), at(tmp_path, model=model))
        )
    compiler.library.cache_clear()
    printed = capsys.readouterr().out
    assert len(re.findall("Warning", printed)) == bool(warning)
    assert re.search(warning, printed)
    assert all(line.count(": ") <= 2 for line in printed.splitlines() if "convolutions" in line)


def test_a_resumed_run_has_the_device_that_it_had(
    composed: Compose, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(*SMALL, "device=auto")
    write_checkpoint(info.folder, dict.fromkeys(STATE) | {"device": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare_resumed(cfg, info).device.type == "cpu"
