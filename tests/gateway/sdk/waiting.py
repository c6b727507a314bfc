"""A stream whose request waited for a place: comments first, then the answer."""

import json
import os

from openai import OpenAI

client = OpenAI(base_url=os.environ["URL"], api_key=os.environ["KEY"], max_retries=0)
stream = client.chat.completions.create(
    model="meta/llama-3.1-8b-instruct",
    messages=[{"role": "user", "content": "one two three"}],
    max_tokens=8,
    stream=True,
)
text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
print(json.dumps({"words": len(text.split())}))
