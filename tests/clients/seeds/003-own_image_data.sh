# A part of "Passing images", in a request; the seed cuts its base64 short.
curl -s -X 'POST' \
'http://0.0.0.0:8000/v1/chat/completions' \
-H 'Content-Type: application/json' \
-d '{
"model": "nvidia/cosmos-reason1-7b",
"messages": [{"role": "user", "content": [{"type": "text", "text": "What is in this?"},
{
"type": "image_url",
"image_url": {
"url": "data:image/jpeg;base64,SGVsbG8gZGVhciBmZWxsb3chIQ=="
}
}
]}],

"max_tokens": 64
}'
