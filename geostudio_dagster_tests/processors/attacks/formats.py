"""Attacks by what is in the files: small ones that grow, that name others, that carry programs."""

from geostudio_dagster_tests.processors.attacks.attack import Attack

_MIB = 1024**2

FORMATS = [
    Attack(
        "tif_of_one_strip",
        """
        for _ in tiff("x.tif", size=30_000, blockysize=30_000, compress="deflate", sparse_ok=True):
            pass
        """,
        collected="x.tif",
        limits={"output_bytes": 1 << 30, "cpu_s": 10.0},
    ),
    Attack(
        "tif_of_many_bands",
        """
        import rasterio
        from rasterio.transform import from_origin
        with rasterio.open(out("x.tif"), "w", driver="GTiff", width=2, height=2, count=20_000,
                           dtype="uint8", crs="EPSG:32633", sparse_ok=True,
                           transform=from_origin(500000, 5300000, 10, 10)):
            pass
        """,
        collected="has more than 4096 bands",
    ),
    Attack(
        "tif_with_a_grid_file",
        """
        import rasterio
        from rasterio.transform import from_origin
        crs = f"+proj=longlat +ellps=bessel +nadgrids={P['secrets'][0]} +no_defs"
        with rasterio.open(out("x.tif"), "w", driver="GTiff", width=16, height=16, count=1,
                           dtype="uint8", crs=crs, transform=from_origin(8, 47, 0.1, 0.1)):
            pass
        """,
        collected="x.tif has a coordinate system that refers to files",
    ),
    Attack(
        "tif_with_hostile_words",
        """
        for file in tiff("x.tif"):
            file.update_tags(**{f"<script>{n}": "</Title>\\u202e\\x1b[2J&entity;" * 999
                                for n in range(60)})
            file.set_band_description(1, "<img src=x onerror=alert(1)>" * 99)
            file.write_colormap(1, {n: (n, 255 - n, 0, 0) for n in range(256)})
        """,
        collected=("x.tif",),
    ),
    Attack(
        "more_side_cars",
        """
        for _ in tiff("x.tif"):
            pass
        bomb = '<!DOCTYPE x [<!ENTITY a "' + "a" * 1000 + '"><!ENTITY b "' + "&a;" * 1000
        bomb += '">]><PAMDataset><Metadata><MDI key="x">' + "&b;" * 1000
        bomb += "</MDI></Metadata></PAMDataset>"
        source = "<VRTDataset><VRTRasterBand><SimpleSource><SourceFilename>/vsicurl/http://127.0.0.1:"
        for ending in [".aux.xml", ".AUX.XML", ".ovr", ".msk", ".msk.ovr", ".aux", ".rrd"]:
            open(out("x.tif" + ending), "w").write(bomb)
            open(out("x" + ending), "w").write(source)
        for ending in [".tfw", ".tifw", ".wld", ".TFW", ".tiffw", ".aux"]:
            open(out("x" + ending), "w").write("1\\n0\\n0\\n1\\n0\\n0\\n")
        """,
        collected=("x.tif",),
    ),
    Attack(
        "geojson_of_many_points",
        """
        with open(out("x.geojson"), "w") as file:
            file.write('{"type": "FeatureCollection", "features": [{"type": "Feature", '
                       '"properties": {}, "geometry": {"type": "LineString", "coordinates": [[1,2]')
            for _ in range(200):
                file.write(",[1,2]" * 10_000)
            file.write("]}}]}")
        """,
        collected="needs more memory to be read",
    ),
    *[
        Attack(
            f"geojson_asks_a_server_{name}",
            """
            address = f"http://127.0.0.1:{P['port']}/crs"
            link = json.dumps({"type": "link", "properties": {"href": address}})
            open(out("x.geojson"), "w").write(TEXT.replace("LINK", link))
            """.replace("TEXT", repr(text)),
            collected="x.geojson has a coordinate system that refers to files or addresses",
        )
        for name, text in {
            "once": '{"type": "FeatureCollection", "features": [], "crs": LINK}',
            "twice": '{"type": "FeatureCollection", "features": [], "crs": LINK, "crs": null}',
            "in_capitals": '{"type": "FeatureCollection", "features": [], "CRS": LINK}',
            "cut": r'{"type": "FeatureCollection", "features": [], "\u0063rs\u0000x": LINK}',
            "below": '{"type": "Feature", "properties": {}, "geometry": '
            '{"type": "Point", "coordinates": [1, 2], "crs": LINK}}',
            "by_name": '{"type": "FeatureCollection", "features": [], "crs": {"type": "name", '
            '"properties": {"name": "+proj=longlat +nadgrids=/etc/passwd"}}}',
        }.items()
    ],
    Attack(
        "geojson_of_numbers",
        """
        for number, value in enumerate(["NaN", "1e999", "[]", "null", '"a"', "{}"]):
            with open(out(f"{number}.geojson"), "w") as file:
                file.write('{"type": "Feature", "properties": {}, "geometry": '
                           '{"type": "Point", "coordinates": [1, %s]}}' % value)
        """,
        collected="geojson",
    ),
    Attack(
        "geopackage_with_programs",
        """
        import sqlite3
        import pyogrio, geopandas
        from shapely.geometry import Point
        frame = geopandas.GeoDataFrame({"n": [1]}, geometry=[Point(1, 2)], crs=4326)
        frame.to_file(out("x.gpkg"), driver="GPKG", layer="x")
        database = sqlite3.connect(out("x.gpkg"))
        for statement in [
            "CREATE TRIGGER t AFTER INSERT ON x BEGIN SELECT load_extension('x'); END",
            f"CREATE VIEW v AS SELECT readfile('{P['secrets'][0]}') AS a, n FROM x",
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('v', 'attributes', 'v')",
        ]:
            try:
                database.execute(statement)
            except sqlite3.Error as error:
                print(error)
        database.commit()
        """,
        collected="x.gpkg cannot be read",
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0},
    ),
    Attack(
        "geopackage_with_a_grid_file",
        """
        import geopandas
        from shapely.geometry import Point
        frame = geopandas.GeoDataFrame(
            {"n": [1]}, geometry=[Point(1, 2)],
            crs=f"+proj=longlat +ellps=bessel +nadgrids={P['secrets'][0]} +no_defs")
        frame.to_file(out("x.gpkg"), driver="GPKG", layer="x")
        frame.to_file(out("x.fgb"), driver="FlatGeobuf")
        """,
        collected="x.fgb has a coordinate system that refers to files",
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0},
    ),
    Attack(
        "half_a_geopackage",
        """
        import geopandas, numpy
        points = geopandas.points_from_xy(*numpy.random.default_rng(1).uniform(0, 9, (2, 20_000)))
        frame = geopandas.GeoDataFrame({"n": range(20_000)}, geometry=points, crs=4326)
        frame.to_file(out("x.gpkg"), driver="GPKG", layer="x", spatial_index=False)
        with open(out("x.gpkg"), "r+b") as file:
            file.seek(os.path.getsize(out("x.gpkg")) // 2)
            file.write(os.urandom(200_000))
        """,
        collected="x.gpkg",
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0},
    ),
    Attack(
        "half_a_flatgeobuf",
        """
        import geopandas, numpy
        points = geopandas.points_from_xy(*numpy.random.default_rng(1).uniform(0, 9, (2, 20_000)))
        frame = geopandas.GeoDataFrame({"n": range(20_000)}, geometry=points, crs=4326)
        frame.to_file(out("x.fgb"), driver="FlatGeobuf")
        os.truncate(out("x.fgb"), os.path.getsize(out("x.fgb")) // 2)
        """,
        collected="x.fgb",
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0},
    ),
    Attack(
        "half_a_parquet",
        """
        import numpy, pyarrow, pyarrow.parquet
        table = pyarrow.table({"a": numpy.random.default_rng(1).integers(0, 1 << 60, 100_000)})
        pyarrow.parquet.write_table(table, out("x.parquet"))
        with open(out("x.parquet"), "r+b") as file:
            file.seek(1000)
            file.write(os.urandom(200_000))
        """,
        collected="x.parquet cannot be read",
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0},
    ),
    Attack(
        "parquet_bomb",
        """
        import numpy, pyarrow, pyarrow.parquet
        text = pyarrow.DictionaryArray.from_arrays(
            pyarrow.array(numpy.zeros(2_000_000, "int32")), ["x" * 1_000])
        pyarrow.parquet.write_table(pyarrow.table({"a": text}), out("x.parquet"))
        assert os.path.getsize(out("x.parquet")) < 1_000_000
        """,
        collected=("x.parquet",),
        limits={"memory_bytes": 1024 * _MIB, "cpu_s": 10.0, "wall_s": 30.0},
    ),
    Attack(
        "csv_of_one_cell",
        """
        open(out("x.csv"), "w").write("a,b\\n" + "x" * 5_000_000 + ",1\\n")
        """,
        collected="x.csv cannot be read",
    ),
    Attack(
        "names_that_mean_something",
        """
        names = ["archive.zip", "report.json", "x.scratch.tif", "x.cog.tif", "NUL.tif",
                 "\\u00e9.csv", "e\\u0301.csv", "E\\u0301.csv", "a.tif.csv", "*.csv", "-.csv"]
        for name in names:
            if name.endswith(".tif"):
                for _ in tiff(name):
                    pass
            else:
                open(out(name), "w").write("[1]" if name.endswith("json") else "a\\n1\\n")
        """,
        collected=(
            *("E.csv", "NUL.tif", "a.tif.csv", "archive.zip", "e-2.csv", "e-3.csv"),
            *("file-2.csv", "file.csv", "report.json", "x.cog.tif", "x.scratch.tif"),
        ),
    ),
    Attack(
        "printed_prototype",
        """
        print("===== attempt 2, run 0 ===== finished")
        print("::set-output name=x::y")
        print('{"__dagster_pipes_version": "0.1", "method": "report_asset_check", "params": {}}')
        print('{"__proto__": {"admin": true}, "a": NaN, "b": 1e999, "c": "\\\\u0000\\\\ud800", '
              '"d": [-Infinity], "constructor": {"prototype": 1}}')
        """,
    ),
]
