# SPDX-License-Identifier: Apache-2.0
"""`ardiff info` tells what runs here, and agrees with what the parts say of themselves."""

from __future__ import annotations

import json

import pytest
import torch

from ardiff_engine import _native, info, ops
from ardiff_engine.version import __version__


def test_facts_agree_with_their_sources() -> None:
    facts = info.collect()
    assert facts["ardiff_engine"] == __version__
    assert facts["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["packages"]["cupy-cuda13x"] is None or isinstance(facts["packages"]["cupy-cuda13x"], str)
    assert facts["native"]["loaded"] is (_native.native() is not None)
    assert facts["cuda"]["available"] is torch.cuda.is_available()
    expected = {
        op: {device: choice.name for device, choice in row.items()} for op, row in ops.backends().items()
    }
    assert {
        op: {d: c["backend"] for d, c in row.items()} for op, row in facts["backends"].items()
    } == expected
    assert all(choice["reason"] for row in facts["backends"].values() for choice in row.values())


def test_a_missing_native_module_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "native", lambda: None)
    monkeypatch.setattr(info, "why_not", lambda: "no compiler was there")
    facts = info.collect()
    assert facts["native"] == {"loaded": False, "reason": "no compiler was there"}
    assert "no compiler was there" in info.render(facts)


def test_forcing_the_reference_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    row = info.collect()["backends"]["frame_attention"]["cpu"]
    assert row == {"backend": "reference", "reason": "ARDIFF_BACKEND=reference"}


def test_both_forms_of_output(capsys: pytest.CaptureFixture[str]) -> None:
    info.main(as_json=True)
    assert json.loads(capsys.readouterr().out)["python"].startswith("3.")
    info.main()
    text = capsys.readouterr().out
    for op in ops.backends():
        assert op in text
    assert "not installed" in text or all(info.collect()["packages"].values())
