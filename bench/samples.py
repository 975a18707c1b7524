"""Samples of one machine in one file, a line each, so that measuring can go on in pieces."""

import json
from pathlib import Path
from statistics import median

QUIET = 0.3  # cores that all other processes may use, or a sample says more of them


class Samples:
    """Appends to ``path``; what is there already counts as well."""

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._all = [json.loads(line) for line in lines]

    def add(self, part, case, label, **values):
        """Keep one sample, at once."""
        sample = {"part": part, "case": case, "label": label, **values}
        self._all.append(sample)
        with self._path.open("a") as stream:
            stream.write(json.dumps(sample) + "\n")

    def cases(self, part):
        """What was measured for a part, in order of first sight."""
        return list(dict.fromkeys(item["case"] for item in self._all if item["part"] == part))

    def of(self, part, case):
        """Samples by label."""
        found = {}
        for item in self._all:
            if item["part"] == part and item["case"] == case:
                found.setdefault(item["label"], []).append(item)
        return found


def ratio(samples, labels, wall, cpu=None):
    """Median, least and largest of the rounds' ratios, and how many rounds; None without any.

    ``wall`` and ``cpu`` make a ratio of one sample per label. Rounds that other processes
    disturbed count only where there is no other.
    """
    if not all(samples.get(label) for label in labels):
        return None
    every = list(zip(*(samples[label] for label in labels), strict=False))
    quiet = [row for row in every if all(item.get("others", 0) <= QUIET for item in row)]
    rounds = quiet or every
    walls = sorted(wall(*row) for row in rounds)
    found = {
        "wall": round(median(walls), 3),
        "from": round(walls[0], 3),
        "to": round(walls[-1], 3),
        "rounds": len(rounds),
        "disturbed": len(every) - len(quiet),
    }
    if cpu is not None:
        found["cpu"] = round(median(cpu(*row) for row in rounds), 3)
    return found


def medians(samples):
    """Wall and CPU seconds and the others' load by label."""
    return {
        label: {
            key: round(median(item[key] for item in items), 3) for key in ("wall", "cpu", "others")
        }
        | {"rounds": len(items)}
        for label, items in samples.items()
    }
