# SPDX-License-Identifier: Apache-2.0
"""What a client asks for: one video, its fields checked against the limits before anything is touched."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ardiff_engine.serve.errors import ApiError, invalid
from ardiff_engine.serve.limits import Limits

SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
SECONDS = "4"
NUMBERS = {"fps": (1.0, 120.0), "guidance_scale": (-100.0, 100.0)}
FORMATS = ("mp4", "webp", "jpeg", "png")


@dataclass(frozen=True, slots=True)
class Wish:
    """None: what the model prefers.

    seconds: as text, as OpenAI has it. num_frames: wins over it. endless: until the client stops it.
    size: width and height of the pictures. class_id, lag: of frame models. actions: of the first frames, of
    models that take them; the last one holds on.
    format: of the frames of a live stream.
    """

    model: str | None = None
    prompt: str = ""
    negative_prompt: str | None = None
    seconds: str = SECONDS
    num_frames: int | None = None
    endless: bool = False
    fps: float | None = None
    size: tuple[int, int] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    lag: int | None = None
    class_id: int | None = None
    actions: tuple[str, ...] | None = None
    seed: int | None = None
    user: str | None = None
    format: str = "mp4"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Wish:
        """Of `as_dict`, also when JSON has made lists of tuples. ApiError: it is of another version."""
        if strange := set(stored) ^ set(cls.__slots__):
            what = "the stored fields, which another version wrote"
            raise ApiError(409, "other_version", what, ", ".join(sorted(strange)), "those of this version")
        fields: dict[str, Any] = dict(stored)
        lists = {name: tuple(own) for name, own in fields.items() if isinstance(own, list)}
        return cls(**fields | lists)


def read_wish(values: Mapping[str, Any], limits: Limits, *, live: bool = False) -> Wish:
    """Fields of JSON, or of a form, where all of them are text. ApiError: one that is unknown or wrong.

    live: for a live stream, which may be endless.
    """
    known = {*Wish.__slots__} - (set() if live else {"endless", "format"})
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    for name in given:
        if name == "input_reference":
            raise no_pictures(name)
        if name not in known:
            raise invalid("an unknown field", name, ", ".join(sorted(known)), "Leave it out.", name[:80])
    fields: dict[str, Any] = {}
    for name, most in _texts(limits).items():
        if name in given:
            fields[name] = _text(name, given[name], most)
    for name, (low, high) in _wholes(limits).items():
        if name in given:
            fields[name] = _whole(name, given[name], low, high)
    for name, (low_number, high_number) in NUMBERS.items():
        if name in given:
            fields[name] = _number(name, given[name], low_number, high_number)
    if "seconds" in given:
        _number("seconds", given["seconds"], 0.01, limits.seconds)
        fields["seconds"] = str(given["seconds"])
    if "size" in given:
        fields["size"] = _size(given["size"], limits.side)
    if "actions" in given:
        fields["actions"] = _actions(given["actions"], limits.frames)
    if "endless" in given:
        if not isinstance(given["endless"], bool):
            raise invalid("endless", given["endless"], "true or false", "Leave it out.", "endless")
        fields["endless"] = given["endless"]
    if "format" in given:
        if given["format"] not in FORMATS:
            raise invalid("format", given["format"], " | ".join(FORMATS), "Choose one of them.", "format")
        fields["format"] = given["format"]
    return Wish(**fields)


def no_pictures(name: str) -> ApiError:
    """Models that go on from a picture or a video are not served, so none is ever decoded."""
    fix = "Leave it out; `ardiff generate` and the Python API take pictures."
    return ApiError(
        400, "pictures_not_taken", name[:80], "a picture or a video", "text", fix, param=name[:80]
    )


def wish_schema(limits: Limits) -> dict[str, Any]:
    """JSON schema of the fields of a video."""
    texts = {name: {"type": "string", "maxLength": most} for name, most in _texts(limits).items()}
    wholes = {
        name: {"type": "integer", "minimum": low, "maximum": high}
        for name, (low, high) in _wholes(limits).items()
    }
    numbers = {
        name: {"type": "number", "minimum": low, "maximum": high} for name, (low, high) in NUMBERS.items()
    }
    seconds = {"type": "string", "pattern": r"^[0-9]{1,4}(\.[0-9]{1,3})?$"}
    size = {"type": "string", "pattern": "^[0-9]{1,5}x[0-9]{1,5}$"}
    names = {"type": "array", "items": {"type": "string"}, "maxItems": limits.frames}
    properties = {**texts, **wholes, **numbers, "seconds": seconds, "size": size, "actions": names}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _texts(limits: Limits) -> dict[str, int]:
    return {"model": 200, "prompt": limits.text, "negative_prompt": limits.text, "user": 200}


def _wholes(limits: Limits) -> dict[str, tuple[int, int]]:
    return {
        "num_frames": (1, limits.frames),
        "num_inference_steps": (1, limits.steps),
        "lag": (0, limits.steps),
        "class_id": (0, 2**31 - 1),
        "seed": (-(2**63), 2**63 - 1),
    }


def _text(name: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or "\x00" in value:
        raise invalid(name, value, f"a text of at most {most} characters", "Make it shorter.", name)
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    text = value if isinstance(value, str) else str(value)
    good = not isinstance(value, bool | float) and re.fullmatch(r"-?[0-9]{1,20}", text, re.ASCII)
    if not good or not low <= int(text) <= high:
        raise invalid(
            name, value, f"a whole number from {low} to {high}", "Change it, or leave it out.", name
        )
    return int(text)


def _number(name: str, value: Any, low: float, high: float) -> float:
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool) and len(str(value)) <= 40:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            pass
    if not low <= number <= high:  # NaN is in no range
        raise invalid(name, value, f"a number from {low:g} to {high:g}", "Change it, or leave it out.", name)
    return number


def _size(value: Any, side: int) -> tuple[int, int]:
    found = SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not all(1 <= int(part) <= side for part in found.groups()):
        expected = f'width x height such as "256x256", at most {side} each'
        raise invalid("size", value, expected, "Change it, or leave it out.", "size")
    return int(found[1]), int(found[2])


def _actions(value: Any, most: int) -> tuple[str, ...]:
    """A list of names; in a form, with commas between them."""
    names = [name.strip() for name in value.split(",", most)] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > most:
        expected = f'a list of at most {most} names such as ["left", "left", "none"]'
        raise invalid(
            "actions", value, expected, "Give one for each frame; the last one holds on.", "actions"
        )
    return tuple(names)
