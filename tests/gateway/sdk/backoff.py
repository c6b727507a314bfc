"""One call after the other with the SDK's own retries: all succeed, and each wait is what the answer asked for."""

import json
import logging
import os

from openai import OpenAI

CALLS, STREAM = int(os.environ.get("CALLS", "8")), bool(os.environ["STREAM"])
# A slow machine may need more calls to be refused at all.
MOST, REFUSALS = 500, 1 if CALLS == 1 else 2


class Waits(logging.Handler):
    """What the SDK says before it waits."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def emit(self, record):
        if record.msg.startswith("Retrying request in"):
            self.seconds.append(record.args[0])


waits = Waits()
logger = logging.getLogger("openai._base_client")
logger.setLevel(logging.INFO)
logger.addHandler(waits)

client = OpenAI(base_url=os.environ["URL"], api_key=os.environ["KEY"])
assert client.max_retries > 0
calls = retries = most_retries = 0
while calls < CALLS or (retries < REFUSALS and calls < MOST):
    raw = client.chat.completions.with_raw_response.create(
        model="meta/llama-3.1-8b-instruct",
        messages=[{"role": "user", "content": "one two three"}],
        max_tokens=8,
        stream=STREAM,
    )
    answer = raw.parse()
    if STREAM:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    assert text
    calls += 1
    retries += raw.retries_taken
    most_retries = max(most_retries, raw.retries_taken)
assert len(waits.seconds) == retries, waits.seconds
print(json.dumps({"calls": calls, "retries": retries, "most_retries": most_retries, "waits": waits.seconds}))
