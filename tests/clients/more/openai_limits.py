"""A key with limits: a refusal is a RateLimitError that says when to come back, and by default the SDK comes back."""

import os

from openai import OpenAI, RateLimitError

URL = os.environ["NIMGATE_URL"] + "/v1"
asked = {"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}

patient = OpenAI(base_url=URL, api_key=os.environ["NIMGATE_LIMITED_KEY"])
calls = [patient.chat.completions.with_raw_response.create(**asked) for _ in range(8)]
assert all(call.parse().choices for call in calls)
assert calls[-1].headers["x-ratelimit-limit-requests"] == "2"
assert calls[-1].headers["x-ratelimit-limit-tokens"] == "20000"

hasty = patient.with_options(max_retries=0)
error = None
for _ in range(200):
    try:
        hasty.chat.completions.create(**asked)
    except RateLimitError as refused:
        error = refused
        break
assert error.code == "rate_limit_exceeded" and error.response.headers["retry-after"] == "1", error
assert "2 requests per second" in error.message

# The demo's own key has none.
free = OpenAI(base_url=URL, api_key=os.environ["NIMGATE_KEY"], max_retries=0)
assert all(free.chat.completions.create(**asked).choices for _ in range(10))
