#!/usr/bin/env python3
"""make chaos: faults of a running cluster, each with what its clients saw of it, beside NGINX and HAProxy where they can
play. `--write` puts the table into docs/reliability.md, `--only NAME,NAME` runs some.

Everything runs in a network namespace of its own, is bounded in time, and ends with this program.
"""
import argparse, asyncio, re, subprocess, sys

import lab
from cases import CASES
from peers import PEERS

#: How long one case may take, seconds.
LIMIT = 180
REPORT = lab.ROOT / "docs/reliability.md"
BEGIN, END = "<!-- written by make chaos -->\n", "<!-- end -->\n"


async def bounded(function):
    async with asyncio.timeout(LIMIT):
        return await function()


def run(function):
    try:
        return asyncio.run(bounded(function))
    finally:
        lab.end()


def rows(only):
    for name, what, wanted, function in CASES:
        if only and name not in only:
            continue
        try:
            said, good = run(function)
        except (AssertionError, TimeoutError, OSError) as error:
            said, good = f"{type(error).__name__}: {error}", False
        others = ["", ""]
        if name in PEERS:
            try:
                others = run(PEERS[name])
            except (AssertionError, TimeoutError, OSError) as error:
                others = [f"not run: {error}"] * 2
        yield name, good, [what, wanted, ("" if good else "**not met:** ") + said, *others]


def main():
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    options = parser.parse_args()
    unknown = set(options.only) - {name for name, *_ in CASES}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(name for name, *_ in CASES)}")
    lab.enter()
    table, failed = ["| Fault | Wanted | Piko | NGINX | HAProxy |", "|---|---|---|---|---|"], []
    for name, good, row in rows(options.only):
        print(f"{'ok  ' if good else 'FAIL'} {name}: {' | '.join(cell for cell in row if cell)}", flush=True)
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        if not good:
            failed.append(name)
    if options.write:
        version = subprocess.run([lab.PIKO, "--version"], capture_output=True, text=True).stdout.strip()
        text = REPORT.read_text()
        part = f"{BEGIN}{version}, {lab.os.cpu_count()} cores.\n\n" + "\n".join(table) + f"\n{END}"
        REPORT.write_text(re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: part, text, flags=re.S))
    if failed:
        print(f"not met: {', '.join(failed)}; the cases alone: make chaos ONLY={','.join(failed)}", file=sys.stderr)
    return bool(failed)


sys.exit(main())
