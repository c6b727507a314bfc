"""Each kind of refusal is a RateLimitError, whose code and body a program can read. None of these is tried again."""

import asyncio
import json
import os

from openai import AsyncOpenAI, OpenAI, RateLimitError

ASKED = {
    "model": "meta/llama-3.1-8b-instruct",
    "messages": [{"role": "user", "content": "one two three"}],
    "max_tokens": 8,
}


def check(error, case):
    assert type(error) is RateLimitError, type(error)
    assert error.status_code == 429 and error.code == case["code"], (error.status_code, error.code)
    assert error.type == "rate_limit_error" and error.param is None, error.type
    assert error.body["code"] == case["code"] and error.body["type"] == "rate_limit_error", error.body
    assert f"({case['name']})" in error.body["message"] and error.body["message"] in error.message, error.message
    headers = error.response.headers
    assert error.request_id == headers["x-request-id"]
    assert (headers["x-nimgate-error"], headers["x-nimgate-blame"]) == (case["code"], "quota")
    assert error.response.json() == {"error": error.body}


def refused(case, **options):
    client = OpenAI(base_url=os.environ["URL"], api_key=case["key"], **options.pop("client", {}))
    try:
        client.chat.completions.create(**ASKED, **options)
    except Exception as error:
        check(error, case)
        return 1
    raise AssertionError(f"{case} was not refused")


async def refused_async(case):
    async with AsyncOpenAI(base_url=os.environ["URL"], api_key=case["key"]) as client:
        try:
            await client.chat.completions.create(**ASKED)
        except Exception as error:
            check(error, case)
            return 1
    raise AssertionError(f"{case} was not refused")


refusals = 0
for case in json.loads(os.environ["CASES"]):
    for _ in range(case["passes"]):
        client = OpenAI(base_url=os.environ["URL"], api_key=case["key"], max_retries=0)
        assert client.chat.completions.create(**ASKED).choices
    refusals += refused(case, client={"max_retries": 0})
    refusals += refused(case)
    refusals += refused(case, stream=True)
    refusals += asyncio.run(refused_async(case))
print(json.dumps({"refusals": refusals}))
