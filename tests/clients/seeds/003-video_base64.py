with open("video.mp4", "rb") as f:
    video_b64 = base64.b64encode(f.read()).decode()
