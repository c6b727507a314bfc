"""Each failure is raised as the SDK's own class, with what a program needs to react."""

import os

from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
)

URL, KEY = os.environ["NIMGATE_URL"] + "/v1", os.environ["NIMGATE_KEY"]
MODEL = "meta/llama-3.1-8b-instruct"
HELLO = [{"role": "user", "content": "Hello"}]
client = OpenAI(base_url=URL, api_key=KEY, max_retries=0)


def failure(kind, act):
    try:
        act()
    except kind as error:
        assert type(error) is kind, f"{type(error)} instead of {kind}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def label(error):
    headers = error.response.headers
    assert headers["x-request-id"] == error.request_id
    return headers["x-nimgate-error"], headers["x-nimgate-blame"]


for wrong in ("ngk_demo_wrong", "ngk_nobody_" + "0" * 43, "nvapi-something", "not a key"):
    stranger = OpenAI(base_url=URL, api_key=wrong, max_retries=0)
    error = failure(AuthenticationError, lambda: stranger.chat.completions.create(model=MODEL, messages=HELLO))
    assert error.code == "key_invalid" and label(error) == ("key_invalid", "client")
    assert wrong not in error.message, "the credential is told back"

error = failure(NotFoundError, lambda: client.chat.completions.create(model="no/such-model", messages=HELLO))
assert error.code == "model_not_found" and label(error) == ("model_not_found", "client")
assert "no/such-model" in error.message
error = failure(NotFoundError, lambda: client.models.retrieve("no/such-model"))
assert error.code == "model_not_found"
# A model of another API is no chat model.
error = failure(NotFoundError, lambda: client.chat.completions.create(model="nvidia/cosmos-embed1", messages=HELLO))
assert error.code == "model_not_found"

hot = {"model": MODEL, "messages": HELLO, "temperature": 3}
error = failure(BadRequestError, lambda: client.chat.completions.create(**hot))
assert error.param == "/temperature" and error.code == "schema_violation", (error.param, error.code)
assert error.type == "invalid_request_error" and label(error) == ("schema_violation", "client")
two = {"model": MODEL, "messages": [{"role": "nobody", "content": "x"}], "max_tokens": 0}
error = failure(BadRequestError, lambda: client.chat.completions.create(**two))
places = {violation["pointer"] for violation in error.body["violations"]}
assert "/max_tokens" in places and any(place.startswith("/messages/0") for place in places), places

long = [{"role": "user", "content": "x" * (26 * 1024 * 1024)}]
error = failure(APIStatusError, lambda: client.chat.completions.create(model=MODEL, messages=long))
assert error.status_code == 413 and error.code == "body_too_large" and label(error) == ("body_too_large", "client")
# The client is none the worse for it.
assert client.chat.completions.create(model=MODEL, messages=HELLO).choices

fault = {"x-sim-fault": "status=500"}
error = failure(
    InternalServerError, lambda: client.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=fault)
)
assert label(error)[1] == "inference-service"

# An error within a stream is raised too, after what came before it.
pieces = []
try:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, extra_headers={"x-sim-fault": "error-event=4"}
    )
    for chunk in stream:
        pieces.append(chunk)
except Exception as error:
    assert "Error" in type(error).__name__ and pieces, error
else:
    raise AssertionError("the error within the stream went unseen")
