with open("image.png", "rb") as f:
    image_b64 = base64.b64encode(f.read()).decode()
