"""PostgreSQL over `piko forward`, by psql: COPY, a cursor, a cancelled query, LISTEN, an error"""

import glob
import os
import pathlib
import shutil

from common import sh, step

KIND = "tcp"
NEEDS = ["psql", "setpriv"]


def binary(name):
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))), None)
    return str(pathlib.Path(found).resolve()) if found else name


def start(work, port):
    # PostgreSQL refuses to run as root.
    who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    data = work / "data"
    data.mkdir()
    if who:
        os.chown(data, 65534, 65534)
    sh([*who, binary("initdb"), "-D", str(data), "-U", "me", "--auth=trust", "--no-sync"], env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})
    yield [*who, binary("postgres"), "-D", data, "-p", port, "-k", "", "-h", "127.0.0.1", "-c", "fsync=off"]


def sql(way, text, ok=True, **more):
    return sh(["psql", "-X", "-q", "-At", "-h", way.host, "-p", str(way.port), "-U", "me", "postgres", "-v", "ON_ERROR_STOP=1"], text, ok=ok, **more)


def table(way):
    return "t_" + way.name.lower().replace(" ", "_")


@step
def create_and_copy_in(way):
    rows = "".join(f"{n}\tvalue {n}\n" for n in range(100_000))
    return sql(way, f"create table {table(way)} (a int, b text);\n\\copy {table(way)} from stdin\n{rows}\\.\nselect count(*), sum(a) from {table(way)};\n")


@step
def copy_out(way):
    return len(sql(way, f"\\copy {table(way)} to stdout\n").splitlines())


@step
def a_large_result(way):
    return len(sql(way, f"select a, repeat(b, 20) from {table(way)} order by a;"))


@step
def a_transaction_with_a_cursor(way):
    return sql(way, f"begin; declare c cursor for select a from {table(way)} order by a; fetch 3 from c; move 100 in c; fetch 1 from c; commit;")


@step
def a_query_that_is_cancelled(way):
    return sql(way, "set statement_timeout = 500; select pg_sleep(20);", ok=False).split(": ", 1)[-1], sql(way, "select 1;")


@step
def listen_and_notify(way):
    return sql(way, "listen c; notify c, 'hello'; select 1;").split(" received from")[0]


@step
def an_error(way):
    return sql(way, "select * from none;", ok=False).splitlines()[0].split("ERROR")[-1]
