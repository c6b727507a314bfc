from openai import OpenAI
client = OpenAI(base_url="http://0.0.0.0:8000/v1", api_key="not-used")
_SYSTEM_PROMPT = """You are an assistant for video anomaly detection. The goal is to identify artifacts and anomalies in the video.
You are an expert in the physics of moving vehicles.
When analyzing a video, reason not only about what happens but also about what should happen as a natural consequence of events.
Watch carefully and focus on the following details:
* Physical accuracy (gravity, collision, object interaction, fluid dynamics, object permanence, etc.)
* Cause-and-effect
* Temporal consistency
* Spatial consistency
* Expected side-effects of impacts / collisions.
Please reason by:
* Identifying key events (e.g. collisions).
* Inferring the expected physical side effects of such events.
* Compare the actual video to these expectations.
* Highlight anomalies that arise from mismatches.
Here are some examples of things you should not include in your analysis:
+ Do not consider legality or human etiquette. Your analysis should be limited strictly to physical realism.
* Avoid ungrounded and over-general explanations such as overall impression, artistic style, or background elements.
* The video has no sound. Avoid explanations based on sound.
* Do not mention lighting, shadows, or blurring in your analysis.
* Do not try to capture the 'mood' of the scene.
Answer the question in English with provided options in the following format:
<think>
your reasoning
</think>
<answer>
your answer
</answer>
"""
messages = [
{"role": "user", "content": [{"type": "text", "text": _SYSTEM_PROMPT}]},
{"role": "user", "content": [
{
"type": "text",
"text": "Is the ego vehicle moving realistically when it drives over the curb on the median?"
},
{
"type": "video_url",
"video_url": {
"url": "https://assets.ngc.nvidia.com/products/api-catalog/cosmos-reason1-7b/car_curb.mp4"
}
}
]},
]
response = client.chat.completions.create(
model="nvidia/cosmos-reason1-7b",
messages=messages,
max_tokens=4096,
temperature=0.0,
top_p=1.0,
extra_body={
"media_io_kwargs": {"video": {"fps": 4}},
},
)
assistant_message = response.choices[0].message.content
print(assistant_message)
