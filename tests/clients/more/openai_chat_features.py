"""Tools, structured output, choices, token limits and raw responses by the OpenAI SDK."""

import json
import os

from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=os.environ["NIMGATE_URL"] + "/v1", api_key=os.environ["NIMGATE_KEY"])
MODEL = "meta/llama-3.1-8b-instruct"
QUESTION = [{"role": "user", "content": "What is the weather in Santa Clara?"}]


class Weather(BaseModel):
    city: str
    degrees: float


parsed = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Weather)
assert isinstance(parsed.choices[0].message.parsed, Weather)

tool = {"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema()}}
choice = {"type": "function", "function": {"name": "weather"}}
call = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=[tool], tool_choice=choice)
call = call.choices[0].message.tool_calls[0]
assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)

turns = QUESTION + [
    {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
    {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21.5}'},
]
assert client.chat.completions.create(model=MODEL, messages=turns, tools=[tool]).choices[0].message.content

short = client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=3, n=2)
assert len(short.choices) == 2 and short.choices[0].finish_reason == "length"
assert short.usage.completion_tokens == 6

raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION)
assert raw.status_code == 200 and raw.headers["x-request-id"]
assert raw.parse().model == MODEL

completion = client.completions.create(model=MODEL, prompt="The road", max_tokens=8)
assert completion.choices[0].text and completion.usage.completion_tokens == 8

response = client.responses.create(model=MODEL, input="Tell me of the road.")
assert response.status == "completed" and response.output_text
