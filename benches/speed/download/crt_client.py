"""The AWS CRT client as a command: `put` a folder into a bucket, `get` a prefix of it into a folder.

    crt_client.py put ENDPOINT BUCKET PREFIX FOLDER
    crt_client.py get ENDPOINT BUCKET PREFIX FOLDER GBPS object|answers|nothing

The account is in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. `put` lets the client state a CRC-64/NVME of each object.
`get` lists the prefix to its last page, as everybody must who does not know the keys, then asks for all objects at once
and leaves it to the client how many of them are under way, which it decides by the throughput GBPS that it is to aim at;
each is written to its file by the client itself. What is held against the store's checksums is each `object`, which costs
the client a HEAD, or the `answers`, which is the same where an object comes in one. A last line `done: ...` says how many
objects came and how many of them were held against a checksum. Without arguments it only loads the client: what starting
costs.
"""

import collections
import os
import sys
import threading
import urllib.parse
import xml.etree.ElementTree

import awscrt.auth
import awscrt.http
import awscrt.io
import awscrt.s3

# Objects asked for at once: the client queues what it cannot send yet, but each costs memory.
ASKED = 512


class Bucket:
    def __init__(self, endpoint, name, gbps=None):
        self.host, self.name = urllib.parse.urlsplit(endpoint).netloc, name
        account = awscrt.auth.AwsCredentialsProvider.new_static(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        signing = awscrt.s3.create_default_s3_signing_config(region="us-east-1", credential_provider=account)
        plain = awscrt.s3.S3RequestTlsMode.DISABLED
        self.client = awscrt.s3.S3Client(region="us-east-1", tls_mode=plain, signing_config=signing, throughput_target_gbps=gbps)

    def ask(self, method, path, headers=(), **more):
        request = awscrt.http.HttpRequest(method, f"/{self.name}{path}", awscrt.http.HttpHeaders([("host", self.host), *headers]))
        return self.client.make_request(request=request, **more)

    def page(self, prefix, after):
        query = {"list-type": "2", "prefix": prefix, **({"continuation-token": after} if after else {})}
        body = bytearray()
        self.ask(
            "GET",
            "?" + urllib.parse.urlencode(query, quote_via=urllib.parse.quote),
            type=awscrt.s3.S3RequestType.DEFAULT,
            operation_name="ListObjectsV2",
            on_body=lambda chunk, **_: body.extend(chunk),
        ).finished_future.result()
        page = xml.etree.ElementTree.fromstring(bytes(body))
        space = page.tag[: page.tag.index("}") + 1]
        keys = [object.findtext(space + "Key") for object in page.findall(space + "Contents")]
        return keys, page.findtext(space + "NextContinuationToken")


def all_of(jobs):
    """Runs `jobs`, each of which starts a request and is told what to call at its end; the first failure is raised."""
    room, failures = threading.Semaphore(ASKED), []

    def ended(error=None, **_):
        if error is not None:
            failures.append(error)
        room.release()

    requests = collections.deque(maxlen=ASKED)
    for job in jobs:
        room.acquire()
        if failures:
            break
        requests.append(job(ended))
    for _ in range(ASKED):
        room.acquire()
    if failures:
        raise failures[0]


def put(bucket, prefix, folder):
    def job(key, path):
        checksum = awscrt.s3.S3ChecksumConfig(algorithm=awscrt.s3.S3ChecksumAlgorithm.CRC64NVME, location=awscrt.s3.S3ChecksumLocation.HEADER)
        headers = [("content-length", str(os.path.getsize(path)))]
        return lambda ended: bucket.ask(
            "PUT", "/" + key, headers, type=awscrt.s3.S3RequestType.PUT_OBJECT, send_filepath=path, checksum_config=checksum, on_done=ended
        )

    names = sorted(os.listdir(folder))
    all_of(job(f"{prefix}/{name}", os.path.join(folder, name)) for name in names)
    print(f"done: {len(names)} objects")


def get(bucket, prefix, folder, verified):
    keys, checked, after = 0, 0, None
    modes = {"object": awscrt.s3.S3ChecksumValidationMode.FULL_OBJECT, "answers": awscrt.s3.S3ChecksumValidationMode.REQUEST_ONLY}
    mode = modes.get(verified)
    checksum = mode and awscrt.s3.S3ChecksumConfig(validate_response=True, response_validation_mode=mode)

    def job(key):
        path = os.path.join(folder, key[len(prefix) + 1 :])

        def start(ended):
            def done(error=None, did_validate_checksum=False, **more):
                nonlocal checked
                checked += bool(did_validate_checksum)
                ended(error)

            return bucket.ask(
                "GET", "/" + urllib.parse.quote(key), type=awscrt.s3.S3RequestType.GET_OBJECT, recv_filepath=path, checksum_config=checksum, on_done=done
            )

        return start

    def jobs():
        nonlocal keys, after
        while True:
            page, after = bucket.page(prefix + "/", after)
            keys += len(page)
            yield from map(job, page)
            if not after:
                return

    all_of(jobs())
    print(f"done: {keys} objects, {checked} held against a checksum", flush=True)


if len(sys.argv) > 1:
    what, endpoint, bucket, prefix, folder = sys.argv[1:6]
    if what == "put":
        put(Bucket(endpoint, bucket), prefix, folder)
    else:
        get(Bucket(endpoint, bucket, float(sys.argv[6])), prefix, folder, sys.argv[7])
