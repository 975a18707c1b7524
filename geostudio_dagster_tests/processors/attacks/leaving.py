"""Attacks by what is printed and by what is left in the output folder."""

from geostudio_dagster_tests.processors.attacks.attack import Attack

LEAVING = [
    Attack(
        "long_log",
        """
        line = "x" * 1000
        for number in range(100_000):
            print(number, line)
        print("the end")
        """,
        says=("left out", "the end"),
    ),
    Attack(
        "one_line",
        """
        piece = b"y" * (8 << 20)
        for _ in range(128):  # 1 GiB
            os.write(1, piece)
        """,
        says=("left out",),
    ),
    Attack(
        "escape_sequences",
        r"""
        sys.stdout.write("\x1b[2J\x1b]0;title\x07\x1b[31mred\rgone\x08\x9b1m \u202eevil\u2066\n")
        sys.exit("\x1b[1mbold")
        """,
        reasons=("failed",),
        says=(r"\x1b[1mbold",),
    ),
    Attack(
        "not_utf8",
        r"""
        os.write(1, b"\xff\xfe\x00\x80 fine \xed\xa0\x80\n")
        """,
        says=("fine",),
    ),
    Attack("deep_json", """print('{"a":' * 100_000)"""),
    Attack("wide_json", """print(json.dumps({"status": "ok", "x": "y" * 1_000_000}))"""),
    Attack("huge_number", """print('{"a": ' + "9" * 50_000 + "}")"""),
    Attack(
        "reported_error",
        """
        print(json.dumps({"status": "error", "message": "no water here \\x1b[2J"}))
        """,
        reasons=("reported",),
        says=("no water here",),
    ),
    Attack(
        "link_to_accounts",
        """
        os.symlink("/etc/passwd", out("x.tif"))
        os.symlink(P["secrets"][0], out("y.tif"))
        """,
        collected="x.tif is a symbolic link",
    ),
    Attack(
        "link_to_folder",
        'os.symlink("/", out("all"))',
        collected="all is a symbolic link",
    ),
    Attack(
        "folder_behind_link",
        """
        attempt("remove", lambda: os.rmdir(OUTPUT))
        attempt("rename", lambda: os.rename(OUTPUT, "/job/other"))
        """,
        says=("blocked",),
    ),
    Attack(
        "hard_link",
        """
        open(out("a.csv"), "w").write("x\\n")
        os.link(out("a.csv"), out("b.csv"))
        """,
        collected="a.csv has a second name",
    ),
    Attack(
        "hard_link_outside",
        """
        for path in [INPUT, __file__, "/usr/bin/env", *P["secrets"]]:
            attempt(path, lambda: os.link(path, out("x")))
        """,
        says=("blocked",),
    ),
    Attack("pipe", 'os.mkfifo(out("x.csv"))', collected="x.csv is a pipe"),
    Attack(
        "socket_file",
        'socket.socket(socket.AF_UNIX).bind(out("x.csv"))',
        collected="x.csv is a socket",
    ),
    Attack(
        "hostile_names",
        r"""
        names = ["-rf", "a\nb.txt", "\x1b[2J.txt", "..\\..\\x.txt", "  ", "$(touch x).txt",
                 "a" * 250, "..a.txt", "e\u0301\u202etxt.exe", "A.txt", "a.txt", "';--.txt",
                 "%2e%2e%2f.txt", "con.txt", "<script>.html", "\U0001f600.txt"]
        for name in [*map(os.fsencode, names), b"\xff\xfe.txt"]:
            open(os.path.join(os.fsencode(OUTPUT), name), "w").close()
        os.makedirs(out("sub/deeper"))
        open(out("sub/deeper/a.txt"), "w").close()
        """,
        collected=(
            *("2J.txt", "2e_2e_2f.txt", "A-2.txt", "a-3.txt", "a.txt", "a_b.txt", "a" * 120),
            *("con.txt", "etxt.exe", "file", "file-2.txt", "file-3.txt", "file.txt", "rf"),
            *("script.html", "sub_deeper_a.txt", "touch_x.txt", "x.txt"),
        ),
    ),
    Attack(
        "deep_folders",
        'os.makedirs(out("/".join("abcdefghijklmnop")))',
        collected="lies deeper",
    ),
    Attack(
        "many_files",
        """
        for number in range(30):
            open(out(f"{number}.txt"), "w").close()
        """,
        collected="left more than 20 files",
    ),
    Attack(
        "sparse_files",
        """
        for number in range(4):
            with open(out(f"{number}.bin"), "wb") as file:
                file.truncate(15 << 20)
        """,
        collected="left more than 40 MiB",
    ),
    Attack(
        "closed_files",
        """
        open(out("a.csv"), "w").write("x\\n1\\n")
        os.chmod(out("a.csv"), 0)
        """,
        collected=("a.csv",),
    ),
    Attack(
        "overviews_elsewhere",
        """
        for file in tiff("x.tif"):
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=P["secrets"][0])
        """,
        collected="x.tif refers to overviews",
    ),
    Attack(
        "vrt_as_tif",
        """
        open(out("x.tif"), "w").write('''<VRTDataset rasterXSize="9" rasterYSize="9">
          <VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>%s</SourceFilename>
          <SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>''' % INPUT)
        """,
        collected="x.tif cannot be read",
    ),
    Attack(
        "vrt",
        'open(out("x.VRT"), "w").write("<VRTDataset/>")',
        collected="is a VRT",
    ),
    Attack(
        "side_cars",
        """
        for _ in tiff("x.tif"):
            pass
        open(out("x.tif.aux.xml"), "w").write('''<PAMDataset><Metadata domain="OVERVIEWS">
          <MDI key="OVERVIEW_FILE">%s</MDI></Metadata></PAMDataset>''' % P["secrets"][0])
        open(out("x.tif.ovr"), "w").write("<VRTDataset/>")
        open(out("x.tif.msk"), "w").write("<VRTDataset/>")
        """,
        collected=("x.tif",),
    ),
    Attack(
        "tif_of_nothing",
        """
        for _ in tiff("x.tif", size=40_000, tiled=True, sparse_ok=True, blockxsize=4096,
                      blockysize=4096):
            pass
        """,
        collected="bytes of pixels",
    ),
    Attack(
        "half_a_tif",
        """
        for file in tiff("x.tif", size=600):
            import numpy
            file.write(numpy.random.default_rng(1).integers(0, 99, (1, 600, 600), "uint8"))
        os.truncate(out("x.tif"), 100_000)
        """,
        collected="x.tif cannot be read",
    ),
    Attack(
        "tif_of_noise",
        """
        open(out("x.tif"), "wb").write(b"II*\\0" + os.urandom(5000))
        """,
        collected="x.tif cannot be read",
    ),
    Attack(
        "tif_without_place",
        """
        for _ in tiff("x.tif", crs=None):
            pass
        """,
        collected="has no place on earth",
    ),
    Attack(
        "geopackage_in_name",
        """
        open(out("x.gpkg"), "w").write("<OGRVRTDataSource/>")
        """,
        collected="is not what its name says",
    ),
    Attack(
        "deep_geojson",
        """
        open(out("x.geojson"), "w").write('{"type":' + "[" * 500_000)
        """,
        collected="x.geojson cannot be read",
    ),
    Attack(
        "table_of_rags",
        """
        open(out("x.csv"), "w").write("a,b\\n1,2\\n3\\n")
        """,
        collected="has 1 values in line 3, not 2",
    ),
]
