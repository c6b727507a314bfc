# "Invalid input dimensions (height/width must be multiples of 8)": 400.
curl -s --no-fail-with-body -w '\n%{http_code}\n' -X POST \
http://0.0.0.0:8000/v1/infer \
-H 'Content-Type: application/json' \
-d '{"prompt": "a street", "video_params": {"height": 703, "width": 1280, "frames_count": 121, "frames_per_sec": 24}}'
