"""Users' scripts as tests upload them: the guide's template, its flags, failures, endless ones."""

from __future__ import annotations

from geostudio_dagster.catalog import ProcessorRecord
from geostudio_dagster.installation import Installation
from geostudio_dagster.pipeline.processor_uploads import parse_metadata, upload_processor

# By positions: drops a class of the prediction, and says how much that was.
DROP = """
import json
import sys

import rasterio


def main():
    source, target, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with rasterio.open(source) as dataset:
        band, profile = dataset.read(1), dataset.profile
    found = int((band == parameters["drop"]).sum())
    band[band == parameters["drop"]] = 255
    with rasterio.open(target, "w", **profile) as out:
        out.write(band, 1)
    print(json.dumps({"status": "success", "dropped": found, "source": source}))


if __name__ == "__main__":
    main()
"""

# By flags: a raster, a vector and a table of it.
COUNT = """
import argparse
import csv
import json
from pathlib import Path

import numpy as np
import rasterio


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--factor", type=float, default=1.0)
    options = parser.parse_args()
    folder = Path(options.output)
    with rasterio.open(options.input) as dataset:
        band, profile = dataset.read(1), dataset.profile
        west, south, east, north = dataset.bounds
    profile.update(dtype="float32", nodata=-1)
    valid = np.where(band == 255, -1, band * options.factor).astype("float32")
    with rasterio.open(folder / "scaled.tif", "w", **profile) as out:
        out.write(valid, 1)
    with open(folder / "counts.csv", "w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["value", "pixels"])
        writer.writerows(zip(*np.unique(band, return_counts=True)))
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    feature = {
        "type": "Feature",
        "properties": {"pixels": int(band.size)},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    document = {"type": "FeatureCollection", "features": [feature]}
    (folder / "outline.geojson").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
"""

FAIL = """
import sys

if __name__ == "__main__":
    print("looking for clouds")
    sys.exit("no cloud band in this scene")
"""

ENDLESS = """
import sys
import time

if __name__ == "__main__":
    while True:
        time.sleep(0.05)
"""


def upload(
    installation: Installation,
    name: str,
    script: str,
    *,
    owner: str = "ada@example.org",
    **metadata: object,
) -> ProcessorRecord:
    """A registered processor."""
    document = parse_metadata({"name": name, **metadata})
    return upload_processor(
        installation, document, "script.py", script.encode(), owner=owner, sharable=True
    )
