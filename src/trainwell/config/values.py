"""The two value types of the configuration: a length of training, and a rate that may be a share of the peak.

Both accept every usual spelling and have one canonical form, so that equal values compare and print equal.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Unit = Literal["steps", "tokens", "%", "epochs", "minutes"]

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_UNITS: dict[str, tuple[Unit, Fraction]] = {
    "": ("steps", Fraction(1)),
    "step": ("steps", Fraction(1)),
    "token": ("tokens", Fraction(1)),
    "%": ("%", Fraction(1)),
    "epoch": ("epochs", Fraction(1)),
    "second": ("minutes", Fraction(1, 60)),
    "minute": ("minutes", Fraction(1)),
    "hour": ("minutes", Fraction(60)),
}
_NUMBER = r"\d[\d_,]*(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+"
_DURATION = re.compile(rf"\s*({_NUMBER})\s*([kmbt](?![a-z]))?\s*(%|[a-z]*)\s*", re.IGNORECASE)
_SHARE = re.compile(rf"\s*({_NUMBER})\s*(%?)\s*", re.IGNORECASE)


def _exact(text: str) -> Fraction:
    return Fraction(text.replace("_", "").replace(",", ""))


def _decimal(value: Fraction) -> str:
    """The shortest decimal spelling: '375', '0.5', '1.00000001'."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


@dataclass(frozen=True)
class Duration:
    """A length of training in one of five units; `500`, `"500 steps"`, `"375M tokens"`, `"10%"`, `"2 epochs"`.

    Hours and seconds are read too and become minutes. Steps and tokens are whole numbers.
    """

    amount: Fraction
    unit: Unit

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read any accepted spelling; raise ValueError saying what is accepted."""
        if isinstance(value, cls):
            return value
        match = _DURATION.fullmatch(str(value)) if isinstance(value, str | int | float) else None
        if match is None or isinstance(value, bool):
            raise ValueError('is not a duration; write 500, "375M tokens", "10%", "2 epochs" or "5 minutes"')
        number, suffix, word = match.groups()
        unit = _UNITS.get(word.lower().removesuffix("s"))
        if unit is None:
            raise ValueError(f"has the unit {word!r}; allowed are steps, tokens, %, epochs, minutes")
        amount = _exact(number) * _SUFFIXES[(suffix or "").lower()] * unit[1]
        if unit[0] in {"steps", "tokens"} and amount.denominator != 1:
            raise ValueError(f"is not a whole number of {unit[0]}")
        return cls(amount, unit[0])

    def plain(self) -> int | str:
        """The canonical spelling: a bare integer for steps, else text with its unit."""
        if self.unit == "steps":
            return int(self.amount)
        if self.unit == "%":
            return f"{_decimal(self.amount)}%"
        return f"{_short(self.amount)} {self.unit}" if self.unit == "tokens" else f"{_decimal(self.amount)} {self.unit}"

    def __str__(self) -> str:
        return str(self.plain()) if self.unit != "steps" else f"{self.plain()} steps"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _schema(cls)


def _short(count: Fraction) -> str:
    """A count with the largest suffix that keeps it exact and short: 375M, 1.5M, 524288."""
    for suffix in ("t", "b", "m", "k"):
        scaled = count / _SUFFIXES[suffix]
        if scaled >= 1 and (scaled * 100).denominator == 1:
            return _decimal(scaled) + suffix.upper().replace("K", "k")
    return _decimal(count)


@dataclass(frozen=True)
class Share:
    """A learning rate, absolute (`6e-5`) or as a share of the peak (`"10%"`)."""

    amount: Fraction
    of_peak: bool

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a number or a per cent; raise ValueError saying what is accepted."""
        if isinstance(value, cls):
            return value
        match = _SHARE.fullmatch(str(value)) if isinstance(value, str | int | float) else None
        if match is None or isinstance(value, bool):
            raise ValueError('is not a rate; write 6e-5, or a share of the peak such as "10%"')
        return cls(_exact(match.group(1)), bool(match.group(2)))

    def of(self, peak: float) -> float:
        """The absolute rate for this peak."""
        return float(self.amount * Fraction(repr(peak)) / 100) if self.of_peak else float(self.amount)

    def plain(self) -> float | str:
        """The canonical spelling: a float for a rate, text with % for a share."""
        return f"{_decimal(self.amount)}%" if self.of_peak else float(self.amount)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _schema(cls)


_SKIP = re.compile(r"\s*(\d+)\s*\+\s*(\d+)\s*")


def parse_skips(text: str | None) -> tuple[tuple[int, int], ...]:
    """Read `"1200+200, 5000+100"`: from step 1200 on 200 batches are left out, from step 5000 on another 100.

    Raises ValueError saying what is accepted; steps must ascend, so that each place is named once.
    """
    if text is None:
        return ()
    matches = [_SKIP.fullmatch(part) for part in text.split(",")]
    found = tuple((int(match[1]), int(match[2])) for match in matches if match)
    steps = [step for step, _ in found]
    if len(found) < len(matches) or not all(count for _, count in found) or steps != sorted(set(steps)):
        raise ValueError('is no list of skips; write STEP+BATCHES, such as "1200+200", or "1200+200, 5000+100"')
    return found


def _schema(kind: type[Duration] | type[Share]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(
        kind.parse, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.plain())
    )
