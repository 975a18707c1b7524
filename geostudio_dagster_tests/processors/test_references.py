"""Which coordinate systems are told to refer to files or addresses."""

from __future__ import annotations

import pytest
from rasterio.crs import CRS

from geostudio_dagster.processors.references import names_files

MERCATOR = CRS.from_epsg(3857).to_wkt()
# As PROJ writes what WKT has no words for.
HARMLESS = [
    "EPSG:3857",
    "EPSG:32633",
    "EPSG:27700",
    "ESRI:54009",
    "+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80",
    "+proj=sinu +R=6371007.181",
]


@pytest.mark.parametrize("crs", HARMLESS)
@pytest.mark.parametrize("version", ["WKT1_GDAL", "WKT2_2019"])
def test_systems_of_numbers_and_names_are_harmless(crs: str, version: str) -> None:
    assert not names_files(CRS.from_user_input(crs).to_wkt(version=version))


def test_what_is_tested_has_a_proj_string() -> None:
    assert "EXTENSION[" in MERCATOR and "+nadgrids=@null +wktext" in MERCATOR


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("@null", "/etc/passwd"),
        ("@null", "@/etc/passwd"),
        ("@null", "@null,/etc/passwd"),
        ("@null", "@nullx"),
        ("@null", "@null\t+geoidgrids=x"),
        ("@null", "@null\u00a0x"),
        ("+wktext", "+geoidgrids=/etc/passwd"),
        ("+wktext", "+init=/etc/passwd:1"),
        ("+wktext", "init=/etc/passwd:1"),
        ("+wktext", "grids=/etc/passwd"),
        ("+wktext", "+xy_grids=1"),
        ("+wktext", "+proj=pipeline +step +proj=hgridshift +grids=x"),
        ("+wktext", "+file=/etc/passwd"),
        ("+wktext", "+ellps=/etc/passwd"),
        ("+wktext", "+lat_0=0/etc/passwd"),
        ("+wktext", "+unknown=1"),
        ("PROJ4", "PROJ4_GRIDS"),
        ('"]', '"],EXTENSION["PROJ4","+proj=longlat +nadgrids=/etc/passwd"]'),
        ('"]', '"],EXTENSION["PROJ4_GRIDS","/etc/passwd"]'),
    ],
)
def test_all_else_in_a_proj_string_may_name_a_file(words: str, others: str) -> None:
    begin, mark, end = MERCATOR.partition("EXTENSION[")
    assert words in end
    assert names_files(begin + mark + end.replace(words, others, 1))


@pytest.mark.parametrize(
    "crs",
    [
        "+proj=longlat +ellps=bessel +nadgrids=/etc/passwd +no_defs",
        "+proj=longlat +ellps=bessel +geoidgrids=/etc/passwd +no_defs",
    ],
)
@pytest.mark.parametrize("version", ["WKT1_GDAL", "WKT2_2019"])
def test_grid_files_are_found_in_either_wkt(crs: str, version: str) -> None:
    assert names_files(CRS.from_user_input(crs).to_wkt(version=version))
