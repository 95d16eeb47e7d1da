"""Numbers as people read them."""

from __future__ import annotations


def number(value: float | None) -> str:
    """A number to read: 12,345, 123, 17.3, 0.042; a dash where there is none."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 200 else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as a percentage."""
    if value is None:
        return "–"
    rounded = round(100 * value, digits) + 0.0  # + 0.0: no negative zero
    return f"{'−' if rounded < 0 else ''}{abs(rounded):.{digits}f} %"


def change(value: float | None) -> str:
    """A relative change with its sign: −31.4 %."""
    if value is None:
        return "–"
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.1f} %"


def share(value: float) -> str:
    """A probability as a percentage that keeps small ones apart."""
    return "< 0.01 %" if 0 < value < 1e-4 else f"{100 * value:.{2 if value < 0.1 else 1}f} %"
