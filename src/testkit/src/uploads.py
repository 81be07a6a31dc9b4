"""Fills the object stores of the tests through their makers' own clients.

Takes one JSON order as its argument and prints one JSON answer. Who uploads with another client than Berth's own also
checks that Berth reads what the world writes.
"""

import concurrent.futures
import datetime
import json
import os
import sys

THREADS = 16


def files(order):
    """Key and path of every file that the order names."""
    for put in order.get("puts", []):
        yield put["key"], put["file"], put
    folder = order.get("folder")
    for parent, _, names in os.walk(folder) if folder else []:
        for name in names:
            path = os.path.join(parent, name)
            yield order.get("prefix", "") + os.path.relpath(path, folder), path, {}


def each(work, items):
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda item: work(*item), items))


def s3(order):
    import boto3
    from botocore.config import Config

    config = Config(
        max_pool_connections=THREADS,
        # Nothing but what the order asks for: stores without checksums are to be tested too.
        request_checksum_calculation="when_required",
        s3={"addressing_style": "path"},
    )
    client = boto3.client(
        "s3",
        endpoint_url=order["endpoint"],
        aws_access_key_id=order["access_key"],
        aws_secret_access_key=order["secret_key"],
        region_name="us-east-1",
        verify=order.get("authority"),
        config=config,
    )
    bucket = order["bucket"]
    for name in order.get("make", []):
        client.create_bucket(Bucket=name)
    if "policy" in order:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(order["policy"]))

    def put(key, path, how):
        checksum = {"ChecksumAlgorithm": how["checksum"]} if how.get("checksum") else {}
        part = how.get("part_size")
        if not part:
            with open(path, "rb") as body:
                return client.put_object(Bucket=bucket, Key=key, Body=body, **checksum)
        whole = {"ChecksumType": how["checksum_type"]} if checksum else {}
        upload = client.create_multipart_upload(Bucket=bucket, Key=key, **checksum, **whole)["UploadId"]
        parts = []
        with open(path, "rb") as body:
            while data := body.read(part):
                number = len(parts) + 1
                done = client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data, **checksum)
                sums = {name: value for name, value in done.items() if name.startswith("Checksum") and name != "ChecksumType"}
                parts.append({"PartNumber": number, "ETag": done["ETag"], **sums})
        return client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **whole
        )

    answers = each(put, files(order))
    return [{name: value for name, value in answer.items() if name != "ResponseMetadata"} for answer in answers]


def azure(order):
    from azure.storage import blob

    account = blob.BlobServiceClient(
        order["endpoint"],
        credential={"account_name": order["account"], "account_key": order["key"]},
        connection_verify=order.get("authority", True),
    )
    container = account.get_container_client(order["container"])
    if order.get("make"):
        container.create_container(public_access=order.get("public"))
    each(lambda key, path, how: container.upload_blob(key, open(path, "rb"), overwrite=True), files(order))
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    return blob.generate_container_sas(
        order["account"], order["container"], order["key"], permission=order.get("rights", "rl"), expiry=soon
    )


def gcs_key(_):
    """The private key of a service account, as its file has it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps({"s3": s3, "azure": azure, "gcs": gcs_key}[asked["store"]](asked), default=str))
