"""From samples to ratios: ``engine.json``, its details and tables."""

import contextlib
import datetime as dt
import json
import platform
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.samples import medians, ratio
from geostudio_dagster.cores import usable_cores

# What the figures of starts include.
_STARTS = {
    "ours": "a shard's process: its start, torch, the model from its kept program, all tiles",
    "ours first": "once per installation: TerraTorch builds the network, its program is made",
    "terratorch predict": "the process of one tile; its times are taken for each of the tiles",
}


def conclude(samples, place: Path):
    """Write ``engine.json`` (the key figures) and ``details.json``; print tables."""
    details = {
        "floor": {case: _floor(samples.of("floor", case)) for case in samples.cases("floor")},
        "versus": {case: _versus(samples.of("versus", case)) for case in samples.cases("versus")},
        "starts": {case: _starts(samples, case) for case in samples.cases("starts")},
        "memory": {case: _memory(samples, case) for case in samples.cases("memory")},
        "flips": {
            f"{case}: {label}": items[-1]["share"]
            for part in ("versus flips", "starts flips", "precision", "patches")
            for case in samples.cases(part)
            for label, items in samples.of(part, case).items()
        },
    }
    figures = _figures(details)
    (place / "engine.json").write_text(json.dumps(figures, indent=2) + "\n")
    (place / "details.json").write_text(json.dumps(details, indent=2) + "\n")
    _print(details)
    print(f"\n{place / 'engine.json'}, {place / 'details.json'}")


