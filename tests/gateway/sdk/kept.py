"""OpenAI's SDK: the vectors of a pool that keeps them are those of one that does not, whatever encoding was asked first."""

import json
import os

from openai import OpenAI


kept, plain = (
    OpenAI(base_url=os.environ[url], api_key=os.environ["KEY"], max_retries=0) for url in ("URL", "PLAIN_URL")
)
seen = []


def ask(client, texts, options):
    create = client.embeddings.with_raw_response.create
    raw = create(model="nvidia/nv-embedqa-e5-v5", input=texts, extra_body={"input_type": "query"}, **options)
    return raw.headers, raw.parse()


def compare(texts, **options):
    (headers, ours), (_, theirs) = ask(kept, texts, options), ask(plain, texts, options)
    assert len(theirs.data) == (1 if isinstance(texts, str) else len(texts))
    assert ours.data == theirs.data, (texts, options)
    assert (ours.object, ours.model) == (theirs.object, theirs.model)
    if headers["x-nimgate-usage"] == "exact":
        assert ours.usage == theirs.usage
    seen.append(headers["x-nimgate-cache"])


# The SDK asks for base64 unless told otherwise.
DEFAULT, FLOAT, BASE64 = {}, {"encoding_format": "float"}, {"encoding_format": "base64"}
for options in (DEFAULT, DEFAULT, FLOAT):
    compare(["first", "second"], **options)
for options in (FLOAT, DEFAULT, BASE64):
    compare(["third", "fourth"], **options)
for options in (DEFAULT, FLOAT):
    compare("alone", **options)
compare(["second", "new", "third", "new", "first"], **DEFAULT)
compare(["newer", "alone", "new"], **FLOAT)
print(json.dumps(seen))
