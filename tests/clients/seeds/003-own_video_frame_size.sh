# "Video frame size".
curl -s -X 'POST' \
'http://0.0.0.0:8000/v1/chat/completions' \
-H 'Content-Type: application/json' \
-d '{
"model": "nvidia/cosmos-reason1-7b",
"messages": [{"role": "user", "content": [{"type": "text", "text": "What is in this?"},
{
"type": "video_url",
"video_url": {
"url": "https://download.samplelib.com/mp4/sample-5s.mp4"
}
}
]}],
"mm_processor_kwargs": {"videos_kwargs": { "min_pixels": 1568, "max_pixels": 262144 }},
"max_tokens": 64
}'
