"""OpenSSH over `piko forward`: commands, exit codes, standard input, scp, a forwarded port"""

import pathlib
import subprocess
import time

from common import digest, pattern, sh, step

KIND = "tcp"
NEEDS = ["ssh", "/usr/sbin/sshd", "ssh-keygen", "scp"]
HOME = pathlib.Path()


def start(work, port):
    global HOME
    HOME = work
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        sh(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(work / name)])
    (work / "authorized").write_text((work / "user.pub").read_text())
    (work / "authorized").chmod(0o600)
    (work / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {work}/host\nAuthorizedKeysFile {work}/authorized\nStrictModes no\nUsePAM no\n"
        f"PidFile {work}/pid\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nPasswordAuthentication no\n")
    yield ["/usr/sbin/sshd", "-D", "-e", "-f", work / "config"]


def options(way, port="-p"):
    return [port, str(way.port), "-i", str(HOME / "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"]


def ssh(way, *command, **more):
    return sh(["ssh", *options(way), way.host, *command], **more)


@step
def a_command(way):
    return ssh(way, "echo hello; echo to stderr >&2")


@step
def its_exit_code(way):
    try:
        return ssh(way, "exit 7")
    except RuntimeError as e:
        return str(e)


@step
def standard_input_of_ten_megabytes(way):
    return ssh(way, "sha256sum", input=pattern(10_000_000))


@step
def standard_output_of_ten_megabytes(way):
    return len(ssh(way, "head -c 10000000 /dev/zero | tr '\\0' x"))


@step
def scp(way):
    (way.work / "file").write_bytes(pattern(5_000_000))
    sh(["scp", "-q", *options(way, "-P"), str(way.work / "file"), f"{way.host}:{way.work}/there"])
    sh(["scp", "-q", *options(way, "-P"), f"{way.host}:{way.work}/there", str(way.work / "back")])
    return digest(way.work / "back")


@step
def a_forwarded_port(way):
    with subprocess.Popen(["ssh", *options(way), "-N", "-L", f"{way.work}/socket:127.0.0.1:{way.port}", way.host]) as tunnel:
        try:
            for _ in range(100):
                if (way.work / "socket").exists():
                    break
                time.sleep(0.1)
            import socket

            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(str(way.work / "socket"))
                return s.recv(8).decode()
        finally:
            tunnel.terminate()