def _figures(details):
    """The figures that goals are set for; None for what was not measured."""
    floors, busy = {}, {}
    for case, found in details["floor"].items():
        for precision, value in found["ratios"].items():
            floors[f"{case} {precision}"] = value["wall"]
            busy[f"{case} {precision}"] = _wall(found["busy"][precision])
    versus = next(iter(details["versus"].values()), {"ratios": {}})["ratios"]
    starts = next(iter(details["starts"].values()), {})
    light = details["memory"].get("light", [])
    return {
        "over_floor": floors,
        "forward_busy": busy,
        "over_terratorch_defaults_exact": _wall(versus.get("defaults, exact")),
        "over_terratorch_defaults_auto": _wall(versus.get("defaults, auto")),
        "over_terratorch_best": _wall(versus.get("best, auto")),
        # Of starts with the model's program kept, and of the first one: see _STARTS.
        "over_per_tile_starts": _wall(starts.get("exact")),
        "over_per_tile_starts_auto": _wall(starts.get("auto", starts.get("exact"))),
        "over_per_tile_starts_first": _wall(starts.get("first exact")),
        "rss_growth_mb": round(light[-1]["above_model_mb"] - light[0]["above_model_mb"], 1)
        if light
        else None,
        "machine": _machine(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _wall(found):
    return found and found["wall"]


def _floor(samples):
    """Wall and CPU over the floor, by precision.

    The floor on a CPU is the forward pass plus the CPU time of decoding divided by the cores; on
    a GPU the larger of the two. Its CPU time is that of the forward pass plus the decoding's.
    """
    cores = usable_cores()
    devices = {item["result"].get("device", "cpu") for items in samples.values() for item in items}
    gpu = any(device.startswith("cuda") for device in devices)

    def wall(decode, forward, engine):
        spread = decode["cpu"] / cores
        floor = max(forward["wall"], spread) if gpu else forward["wall"] + spread
        return engine["wall"] / floor

    def cpu(decode, forward, engine):
        return engine["cpu"] / (forward["cpu"] + decode["cpu"])

    # The least of all: decoding is measured more often than either precision.
    decode = [min(samples["decode"], key=lambda sample: sample["cpu"])] * 1000
    found = {
        precision: ratio(
            samples | {"decode": decode},
            ("decode", f"forward {precision}", f"engine {precision}"),
            wall,
            cpu,
        )
        for precision in ("exact", "auto")
    }
    ratios = {precision: value for precision, value in found.items() if value}
    busy = {precision: _busy(samples, precision) for precision in ratios}
    return {"ratios": ratios, "busy": busy, "medians": medians(samples)}


def _busy(samples, precision):
    """Share of the engine's wall time in which at least one of its workers was computing.

    None of samples from before the engine counted that.
    """
    engines = samples[f"engine {precision}"]
    counted = [item for item in engines if "forward_busy" in item["result"]]
    return ratio(
        {"engine": counted},
        ("engine",),
        lambda engine: engine["result"]["forward_busy"] / engine["wall"],
    )


def _versus(samples):
    def over(slow, fast):
        return ratio(
            samples,
            (slow, fast),
            lambda a, b: a["wall"] / b["wall"],
            lambda a, b: a["cpu"] / b["cpu"],
        )

    # Where the device has no bfloat16, auto computes as exact does, and was not measured again.
    auto = "engine auto" if "engine auto" in samples else "engine exact"
    ratios = {
        "defaults, exact": over("terratorch defaults", "engine exact"),
        "defaults, auto": over("terratorch defaults", auto),
        "best, auto": over("terratorch best", auto),
    }
    return {"ratios": ratios, "medians": medians(samples)}


def _starts(samples, case):
    """Times as fast as one start per tile; theirs is measured for one tile and multiplied."""
    found = samples.of("starts", case)
    tiles = int(case.partition(", ")[2].partition(" ")[0])
    ratios = {
        precision: ratio(
            found,
            ("terratorch predict", f"ours {precision}"),
            lambda start, all_: tiles * start["wall"] / all_["wall"],
            lambda start, all_: tiles * start["cpu"] / all_["cpu"],
        )
        for precision in ("first exact", "first auto", "exact", "auto")
    }
    convert = [item["convert"] for items in found.values() for item in items if item.get("convert")]
    return {
        **{key: value for key, value in ratios.items() if value},
        "medians": medians(found),
        "convert_cpu": round(median(convert), 2) if convert else None,
    }


def _memory(samples, case):
    """The largest of each size, in order of size."""
    found = samples.of("memory", case)
    return [
        {"size": int(size), **{key: items[-1][key] for key in ("model_mb", "mpx_per_s")}}
        | {"above_model_mb": max(item["above_model_mb"] for item in items)}
        for size, items in sorted(found.items(), key=lambda pair: int(pair[0]))
    ]


def _machine():
    model = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    return {"processor": model, "cores": usable_cores(), "python": platform.python_version()}


def _print(details):
    console = Console()
    for part in ("floor", "versus"):
        for case, found in details[part].items():
            megapixels = int(case.partition("@")[2]) ** 2 / 1e6
            table = Table(
                "", "wall s", "CPU s", "Mpx/s", "others' cores", "rounds", title=case, box=None
            )
            for label, row in found["medians"].items():
                numbers = (row["wall"], row["cpu"], megapixels / row["wall"], row["others"])
                table.add_row(label, *(f"{n:.2f}" for n in numbers), str(row["rounds"]))
            console.print(table)
            for label, value in found["ratios"].items():
                if value:
                    kind = "over its floor" if part == "floor" else "times as fast"
                    console.print(
                        f"{label}: {value['wall']} {kind} ({value['from']} to {value['to']}, "
                        f"CPU {value['cpu']}, {value['rounds']} rounds, {value['disturbed']} of "
                        "all were disturbed)"
                    )
            for label, value in found.get("busy", {}).items():
                if value:
                    console.print(f"{label}: {value['wall']:.1%} of it some worker was computing")
            console.print()
    for case, found in details["starts"].items():
        _print_starts(console, case, found)
    for part in ("memory", "flips"):
        for case, found in details[part].items():
            console.print(f"{part}: {case}: {found}")


def _print_starts(console, case, found):
    """Starts with a kept program and the first one side by side, and what each includes."""
    table = Table("", "wall s", "CPU s", "times as fast", "from", "to", "CPU", title=case, box=None)
    for label, row in found["medians"].items():
        value = found.get(label.removeprefix("ours "), {})
        times = [str(value.get(key, "")) for key in ("wall", "from", "to", "cpu")]
        table.add_row(label, f"{row['wall']:.2f}", f"{row['cpu']:.2f}", *times)
    console.print(table)
    for label, included in _STARTS.items():
        console.print(f"{label}: {included}")
    console.print()
