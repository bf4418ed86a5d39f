"""The report: tables of medians, ratios taken round by round, and the cost curve as a picture."""
import math
from statistics import median


class Rounds:
    """Figures of several variants, a row a round. What the machine's other tenants do meanwhile falls on all of a
    round, so ratios are taken round by round."""

    def __init__(self, names):
        self.figures = {name: [] for name in names}

    def add(self, name, value):
        self.figures[name].append(value)

    def of(self, name):
        return median(self.figures[name])

    def ratio(self, of, to):
        return median(a / b for a, b in zip(self.figures[of], self.figures[to]))


def table(head, rows):
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(str, row))} |" for row in rows)]


COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def curve(title, unit, xs, series):
    """An SVG of lines over connections, both axes logarithmic."""
    width, height, left, bottom = 640, 360, 60, 40
    values = [v for line in series.values() for v in line]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = math.floor(low * 4) / 4, math.ceil(high * 4) / 4
    x = lambda n: left + math.log2(n / xs[0]) / math.log2(xs[-1] / xs[0]) * (width - left - 20)
    y = lambda v: 30 + (high - math.log10(v)) / (high - low) * (height - bottom - 30)
    text = lambda at, to, words, anchor="middle", fill="#555": (
        f'<text x="{at:.0f}" y="{to:.0f}" text-anchor="{anchor}" fill="{fill}" font-family="sans-serif" font-size="11">{words}</text>')
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
             f'<rect width="{width}" height="{height}" fill="#fff"/>', text(width / 2, 16, title, fill="#222")]
    for n in xs:
        parts += [f'<line x1="{x(n):.0f}" x2="{x(n):.0f}" y1="30" y2="{height - bottom}" stroke="#eee"/>', text(x(n), height - 24, n)]
    for step in range(int((high - low) * 4) + 1):
        v = 10 ** (low + step / 4)
        parts += [f'<line x1="{left}" x2="{width - 20}" y1="{y(v):.0f}" y2="{y(v):.0f}" stroke="#eee"/>', text(left - 6, y(v) + 4, f"{v:.3g}", "end")]
    for (name, line), colour in zip(series.items(), COLOURS):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in zip(xs, line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for n, (name, colour) in enumerate(zip(series, COLOURS)):
        parts.append(text(left + 10, 46 + 14 * n, name, "start", colour))
    parts += [text(width / 2, height - 8, "connections"), text(8, 24, unit, "start"), "</svg>"]
    return "\n".join(parts) + "\n"
