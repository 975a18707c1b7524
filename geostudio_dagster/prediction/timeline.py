"""The timeline of a prediction's stages as a picture, so that one sees what bounds it.

One lane per thread. Above, the whole run: how busy each thread was, by stage, in slices of time.
Below, a moment out of its middle, span by span. The file needs nothing else to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from geostudio_dagster.prediction.report import PredictionReport, Span

SUFFIXES = (".svg", ".html")

# Okabe and Ito's colours, told apart with any kind of colour vision; pale is waiting.
_LOOKS = {
    "read": ("#0072b2", "read, decode and cut"),
    "normalise": ("#56b4e9", "normalise"),
    "forward": ("#009e73", "forward pass"),
    "blend": ("#e69f00", "blend"),
    "write": ("#d55e00", "classes and write"),
    "cog": ("#cc79a7", "make the COG"),
    "model": ("#777777", "load the model"),
    "calibrate": ("#f0e442", "calibrate"),
    "wait": ("#d3ece3", "wait for the forward pass"),
    "stall": ("#f7d4d4", "wait for pixels"),
}
_WAITING = ("wait", "stall")
_MAIN = "MainThread"
_NAMES = {_MAIN: "main: blend, write", "read-ahead": "reader"}
_LEFT, _WIDTH, _RIGHT = 170, 960, 40
_LANE, _GAP = 44, 10
_SLICES = 320
_BATCHES = 6  # per worker, in the moment out of the middle
_LONG_LOAD = 0.2  # share of the run
_FULL = 0.9  # busy share from which on a stage is what bounds the run


def write_timeline(path: Path, spans: Sequence[Span], report: PredictionReport) -> None:
    """Draw ``spans`` into ``path``: an SVG, or an HTML page around one, by its suffix."""
    picture = _picture([_renamed(span) for span in spans], report)
    if path.suffix.lower() == ".html":
        title = escape(_title(report))
        picture = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"</head>\n<body>\n{picture}</body></html>\n"
        )
    path.write_text(picture, "utf-8")


def _renamed(span: Span) -> Span:
    """In the main thread, the stage ``forward`` is waiting for a worker."""
    waits = span.stage == "forward" and not span.thread.startswith("forward")
    return span._replace(stage="wait") if waits else span


def _picture(spans: list[Span], report: PredictionReport) -> str:
    lanes = _lanes(spans)
    total = report.seconds["total"]
    height = len(lanes) * (_LANE + _GAP)
    first, second = 120, 120 + height + 90
    low, high = _moment(spans, total)
    stages = sorted({span.stage for span in spans}, key=list(_LOOKS).index)
    legend = second + height + 50
    rows = -(-len(stages) // 2)
    parts = [
        _text(20, 36, _title(report), size=20, weight="bold"),
        _text(20, 62, _verdict(spans, lanes, report), size=15),
        _text(20, first - 20, "The whole run: share of each thread's time", weight="bold"),
        *_axis(first, height, 0, total),
        *_sliced(lanes, first, total),
        _text(20, second - 20, "A moment out of its middle", weight="bold"),
        *_axis(second, height, low, high),
        *_spanned(lanes, second, low, high),
        *_legend(stages, spans, total, legend),
    ]
    bottom = legend + rows * 26 + 20
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom}" '
        f'width="{width}" height="{bottom}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="{width}" height="{bottom}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n"
        "</svg>\n"
    )


def _title(report: PredictionReport) -> str:
    megapixels, total = report.pixels / 1e6, report.seconds["total"]
    return (
        f"{megapixels:.1f} Mpx in {total:.1f} s ({megapixels / total:.2f} Mpx/s): {report.patches} "
        f"patches in batches of {report.batch_size}, {report.dtype} on {report.device}, "
        f"{report.workers} x {report.threads} threads"
    )


def _verdict(spans: list[Span], lanes: dict[str, list[Span]], report: PredictionReport) -> str:
    """A sentence or two on what a faster run would need."""
    workers = [lane for name, lane in lanes.items() if name.startswith("forward")]
    if not workers:
        return "Nothing went through the model."
    began = min(lane[0].start for lane in workers)
    ended = max(max(span.stop for span in lane) for lane in workers)
    during = ended - began
    busy = sum(_seconds(lane) for lane in workers) / (len(workers) * during)
    stalled = _seconds(s for s in spans if s.stage == "stall" and s.start >= began) / during
    loading = report.seconds["model"] / report.seconds["total"]
    said = f"Loading the model takes {loading:.0%} of the run. " if loading > _LONG_LOAD else ""
    said += f"Between first and last batch the workers compute {busy:.0%} of the time"
    if busy >= _FULL:
        return f"{said}: the forward pass bounds this run."
    if stalled > (1 - busy) / 2:
        return f"{said} and wait for pixels {stalled:.0%} of it: reading bounds this run."
    return f"{said}: blending and writing, or other work on this machine, hold them up."


def _seconds(spans: Iterable[Span]) -> float:
    return sum(span.stop - span.start for span in spans)


def _lanes(spans: list[Span]) -> dict[str, list[Span]]:
    """Spans by thread, in order of time; the reader first, the main thread last."""

    def place(thread: str) -> tuple[int, str]:
        return (0 if thread == "read-ahead" else 2 if thread == _MAIN else 1), thread

    ordered = sorted(spans, key=lambda span: (place(span.thread), span.start))
    return {name: list(lane) for name, lane in groupby(ordered, key=lambda span: span.thread)}


def _moment(spans: list[Span], total: float) -> tuple[float, float]:
    """When the middle batches are computed."""
    batches = sorted(
        (span for span in spans if span.thread.startswith("forward")), key=lambda span: span.start
    )
    if not batches:
        return 0.0, total
    workers = len({span.thread for span in batches})
    middle = len(batches) // 2
    around = _BATCHES * workers // 2
    shown = batches[max(middle - around, 0) : middle + around + 1]
    return shown[0].start, max(span.stop for span in shown)


def _sliced(lanes: dict[str, list[Span]], top: float, total: float) -> Iterator[str]:
    """Stacked bars: what share of each slice of time a thread spent on each stage."""
    length = total / _SLICES
    for row, (name, lane) in enumerate(lanes.items()):
        y = top + row * (_LANE + _GAP)
        yield _lane_name(name, y)
        for number, shares in enumerate(_shares(lane, length)):
            x, base = _LEFT + number * _WIDTH / _SLICES, y + _LANE
            for stage in sorted(shares, key=list(_LOOKS).index):
                tall = shares[stage] * _LANE
                base -= tall
                yield _bar(x, base, _WIDTH / _SLICES + 0.2, tall, stage)


def _shares(lane: list[Span], length: float) -> list[dict[str, float]]:
    slices: list[dict[str, float]] = [{} for _ in range(_SLICES)]
    for span in lane:
        first = min(int(span.start / length), _SLICES - 1)
        last = min(int(span.stop / length), _SLICES - 1)
        for number in range(first, last + 1):
            begin, end = number * length, (number + 1) * length
            part = (min(span.stop, end) - max(span.start, begin)) / length
            if part > 0:
                slices[number][span.stage] = slices[number].get(span.stage, 0.0) + part
    return slices


def _spanned(lanes: dict[str, list[Span]], top: float, low: float, high: float) -> Iterator[str]:
    """Each span as a bar with its duration to hover for."""
    scale = _WIDTH / (high - low)
    for row, (name, lane) in enumerate(lanes.items()):
        y = top + row * (_LANE + _GAP)
        yield _lane_name(name, y)
        for span in lane:
            start, stop = max(span.start, low), min(span.stop, high)
            if stop > start:
                x, wide = _LEFT + (start - low) * scale, max((stop - start) * scale, 0.4)
                note = f"{_LOOKS[span.stage][1]}: {1000 * (span.stop - span.start):.1f} ms"
                yield _bar(x, y, wide, _LANE, span.stage, note=note)


def _axis(top: float, height: float, low: float, high: float) -> Iterator[str]:
    bottom = top + height
    for number in range(9):
        x = _LEFT + _WIDTH * number / 8
        at = low + (high - low) * number / 8
        digits = 1 if high - low > 8 else 3  # noqa: PLR2004 - seconds per tick
        yield f'<line x1="{x}" y1="{top - 6}" x2="{x}" y2="{bottom}" stroke="#dddddd"/>'
        yield _text(x, bottom + 14, f"{at:.{digits}f} s", anchor="middle", size=12)


def _legend(stages: list[str], spans: list[Span], total: float, top: float) -> Iterator[str]:
    rows = -(-len(stages) // 2)
    for number, stage in enumerate(stages):
        mine = [span for span in spans if span.stage == stage]
        x, y = 20 + (number // rows) * 580, top + (number % rows) * 26
        seconds = _seconds(mine)
        share = f"{seconds / total:.1%} of the run" if total else ""
        yield _bar(x, y, 18, 18, stage)
        yield _text(x + 28, y + 14, f"{_LOOKS[stage][1]}: {seconds:.2f} s, {share}, {len(mine)} x")


def _lane_name(thread: str, y: float) -> str:
    worker = thread.partition("_")[2]
    name = f"worker {int(worker) + 1}" if worker.isdigit() else _NAMES.get(thread, thread)
    return _text(_LEFT - 12, y + _LANE / 2 + 5, name, anchor="end")


def _bar(x: float, y: float, wide: float, tall: float, stage: str, *, note: str = "") -> str:
    colour = _LOOKS[stage][0]
    place = f'x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{tall:.2f}" fill="{colour}"'
    return f"<rect {place}><title>{escape(note)}</title></rect>" if note else f"<rect {place}/>"


def _text(
    x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
