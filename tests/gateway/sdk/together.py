"""More streams at once than there are places, with the SDK's own retries: all succeed."""

import asyncio
import json
import logging
import os

from openai import AsyncOpenAI

seconds = []


class Waits(logging.Handler):
    """What the SDK says before it waits."""

    def emit(self, record):
        if record.msg.startswith("Retrying request in"):
            seconds.append(record.args[0])


logger = logging.getLogger("openai._base_client")
logger.setLevel(logging.INFO)
logger.addHandler(Waits())


async def ask(client):
    raw = await client.chat.completions.with_raw_response.create(
        model="meta/llama-3.1-8b-instruct",
        messages=[{"role": "user", "content": "one two three"}],
        max_tokens=8,
        stream=True,
        extra_headers={"x-sim-gate": os.environ["GATE"]},
    )
    chunks = [chunk async for chunk in raw.parse()]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return raw.retries_taken


async def main():
    async with AsyncOpenAI(base_url=os.environ["URL"], api_key=os.environ["KEY"]) as client:
        assert client.max_retries > 0
        retries = await asyncio.gather(*(ask(client) for _ in range(int(os.environ["CALLS"]))))
    assert len(seconds) == sum(retries), seconds
    print(json.dumps({"retries": sum(retries), "waits": seconds}))


asyncio.run(main())
