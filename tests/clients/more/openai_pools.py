"""A base URL that ends in a pool's name selects that pool."""

import os

from openai import NotFoundError, OpenAI

URL, KEY = os.environ["NIMGATE_URL"], os.environ["NIMGATE_KEY"]
HELLO = [{"role": "user", "content": "Hello"}]


def pool(name):
    return OpenAI(base_url=f"{URL}/pools/{name}/v1", api_key=KEY, max_retries=0)


for name, model in {
    "chat": "meta/llama-3.1-8b-instruct",
    "vision": "nvidia/cosmos-reason1-7b",
    "function": "nvcf/llama-3.1-8b-instruct",
}.items():
    # The names that this pool lists are the names that it takes.
    listed = {listed.id for listed in pool(name).models.list()}
    assert model in listed, f"{name} lists {listed}"
    answer = pool(name).chat.completions.with_raw_response.create(model=model, messages=HELLO, max_tokens=8)
    assert answer.headers["x-nimgate-pool"] == name
    assert answer.parse().choices[0].message.content
    pieces = list(pool(name).chat.completions.create(model=model, messages=HELLO, max_tokens=8, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == answer.parse().choices[0].message.content

text = pool("embed-text").embeddings.create(
    model="nvidia/nv-embedqa-e5-v5", input="Hello", extra_body={"input_type": "query"}
)
assert len(text.data[0].embedding) == 1024
video = pool("embed-video").embeddings.create(
    model="nvidia/cosmos-embed1", input="Hello", extra_body={"request_type": "query"}
)
assert len(video.data[0].embedding) == 256


def missing(act):
    try:
        act()
    except NotFoundError as error:
        return error.response.headers["x-nimgate-error"]
    raise AssertionError("it was answered")


create = {"messages": HELLO, "max_tokens": 8}
chat = {"model": "meta/llama-3.1-8b-instruct", **create}
assert missing(lambda: pool("nowhere").chat.completions.create(**chat)) == "pool_not_found"
assert missing(lambda: pool("vision").chat.completions.create(**chat)) == "model_not_found"
assert missing(lambda: pool("embed-text").chat.completions.create(**chat)) == "path_not_found"
