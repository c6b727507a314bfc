"""The SDK asks for base64 unless told otherwise; the vectors are the same either way, and in the order of the input."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"])
TEXTS = ["first", "second", "first", "third"]


def vectors(model, texts, **options):
    answer = client.embeddings.create(model=model, input=texts, **options)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert answer.usage.prompt_tokens > 0
    return [item.embedding for item in answer.data]


def compare(model, body):
    default = vectors(model, TEXTS, extra_body=body)
    floats = vectors(model, TEXTS, extra_body=body, encoding_format="float")
    explicit = vectors(model, TEXTS, extra_body=body, encoding_format="base64")
    assert len(default) == len(TEXTS) and all(isinstance(value, float) for value in default[0])
    # The SDK leaves an explicit base64 as it is.
    assert all(isinstance(vector, str) for vector in explicit)
    for ours, theirs in zip(default, floats):
        assert len(ours) == len(theirs)
        assert max(abs(left - right) for left, right in zip(ours, theirs)) < 1e-6
    assert default[0] == default[2] != default[1], "the order is lost"
    assert vectors(model, "second", extra_body=body) == [default[1]]


compare("nvidia/nv-embedqa-e5-v5", {"input_type": "query"})
compare("nvidia/nv-embedqa-e5-v5-passage", {})
compare("nvidia/cosmos-embed1", {"request_type": "bulk_text"})

query = vectors("nvidia/nv-embedqa-e5-v5", "first", extra_body={"input_type": "query"})
passage = vectors("nvidia/nv-embedqa-e5-v5", "first", extra_body={"input_type": "passage"})
assert query != passage, "queries and passages are embedded alike"
assert query == vectors("nvidia/nv-embedqa-e5-v5-query", "first")
