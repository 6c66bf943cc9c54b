"""A picture of a table of rates: for each line, how many times as fast the volume is as each of the others."""

from html import escape
from math import log10

_WIDTH, _LEFT, _ROW, _BAR = 880, 230, 34, 12
_COLOURS = {"ext4": "#8a8f98", "juicefs": "#2f81c7"}
_LOWEST, _HIGHEST = 0.1, 100.0


def _x(ratio: float) -> float:
    """Where a ratio is, on a logarithmic scale."""
    share = (log10(min(max(ratio, _LOWEST), _HIGHEST)) - log10(_LOWEST)) / (log10(_HIGHEST) - log10(_LOWEST))
    return _LEFT + share * (_WIDTH - _LEFT - 60)


def svg(rows: list[dict[str, object]], title: str) -> str:
    """The picture as SVG; `rows` as bench_mount.py has them."""
    height = 80 + _ROW * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, colour) in enumerate(_COLOURS.items()):
        at = 12 + number * 150
        parts.append(f'<rect x="{at}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 16}" y="44">as fast as {escape(name)}</text>')
    for tick in (0.1, 1, 10, 100):
        x = _x(tick)
        weight = 2 if tick == 1 else 0.5
        parts.append(f'<line x1="{x}" y1="58" x2="{x}" y2="{height - 8}" stroke="#444" stroke-width="{weight}"/>')
        parts.append(f'<text x="{x}" y="54" text-anchor="middle">{tick:g}x</text>')
    for number, row in enumerate(rows):
        y = 66 + number * _ROW
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 16}" text-anchor="end">{escape(str(row["line"]))}</text>')
        ratios: dict[str, float] = row["ratios"]  # type: ignore[assignment]
        for place, (name, ratio) in enumerate(ratios.items()):
            start, end = sorted((_x(1), _x(ratio)))
            top = y + place * (_BAR + 1)
            parts.append(
                f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}" height="{_BAR}"'
                f' fill="{_COLOURS.get(name, "#444")}"/>'
            )
            beside = (end + 4, "start") if ratio >= 1 else (start - 4, "end")
            parts.append(
                f'<text x="{beside[0]:.1f}" y="{top + 10}" font-size="10" text-anchor="{beside[1]}">{ratio:.2f}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
