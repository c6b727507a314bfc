# A part of "Passing images", in a request.
curl -s -X 'POST' \
'http://0.0.0.0:8000/v1/chat/completions' \
-H 'Content-Type: application/json' \
-d '{
"model": "nvidia/cosmos-reason1-7b",
"messages": [{"role": "user", "content": [{"type": "text", "text": "What is in this?"},
{
"type": "image_url",
"image_url": {
"url": "https://upload.wikimedia.org/wikipedia/commons/thumb/d/dd/Gfp-wisconsin-madison-the-nature-boardwalk.jpg/2560px-Gfp-wisconsin-madison-the-nature-boardwalk.jpg"
}
}
]}],

"max_tokens": 64
}'
