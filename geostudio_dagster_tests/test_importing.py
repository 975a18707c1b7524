"""Imports while the collector rests; each in a process of its own, for what it sets aside stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARTS = {
    "rests in the body and works afterwards": """
with importing("colorsys"):
    assert not gc.isenabled()
    import colorsys
assert gc.isenabled()
assert gc.get_freeze_count() > 0
""",
    "what is made afterwards is collected": """
import weakref
with importing("colorsys"):
    import colorsys
class Circle: pass
circle = Circle()
circle.itself = circle
gone = weakref.ref(circle)
del circle
gc.collect()
assert gone() is None
""",
    "does nothing where the module is there": """
import colorsys
with importing("colorsys"):
    assert gc.isenabled()
assert gc.get_freeze_count() == 0
""",
    "works again after an import that fails": """
try:
    with importing("no_such_module"):
        import no_such_module
except ModuleNotFoundError:
    assert gc.isenabled()
else:
    raise AssertionError
""",
    "stays off where it was off": """
gc.disable()
with importing("colorsys"):
    import colorsys
assert not gc.isenabled()
""",
    "works again once the last of several threads is out": """
import threading
inside, out = threading.Event(), threading.Event()
def longer():
    with importing("colorsys"):
        inside.set()
        out.wait()
thread = threading.Thread(target=longer)
with importing("colorsys"):
    thread.start()
    inside.wait()
out.set()
thread.join()
assert gc.isenabled()
""",
    "is done by the code location": """
import geostudio_dagster.definitions
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
""",
}


@pytest.mark.parametrize("part", PARTS)
def test_the_collector(part: str) -> None:
    script = "import gc\nfrom geostudio_dagster.importing import importing\n" + PARTS[part]
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
