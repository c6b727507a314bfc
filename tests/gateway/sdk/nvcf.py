"""A function of NVCF is a chat model like any other: asked at once and in a stream, however long it takes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from langchain_nvidia_ai_endpoints import ChatNVIDIA
from openai import OpenAI

url, key = os.environ["URL"], os.environ["KEY"]
messages = [{"role": "user", "content": "one two three"}]


def ask(model):
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    assert answer.usage.completion_tokens == 8, answer
    text = answer.choices[0].message.content
    with client.chat.completions.create(model=model, messages=messages, max_tokens=8, stream=True) as stream:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert streamed == text, (streamed, text)
    chain = ChatNVIDIA(base_url=url, api_key=key, model=model, max_completion_tokens=8)
    assert chain.invoke("one two three").content == text
    assert "".join(chunk.content for chunk in chain.stream("one two three")) == text
    size = {"n": 8, "max_tokens": int(os.environ["LARGE"]), "extra_body": {"ignore_eos": True}}
    large = client.chat.completions.create(model=model, messages=messages, **size)
    return model, sum(len(choice.message.content) for choice in large.choices)


# Both at once, since each answer takes seconds.
with ThreadPoolExecutor() as pool:
    print(json.dumps(dict(pool.map(ask, os.environ["MODELS"].split()))))
