# "For Video2World, the video field is required instead of image": both are a mistake.
curl -s --no-fail-with-body -w '\n%{http_code}\n' -X POST \
http://0.0.0.0:8000/v1/infer \
-H 'Content-Type: application/json' \
-d '{"prompt": "a street", "image": "data:image/png;base64,AAAA", "video": "data:video/mp4;base64,AAAA"}'
