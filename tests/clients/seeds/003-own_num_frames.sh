# "Video sampling" by number.
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
"media_io_kwargs": {"video": { "num_frames": 16 }},
"max_tokens": 64
}'
