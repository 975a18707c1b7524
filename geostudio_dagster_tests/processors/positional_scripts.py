"""Scripts in the field that are called by positions, of many styles."""

GUARD = '\n\nif __name__ == "__main__":\n    main()\n'

POSITIONAL = {
    "plain": "import sys, json\nsrc, dst = sys.argv[1], sys.argv[2]\np = json.loads(sys.argv[3])\n"
    "def main():\n    print(src, dst, p)\n" + GUARD,
    "from_import": "from sys import argv\nimport json\ndef main():\n"
    "    i, o = argv[1], argv[2]\n    p = json.loads(argv[3])\n" + GUARD,
    "unpacked": "import sys, json\ndef main():\n    _, src, dst, raw = sys.argv\n"
    "    p = json.loads(raw)\n" + GUARD,
    "unpacked_slice": "import sys, json\ndef main():\n    src, dst, raw = sys.argv[1:4]\n" + GUARD,
    "slice_to_end": "import sys, json\ndef main():\n    src, dst, raw = sys.argv[1:]\n" + GUARD,
    "spread": "import sys, json\ndef work(src, dst, raw):\n    print(json.loads(raw))\n\n\n"
    "if __name__ == '__main__':\n    work(*sys.argv[1:])\n",
    "spread_four": "import sys\ndef work(a, b, c):\n    pass\n\n\n"
    "if __name__ == '__main__':\n    sys.exit(work(*sys.argv[1:4]))\n",
    "aliased_module": "import sys as system, json\ndef main():\n    a = system.argv\n"
    "    process(a[1], a[2], json.loads(a[3]))\ndef process(*x):\n    pass\n" + GUARD,
    "own_list": "import sys, json\ndef main():\n    args = sys.argv[1:]\n"
    "    if len(args) != 3:\n        raise SystemExit('usage')\n"
    "    inp = args[0]\n    out = args[1]\n    params = json.loads(args[2])\n" + GUARD,
    "optional_parameters": "import sys, json\ndef main():\n    src = sys.argv[1]\n"
    "    dst = sys.argv[2]\n    p = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}\n" + GUARD,
    "argparse_positional": "import argparse, json\ndef main():\n"
    "    ap = argparse.ArgumentParser()\n    ap.add_argument('input_path')\n"
    "    ap.add_argument('output_path')\n    ap.add_argument('parameters', type=json.loads)\n"
    "    print(ap.parse_args())\n" + GUARD,
    "argparse_optional_third": "import argparse\ndef main():\n    ap = argparse.ArgumentParser()\n"
    "    ap.add_argument('src')\n    ap.add_argument('dst')\n"
    "    ap.add_argument('params', nargs='?', default='{}')\n    ap.parse_args()\n" + GUARD,
    "click_arguments": "import click\n@click.command()\n@click.argument('src')\n"
    "@click.argument('dst')\n@click.argument('params')\ndef main(src, dst, params):\n    pass\n"
    + GUARD,
    "typer_arguments": "import typer\ndef main(src: str = typer.Argument(...),\n"
    "         dst: str = typer.Argument(...), params: str = typer.Argument('{}')):\n    pass\n\n\n"
    "if __name__ == '__main__':\n    typer.run(main)\n",
    "class_based": "import json, sys\nclass Processor:\n    def __init__(self, argv):\n"
    "        self.argv = argv\n    def run(self):\n        pass\n\n\n"
    "if __name__ == '__main__':\n    Processor([sys.argv[1], sys.argv[2], sys.argv[3]]).run()\n",
    "guard_first": "if __name__ == '__main__':\n    import sys, json\n"
    "    print(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))\n",
    "yoda_guard": "import sys\ndef main():\n    print(sys.argv[1], sys.argv[2], sys.argv[3])\n\n\n"
    "if '__main__' == __name__:\n    main()\n",
    "walrus": "import sys, json\ndef main():\n    if (p := json.loads(sys.argv[3])):\n"
    "        print(sys.argv[1], sys.argv[2], p)\n" + GUARD,
    "negative_index": "import sys, json\ndef main():\n    src = sys.argv[1]\n"
    "    params = json.loads(sys.argv[-1])\n" + GUARD,
    "tabs_and_crlf": "import sys, json\r\ndef main():\r\n\tprint(sys.argv[1])\r\n"
    "\tprint(json.loads(sys.argv[3]))\r\nif __name__ == '__main__':\r\n\tmain()\r\n",
    "try_except": "import sys, json\ntry:\n    import rasterio\nexcept ImportError:\n"
    "    rasterio = None\ndef main():\n    try:\n        p = json.loads(sys.argv[3])\n"
    "    except (IndexError, ValueError):\n        p = {}\n    print(sys.argv[1], p)\n" + GUARD,
    "unicode": "# -*- coding: utf-8 -*-\nimport sys, json\nprédiction = sys.argv[1]\n"
    "def main():\n    print('Größe', prédiction, sys.argv[2])\n" + GUARD,
}
