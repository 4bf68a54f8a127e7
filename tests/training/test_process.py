"""Precision, and the place of a process among several."""

import logging

import pytest
import torch

from ballot.errors import UserError
from ballot.training.group import Group, launched
from ballot.training.process import has_bfloat16, pick_amp

CPU = torch.device("cpu")


def test_auto_is_full_precision_on_a_cpu_and_fp16_is_refused_there():
    assert pick_amp("auto", CPU) is None and pick_amp("off", CPU) is None
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        pick_amp("fp16", CPU)


def test_bf16_on_a_cpu_is_taken_with_a_warning_where_it_is_slow(caplog):
    with caplog.at_level(logging.WARNING):
        assert pick_amp("bf16", CPU) is torch.bfloat16
    assert ("no instructions for bfloat16" in caplog.text) is not has_bfloat16()


@pytest.mark.parametrize(
    "line, has",
    [
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: fpu avx512_bf16", True),
        ("flags\t\t: amx_bf16 amx_tile", True),
        ("Features\t: asimd bf16 i8mm", True),
        ("Features\t: asimd", False),
        ("processor\t: 0", True),
    ],
)
def test_a_processor_says_whether_it_has_bfloat16(tmp_path, line, has):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert has_bfloat16(tmp_path / "cpuinfo") is has
    assert has_bfloat16(tmp_path / "none")


def test_only_torchrun_makes_a_process_one_of_several(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched() == (0, 1, 0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    assert launched() == (3, 8, 1)


def test_several_processes_do_not_share_a_named_gpu_and_alone_all_is_as_it_was():
    with pytest.raises(UserError, match="one GPU for 2 processes"):
        Group(0, 2).device_name("cuda:1")
    assert Group(0, 2).device_name("cpu") == "cpu"
    alone, rows = Group(), torch.ones(3, 2)
    assert alone.share("x") == "x" and alone.rows(rows, [3]) is rows and alone.add(rows) is rows
