"""Outputs, checkpoints and meshes bring no field of mesh size to one rank."""

from __future__ import annotations

from pathlib import Path

from mpi import run_mpi


def test_no_rank_holds_a_whole_field(tmp_path):
    said = run_mpi(4, Path(__file__).with_name("no_gathers.py"), tmp_path)
    assert "wrong: []" in said, said
