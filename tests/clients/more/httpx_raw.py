"""Plain HTTP clients: keep-alive, refusals, the other header for keys, browsers, bodies of unknown length."""

import json
import os

import httpx

URL, KEY = os.environ["NIMGATE_URL"], os.environ["NIMGATE_KEY"]
CHAT = {"model": "meta/llama-3.1-8b-instruct", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

with httpx.Client(base_url=URL, trust_env=False) as client:
    for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}):
        answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == 200, (headers.keys(), answer.text)
        assert KEY not in answer.text and KEY not in str(answer.headers)

    client.headers["authorization"] = f"Bearer {KEY}"
    # Refusals and answers follow each other on one connection.
    for _ in range(5):
        refused = client.post("/v1/chat/completions", json=CHAT | {"temperature": 9})
        assert refused.status_code == 400
        assert refused.headers.get("connection", "").lower() != "close", "a refusal costs the connection"
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200

    assert client.get("/v1/chat/completions").status_code == 405
    broken = client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert broken.status_code == 400 and broken.json()["error"]["code"] == "malformed_json"
    assert client.get("/nothing").json()["error"]["code"] == "path_not_found"
    missing = client.post("/v1/chat/completions", json=CHAT, headers={"authorization": ""})
    assert missing.status_code == 401, missing.text

    preflight = client.options(
        "/v1/chat/completions",
        headers={"origin": "https://app.example", "access-control-request-method": "POST"},
    )
    assert preflight.status_code in (200, 204) and preflight.headers["access-control-allow-origin"]

    chunked = client.post(
        "/v1/chat/completions",
        content=(piece.encode() for piece in json.dumps(CHAT)),
        headers={"content-type": "application/json"},
    )
    assert chunked.status_code == 200 and chunked.json()["choices"]
