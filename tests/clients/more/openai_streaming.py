"""A stream gives the text of the whole answer, piece by piece, and its usage only when that is asked for."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"])
asked = {"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Tell me of the road."}]}

whole = client.chat.completions.create(**asked)

with_usage = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
usage = with_usage[-1]
assert usage.choices == [] and usage.usage == whole.usage, usage
assert all(chunk.usage is None for chunk in with_usage[:-1])

without = list(client.chat.completions.create(**asked, stream=True))
assert all(chunk.choices and chunk.usage is None for chunk in without), "usage that nobody asked for"

for chunks in (with_usage[:-1], without):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5, "the answer came in one piece"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1

with client.chat.completions.stream(**asked) as stream:
    stream.until_done()
    assert stream.get_final_completion().choices[0].message.content == whole.choices[0].message.content

# A client that leaves in the middle does not harm the connection pool for the next request.
with client.chat.completions.create(**asked, stream=True) as stream:
    assert next(iter(stream)).choices
assert client.chat.completions.create(**asked).choices[0].message.content == whole.choices[0].message.content
