"""Scripts in the field that are called by flags, of many styles."""

from geostudio_dagster_tests.processors.positional_scripts import GUARD

_ARGPARSE = "import argparse\ndef main():\n    ap = argparse.ArgumentParser()\n"

FLAGS = {
    "argparse": _ARGPARSE + "    ap.add_argument('--input', required=True)\n"
    "    ap.add_argument('--output', required=True)\n"
    "    ap.add_argument('--threshold', type=float, default=0.5)\n    print(ap.parse_args())\n"
    + GUARD,
    "short_names": _ARGPARSE + "    ap.add_argument('-i', '--input')\n"
    "    ap.add_argument('-o', '--output')\n    ap.parse_args()\n" + GUARD,
    "known_only": _ARGPARSE + "    ap.add_argument('--input')\n    ap.add_argument('--output')\n"
    "    args, rest = ap.parse_known_args()\n" + GUARD,
    "explicit_argv": "import argparse, sys\ndef main(argv=None):\n"
    "    ap = argparse.ArgumentParser()\n    ap.add_argument('--input')\n"
    "    ap.add_argument('--output')\n    ap.parse_args(argv)\n\n\n"
    "if __name__ == '__main__':\n    sys.exit(main(sys.argv[1:]))\n",
    "destinations": _ARGPARSE + "    ap.add_argument('--input', dest='src')\n"
    "    ap.add_argument('--output', dest='dst')\n    ap.parse_args()\n" + GUARD,
    "groups": _ARGPARSE + "    group = ap.add_argument_group('files')\n"
    "    group.add_argument('--input')\n    group.add_argument('--output')\n" + GUARD,
    "switches": _ARGPARSE + "    ap.add_argument('--input')\n    ap.add_argument('--output')\n"
    "    ap.add_argument('--dry', action='store_true')\n    ap.add_argument('--fast',\n"
    "        action=argparse.BooleanOptionalAction)\n"
    "    ap.add_argument('--bands', nargs='+', type=int)\n    ap.parse_args()\n" + GUARD,
    "click": "import click\n@click.command()\n@click.option('--input', 'src')\n"
    "@click.option('--output', 'dst')\n@click.option('--fast/--no-fast', default=False)\n"
    "def main(src, dst, fast):\n    pass\n" + GUARD,
    "click_short": "import click\n@click.command()\n@click.option('-i', '--input')\n"
    "@click.option('-o', '--output')\n@click.option('--quiet', is_flag=True)\n"
    "def main(input, output, quiet):\n    pass\n" + GUARD,
    "click_path": "import click\n@click.command()\n"
    "@click.option('--input', type=click.Path(exists=True), required=True)\n"
    "@click.option('--output', type=click.Path())\ndef cli(input, output):\n    pass\n\n\n"
    "if __name__ == '__main__':\n    cli()\n",
    "typer": "import typer\ndef main(input: str = typer.Option(...),\n"
    "         output: str = typer.Option(...)):\n    pass\n\n\n"
    "if __name__ == '__main__':\n    typer.run(main)\n",
    "typer_named": "import typer\napp = typer.Typer()\n@app.command()\n"
    "def main(src: str = typer.Option(..., '--input'), dst: str = typer.Option(..., '--output')):\n"
    "    pass\n\n\nif __name__ == '__main__':\n    app()\n",
    "fire": "import fire\ndef process(input, output, threshold=80):\n    pass\n\n\n"
    "if __name__ == '__main__':\n    fire.Fire(process)\n",
    "optparse": "from optparse import OptionParser\ndef main():\n    p = OptionParser()\n"
    "    p.add_option('--input')\n    p.add_option('--output')\n    p.parse_args()\n" + GUARD,
    "getopt": "import getopt, sys\ndef main():\n"
    "    opts, _ = getopt.getopt(sys.argv[1:], 'i:o:', ['input=', 'output=', 'threshold='])\n"
    + GUARD,
    "by_hand": "import sys\ndef main():\n    a = sys.argv\n"
    "    src = a[a.index('--input') + 1]\n    dst = a[a.index('--output') + 1]\n" + GUARD,
    "by_hand_loop": "import sys\ndef main():\n    for place, word in enumerate(sys.argv):\n"
    "        if word == '--input':\n            print(sys.argv[place + 1])\n" + GUARD,
    "pairs": "import sys\ndef main():\n    words = sys.argv[1:]\n"
    "    given = dict(zip(words[::2], words[1::2]))\n    print(given['--input'])\n" + GUARD,
    "dataclass": "import argparse\nfrom dataclasses import dataclass\n@dataclass\nclass Args:\n"
    "    input: str\n    output: str\ndef parse() -> Args:\n    p = argparse.ArgumentParser()\n"
    "    for name in ('--input', '--output'):\n        p.add_argument(name, required=True)\n"
    "    return Args(**vars(p.parse_args()))\ndef main():\n    parse()\n" + GUARD,
    "json_type": "import argparse, json\ndef main():\n    ap = argparse.ArgumentParser()\n"
    "    ap.add_argument('--input')\n    ap.add_argument('--output')\n"
    "    ap.add_argument('--classes', type=json.loads)\n    ap.parse_args()\n" + GUARD,
    "async_main": "import argparse, asyncio\nasync def main():\n"
    "    ap = argparse.ArgumentParser()\n"
    "    ap.add_argument('--input')\n    ap.add_argument('--output')\n\n\n"
    "if __name__ == '__main__':\n    asyncio.run(main())\n",
    "keyword_only_guard": "import argparse\nif __name__ == '__main__':\n"
    "    ap = argparse.ArgumentParser(prog='x')\n    ap.add_argument('--input')\n"
    "    ap.add_argument('--output')\n    ap.add_argument('--cloud-cover', type=float)\n"
    "    ap.parse_args()\n",
}
