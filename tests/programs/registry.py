"""A container registry (docker-registry) by skopeo: push, list, pull"""

import hashlib
import json
import tarfile

from common import digest, pattern, sh, step

KIND = "http"
NEEDS = ["docker-registry", "skopeo"]


def start(work, port):
    (work / "config.yml").write_text(json.dumps({
        "version": 0.1, "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": f"{work}/data"}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"}}))
    image(work)
    yield ["docker-registry", "serve", work / "config.yml"]


def image(work):
    """An image of one layer of ten megabytes, as an OCI layout."""
    layout = work / "image"
    (layout / "blobs/sha256").mkdir(parents=True)
    (work / "content").write_bytes(pattern(10_000_000))
    with tarfile.open(work / "layer.tar", "w") as tar:
        tar.add(work / "content", "content", filter=lambda info: setattr(info, "mtime", 0) or info)

    def blob(data, kind):
        name = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": len(data)}

    layer = blob((work / "layer.tar").read_bytes(), "layer.v1.tar")
    config = blob(json.dumps({"architecture": "amd64", "os": "linux", "config": {},
                              "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}).encode(), "config.v1+json")
    manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                                "config": config, "layers": [layer]}).encode(), "manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def skopeo(way, *words):
    return sh(["skopeo", "--insecure-policy", *words])


def name(way):
    return f"docker://{way.authority}/team/{way.name.lower().replace(' ', '-')}:one"


@step
def push(way):
    skopeo(way, "copy", "-q", f"--dest-tls-verify={str(way.tls).lower()}", f"oci:{way.work.parent}/image", name(way))
    return json.loads(skopeo(way, "inspect", "--raw", f"--tls-verify={str(way.tls).lower()}", name(way)))["layers"][0]["digest"]


@step
def tags(way):
    return json.loads(skopeo(way, "list-tags", f"--tls-verify={str(way.tls).lower()}", name(way).rsplit(":", 1)[0]))["Tags"]


@step
def pull(way):
    skopeo(way, "copy", "-q", f"--src-tls-verify={str(way.tls).lower()}", name(way), f"oci:{way.work}/pulled")
    return sorted(digest(p) for p in (way.work / "pulled/blobs/sha256").iterdir())


@step
def delete(way):
    skopeo(way, "delete", f"--tls-verify={str(way.tls).lower()}", name(way))
    return sh(["skopeo", "inspect", f"--tls-verify={str(way.tls).lower()}", name(way)], ok=False).count("manifest unknown")
