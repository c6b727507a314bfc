# "Image frame size".
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
"mm_processor_kwargs": {"images_kwargs": { "min_pixels": 1568, "max_pixels": 262144 }},
"max_tokens": 64
}'
