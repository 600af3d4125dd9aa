# SPDX-License-Identifier: Apache-2.0
"""The page of `ardiff report`: whole, safe, and true to its inputs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ardiff_engine.cli import main
from ardiff_engine.evaluation.digit_measures import MEASURES, VIDEO_MEASURES
from ardiff_engine.evaluation.report import Report, Row
from ardiff_engine.evaluation.spoiled import SPOILED
from ardiff_engine.media import export_video
from ardiff_engine.report.chart import HEIGHT, WIDTH, Line, line_chart
from ardiff_engine.report.page import Page
from ardiff_engine.report.sections import add_training


def _points(svg: str, tag: str = "polyline") -> list[tuple[float, float]]:
    drawn = ElementTree.fromstring(svg).find(tag)
    assert drawn is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in drawn.attrib["points"].split())]


def test_chart_places_points_in_proportion() -> None:
    svg = line_chart([Line("a <b>", [(0, 0.0), (1, 5.0), (4, 10.0)], [(0, 1), (4, 6), (9, 11)])], "x", "y")
    points = _points(svg)
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(1 / 2, abs=0.01) and y0 > y2  # up is up
    assert len(_points(svg, "polygon")) == 6 and "a &lt;b&gt;" in svg
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in _points(svg, "polygon"))


def test_chart_leaves_out_what_cannot_be_drawn() -> None:
    assert line_chart([Line("none", [(0, float("nan"))])], "x", "y") == ""
    assert line_chart([Line("negative", [(0, -1.0), (1, 0.0)])], "x", "y", logarithmic=True) == ""
    assert len(_points(line_chart([Line("some", [(0, 1.0), (1, float("inf")), (2, 3.0)])], "x", "y"))) == 2
    assert len(_points(line_chart([Line("one", [(3, 2.0)])], "x", "y"))) == 1


def test_logarithmic_chart_spaces_decades_alike() -> None:
    (_, a), (_, b), (_, c) = _points(
        line_chart([Line("loss", [(0, 1.0), (1, 0.1), (2, 0.01)])], "x", "y", logarithmic=True)
    )
    assert b - a == pytest.approx(c - b, abs=0.2)


class _Reader(HTMLParser):
    """Tags must close; addresses are collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check_page(html: str) -> None:
    reader = _Reader()
    reader.feed(html)
    assert reader.open == []
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "<script" not in html and "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", html)


def test_text_is_escaped() -> None:
    page = Page("<script>alert(1)</script>", '"&"')
    page.heading("<h1>")
    page.table(["<a href='http'>"], [["<b>"]])
    page.media(b"x", ".png", '" onload="alert(1)')
    html = page.html().replace("http", "")
    _check_page(html)
    assert 'onload="' not in html


def _report() -> Report:
    random = np.random.default_rng(0)
    rows = [
        Row(
            name,
            20,
            1.0,
            {measure: random.random(6) for measure in VIDEO_MEASURES},
            {measure: random.random(5) for measure in MEASURES if measure not in VIDEO_MEASURES},
            random.random((5, 8)),
        )
        for name in ("real clips", "reconstructions", *SPOILED, "lag 0", "lag 2")
    ]
    rows[0].continuations["bounces"][1] = np.nan  # type: ignore[index]
    return Report(0.9, 2, 4, tuple(rows), ("lag 0", "lag 2"))


def test_an_evaluation_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    report = _report()
    report.save(tmp_path)
    again = Report.load(tmp_path / "evaluation.json")
    assert (again.given, again.steps, again.generated) == (2, 4, ("lag 0", "lag 2"))
    for one, other in zip(report.rows, again.rows, strict=True):
        np.testing.assert_allclose(other.position_errors, one.position_errors, atol=1e-5)
        for measure in MEASURES:
            np.testing.assert_allclose(other.values(measure), one.values(measure), atol=1e-5)
    assert again.markdown().count("|") == report.markdown().count("|")
    assert np.isnan(again.rows[0].continuations["bounces"][1])


def test_the_page_holds_every_kind_of_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _report()
    report.save(tmp_path / "evaluation")
    run = tmp_path / "run"
    run.mkdir()
    entries = [{"step": n, "loss": 1 / n, "lr": 1e-3, "steps_per_second": 2.0} for n in range(1, 500)]
    (run / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (run / "training_config.json").write_text(json.dumps({"run": {"steps": 499}}))
    video = np.random.default_rng(1).integers(0, 255, (30, 12, 16, 3)).astype(np.uint8)
    export_video(video, tmp_path / "clip.webp")
    inputs = [
        str(tmp_path / name) for name in ("evaluation", "run", "clip.webp", "evaluation/evaluation.json")
    ]
    target = tmp_path / "pages" / "report.html"
    assert main(["report", *inputs, "--out", str(target), "--title", "A & B"]) == 0
    assert "report.html" in capsys.readouterr().err
    html = target.read_text(encoding="utf-8")
    _check_page(html)
    assert "<h1>A &amp; B</h1>" in html and "run.steps" in html and "The plan of lag 2" in html
    assert html.count("<svg") == 1 + 3 + 1 and html.count("<img") == 2 + 2 + 2
    mean = report.rows[0].videos["speed"].mean()
    assert f"<td>{mean:.2f} [" in html


def test_only_losses_are_drawn_as_losses(tmp_path: Path) -> None:
    """What else a log holds would squeeze them to a line."""
    entry = {"loss": 0.5, "fake_score_loss": 0.2, "fake_score_gradient_norm": 9.0, "lr": 1e-3}
    entry |= {"clips_per_second": 80.0, "steps_per_second": 2.0, "gemm_share": 0.3}
    shown = {"validation_loss": 0.6, "validation_psnr": 28.0, "validation_latent_spread": 0.8}
    lines = [json.dumps({"step": step, **entry, **shown}) for step in (1, 2)]
    (tmp_path / "training_log.jsonl").write_text("\n".join(lines) + "\n")
    page = Page("run", "")
    add_training(page, tmp_path)
    losses, *others = page.html().split("<svg")[1:]
    assert all(f">{name}<" in losses for name in ("loss", "fake_score_loss", "validation_loss"))
    for name in ("gradient_norm", "per_second", "gemm_share", "psnr", "latent_spread"):
        assert name not in losses.split("</svg>")[0], name
    assert [sum(f">{name}<" in chart for chart in others) for name in list(shown)[1:]] == [1, 1]


@pytest.mark.parametrize(
    ("name", "out", "noun"),
    [
        ("nothing.mp4", "r.html", "nothing.mp4"),
        (".", "r.html", "evaluation.json"),
        ("clip.webp", "r.pdf", ".html"),
    ],
)
def test_what_a_report_cannot_show_is_refused_before_anything_is_read(
    tmp_path: Path, name: str, out: str, noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    export_video(np.zeros((2, 16, 16, 3), dtype=np.uint8), tmp_path / "clip.webp")
    assert (
        main(["report", str(tmp_path / "clip.webp"), str(tmp_path / name), "--out", str(tmp_path / out)]) == 2
    )
    assert noun in capsys.readouterr().err and not (tmp_path / out).exists()


def test_a_damaged_evaluation_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation.json").write_text('{"rows": [{}]}')
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "evaluation.json" in capsys.readouterr().err
