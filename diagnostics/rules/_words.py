"""Numbers and names as people write them, in sentences and in LaTeX."""

import numpy as np


def number(value: float) -> str:
    """Three significant digits, as people write them."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "infinite"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def tex(value: float) -> str:
    """The same for LaTeX."""
    text = number(value)
    if "e" in text and text not in ("infinite",):
        mantissa, exponent = text.split("e")
        return rf"{mantissa}\cdot 10^{{{int(exponent)}}}"
    return {"NaN": r"\text{NaN}", "infinite": r"\infty"}.get(text, text.replace(",", r"\,"))


def counted(count: int, noun: str) -> str:
    """'1 unit', '2 units'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def names_of(layers: tuple[str, ...] | list[str], most: int = 3) -> str:
    """'a, b and 4 more', for sentences."""
    shown = [str(each) for each in layers[:most]]
    more = len(layers) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def shape_of(sizes: list[int]) -> str:
    """'(32, 10)'."""
    return f"({', '.join(str(int(size)) for size in sizes)})"


def modules_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each once; a parameter of the model's own by its name."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
