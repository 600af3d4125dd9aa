#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts a run of moving shapes into the package, as the bundled model `moving-shapes`:

    python tools/bundle_steered.py outputs/shapes_again

Weights go in as float16, beside the run's log, curve and settings, and the log and curve of the run that it
began with. What is judged afterwards is what ships: `python -m ardiff_engine.evaluation.shapes`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import ardiff_engine.models.frame_vae
import ardiff_engine.pipeline.steered  # noqa: F401, kinds of models
from ardiff_engine.pipeline.files import ASSETS
from ardiff_engine.weights import load_model, save_model

PARTS = ("transformer", "text_encoder", "vae")
MOST_BYTES = 12 * 10**6


def bundle(run: Path, target: Path) -> int:
    """Bytes of the folder. ValueError: more than a package should hold; the old folder is then unchanged."""
    config = json.loads((run / "training_config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        made = Path(temporary) / target.name
        for part in PARTS:
            save_model(load_model(run / part).half(), made / part)
        before = config["init"] or config["distillation"]["teacher"]
        for source, suffix in ((run, ""), *([(Path(before), "_before")] if before else [])):
            for stem, kind in (("training_log", "jsonl"), ("loss_curve", "png")):
                if (source / f"{stem}.{kind}").exists():  # a run of a few steps has no curve
                    shutil.copyfile(source / f"{stem}.{kind}", made / f"{stem}{suffix}.{kind}")
        for table, name in ((config["run"], "output"), (config, "init"), (config["distillation"], "teacher")):
            table[name] = _place(table[name])
        config["vae"] = f"{_place(Path(config['vae']).resolve().parent)}/vae"
        (made / "training_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise ValueError(f"{run}: {size:,} bytes, expected at most {MOST_BYTES:,}.")
        # The description stays, and logs of legs before these two, which somebody has put there.
        for kept in (*target.glob("README.md"), *target.glob("training_log_*.jsonl")):
            if kept.name != "training_log_before.jsonl":
                shutil.copyfile(kept, made / kept.name)
        before = target.with_name(f"{target.name}.before")
        if target.exists():
            target.rename(before)
        shutil.move(made, target)
        shutil.rmtree(before, ignore_errors=True)
    return size


def _place(folder: str | Path) -> str:
    """Where it lies on a machine says nothing in a package, and its name does."""
    return f"outputs/{Path(folder).name}" if folder else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder that `ardiff train` left")
    parser.add_argument("--target", type=Path, default=ASSETS / "moving-shapes", help="(%(default)s)")
    options = parser.parse_args(arguments)
    print(f"{options.target}: {bundle(options.run, options.target):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
