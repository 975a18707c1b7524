"""Dates in file names: found where they are, and not where they are not."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geostudio_dagster.planning.dates import date_in_name

DATES = st.dates(dt.date(1972, 1, 1), dt.date(2099, 12, 31))


@given(
    DATES,
    st.sampled_from(["%Y-%m-%d", "%Y_%m_%d", "%Y.%m.%d", "%Y%m%d"]),
    st.sampled_from(["", "S2A_MSIL2A_", "scene-", "T33UWP_"]),
    st.sampled_from(["", "T101112", "_rgb", "_12", "-v2"]),
    st.sampled_from(["/data/", "file:///data/", "https://example.org/2001-01-01/", ""]),
)
def test_a_date_is_found(day: dt.date, form: str, before: str, after: str, folder: str) -> None:
    address = f"{folder}{before}{day.strftime(form)}{after}.tif"
    assert date_in_name(address) == day.isoformat()


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("LC08_L2SP_224078_20200518_20200820_02_T1.tif", "2020-05-18"),
        ("S2B_MSIL1C_20231105T101119_N0509_R022.tif", "2023-11-05"),
        ("13019099_20240229.tif", "2024-02-29"),
        ("2023-13-01_2023-12-01.tif", "2023-12-01"),
        ("scene_2024-06-30.tif?date=2020-01-01", "2024-06-30"),
        ("scene%5F2024-06-30.tif", "2024-06-30"),
    ],
)
def test_names_of_the_field(name: str, date: str | None) -> None:
    address = f"https://example.org/{name}"
    assert date_in_name(address) == date


@pytest.mark.parametrize(
    "name",
    [
        "scene.tif",
        "20230229.tif",
        "2023-02-30.tif",
        "2023-00-10.tif",
        "12345678.tif",
        "19000101.tif",
        "21500101.tif",
        "120230101.tif",
        "202301011.tif",
        "20230101123000.tif",
        "2023-0101.tif",
        "2023_01-01.tif",
        "2023-1-1.tif",
        "2024-06-30/scene.tif",
        "HLS.S30.T10TGS.2018285.tif",
        "",
    ],
)
def test_numbers_that_are_no_dates(name: str) -> None:
    assert date_in_name(f"/data/{name}") is None


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    found = date_in_name(text)
    assert found is None or dt.date.fromisoformat(found)
