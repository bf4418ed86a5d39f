"""S3 (moto) by boto3: signed requests, multipart uploads, ranges, presigned URLs"""

import boto3
import botocore.config
import requests

from common import digest, pattern, python, step

KIND = "http"
NEEDS = []
REASONS = {("put_and_get", "Caddy"): "Caddy writes names its own way (`Kind`); nobody may tell them apart (RFC 9110, 5.1)"}
PIP = ["boto3", "moto[s3,server]", "requests"]


def start(work, port):
    # The first label of the host is the endpoint, not a bucket.
    yield ["env", "S3_IGNORE_SUBDOMAIN_BUCKETNAME=true", python(), "-m", "moto.server", "-H", "127.0.0.1", "-p", port]


def client(way):
    return boto3.client("s3", endpoint_url=way.url(""), aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1",
                        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}))


def bucket(way):
    return "b-" + way.name.lower().replace(" ", "-")


@step
def create_and_list(way):
    s3 = client(way)
    s3.create_bucket(Bucket=bucket(way))
    return bucket(way) in [b["Name"] for b in s3.list_buckets()["Buckets"]]


@step
def put_and_get(way):
    s3 = client(way)
    s3.put_object(Bucket=bucket(way), Key="a b/ü+c", Body=pattern(6_000_000), Metadata={"kind": "x"})
    answer = s3.get_object(Bucket=bucket(way), Key="a b/ü+c")
    return digest(answer["Body"].read()), answer["Metadata"], answer["ETag"]


@step
def multipart(way):
    s3 = client(way)
    (way.work / "large").write_bytes(pattern(20_000_000))
    s3.upload_file(str(way.work / "large"), bucket(way), "large")
    s3.download_file(bucket(way), "large", str(way.work / "back"))
    return digest(way.work / "back")


@step
def range_and_head(way):
    s3 = client(way)
    answer = s3.get_object(Bucket=bucket(way), Key="large", Range="bytes=5-104")
    return answer["ContentRange"], digest(answer["Body"].read()), s3.head_object(Bucket=bucket(way), Key="large")["ContentLength"]


@step
def conditional(way):
    s3 = client(way)
    tag = s3.head_object(Bucket=bucket(way), Key="large")["ETag"]
    try:
        s3.get_object(Bucket=bucket(way), Key="large", IfNoneMatch=tag)
    except s3.exceptions.ClientError as e:
        return e.response["ResponseMetadata"]["HTTPStatusCode"]


@step
def presigned(way):
    s3 = client(way)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket(way), "Key": "large"})
    put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket(way), "Key": "put"})
    return digest(requests.get(url, timeout=20).content), requests.put(put, data=b"x" * 100, timeout=20).status_code


@step
def delete_several(way):
    s3 = client(way)
    gone = s3.delete_objects(Bucket=bucket(way), Delete={"Objects": [{"Key": "large"}, {"Key": "put"}]})
    return len(gone["Deleted"]), [o["Key"] for o in s3.list_objects_v2(Bucket=bucket(way))["Contents"]]
