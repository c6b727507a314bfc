"""Cosmos Embed1 by the OpenAI SDK: `extra_body` carries what OpenAI's API does not have."""

import base64
import os

from openai import OpenAI, UnprocessableEntityError

client = OpenAI(base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"], max_retries=0)
MODEL = "nvidia/cosmos-embed1"
VIDEO = "data:video/mp4;base64," + base64.b64encode(os.urandom(300_000)).decode()
PRESIGNED = "data:video/mp4;presigned_url,https://download.samplelib.com/mp4/sample-5s.mp4"


def embed(texts, kind):
    return client.embeddings.create(model=MODEL, input=texts, extra_body={"request_type": kind})


text = embed("A fluffy white cat basking in the sun.", "query")
assert len(text.data[0].embedding) == 256 and text.usage.num_videos == 0

video = embed(VIDEO, "query")
assert video.usage.num_videos == 1 and video.data[0].embedding != text.data[0].embedding

both = embed([PRESIGNED, PRESIGNED], "bulk_video")
assert both.usage.num_videos == 2 and both.data[0].embedding == both.data[1].embedding

most = embed([f"sentence {number}" for number in range(64)], "bulk_text")
assert [item.index for item in most.data] == list(range(64))


def refused(texts, **body):
    try:
        client.embeddings.create(model=MODEL, input=texts, extra_body=body)
    except UnprocessableEntityError as error:
        assert error.response.headers["x-nimgate-error"] == "schema_violation"
        return [place["loc"] for place in error.body["detail"]]
    raise AssertionError(f"{body} was let through")


assert refused("text")[0][0] == "body"
assert refused("text", request_type="bulk")[0] == ["body", "request_type"]
assert refused(["text"] * 65, request_type="bulk_text")[0] == ["body", "input"]
assert refused([VIDEO], request_type="bulk_video")[0][:2] == ["body", "input"]
