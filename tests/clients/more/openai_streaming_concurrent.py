"""Twenty streams at once: each caller gets its own answer, whole and in order."""

import asyncio
import os

from openai import AsyncOpenAI

STREAMS = 20


async def ask(client, number, stream):
    answer = await client.chat.completions.create(
        model="meta/llama-3.1-8b-instruct",
        messages=[{"role": "user", "content": f"Tell me of road number {number}."}],
        stream=stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    if not stream:
        return answer.choices[0].message.content
    chunks = [chunk async for chunk in answer]
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


async def main():
    async with AsyncOpenAI(
        base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"], max_retries=0
    ) as client:
        streamed = await asyncio.gather(*(ask(client, number, True) for number in range(STREAMS)))
        whole = await asyncio.gather(*(ask(client, number, False) for number in range(STREAMS)))
    assert streamed == whole
    assert len(set(whole)) == STREAMS, "answers of several callers are the same"


asyncio.run(main())
