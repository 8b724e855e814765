"""A store of S3's protocol with one bucket, in memory. store.py PORT prints `ready`, and serves until it is killed."""

import sys
import threading

import boto3
from moto.server import ThreadedMotoServer

port = int(sys.argv[1])
ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()
client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                      aws_access_key_id="a", aws_secret_access_key="b")
client.create_bucket(Bucket="bucket")
print("ready", flush=True)
threading.Event().wait()
