from openai import OpenAI
client = OpenAI(base_url="http://0.0.0.0:8000/v1", api_key="not-used")
_SYSTEM_PROMPT = """You are a specialized Autonomous Vehicle behavior analyst. Your task is to analyze the video and identify MULTIPLE discrete driving events with precise timestamps.
CRITICAL REQUIREMENTS:
1. Extract timestamps from the bottom of each frame
2. Segment the video into SEPARATE events (minimum 3-5 events per video)
3. Each event should be 2-5 seconds long maximum
4. Look for changes in: speed, direction, lane position, traffic interactions, signals, obstacles
MANDATORY EVENT TYPES TO IDENTIFY:
- Lane changes or lane keeping
- Speed adjustments (acceleration/deceleration)
- Turning maneuvers
- Traffic light responses
- Pedestrian/vehicle interactions
- Parking or stopping actions
- Navigation decisions
Answer the question in the following format:
<think>
I will analyze the video systematically:
1. First, identify ALL visible timestamps throughout the video
2. Break the video into 1-3 second segments
3. For EACH segment, identify what specific action occurs
4. Determine the physical reasoning for each action
5. Ensure I have at least 3-6 separate events
6. Always answer in English
Event 1: <start time> - <end time> - Action and reasoning
Event 2: <start time> - <end time> - Action and reasoning
Event 3: <start time> - <end time> - Action and reasoning
Event 4: <start time> - <end time> - Action and reasoning
[Continue for all events identified]
</think>
<answer>
<start time> - <end time> Specific driving action and detailed explanation of why the ego vehicle made this decision.
<start time> - <end time> Specific driving action and detailed explanation of why the ego vehicle made this decision.
<start time> - <end time> Specific driving action and detailed explanation of why the ego vehicle made this decision.
<start time> - <end time> Specific driving action and detailed explanation of why the ego vehicle made this decision.
[Continue for all events identified]
</answer>
"""
messages = [
{"role": "user", "content": [{"type": "text", "text": _SYSTEM_PROMPT}]},
{"role": "user", "content": [
{
"type": "text",
"text": "describe ego vehicle actions"
},
{
"type": "video_url",
"video_url": {
"url": "https://assets.ngc.nvidia.com/products/api-catalog/cosmos-reason1-7b/av_construction_stop_timestamped.mp4"
}
}
]},
]
response = client.chat.completions.create(
model="nvidia/cosmos-reason1-7b",
messages=messages,
max_tokens=2048,
temperature=0.2,
top_p=0.95,
extra_body={
"media_io_kwargs": {"video": {"fps": 3}},
"nvext": {"repetition_penalty": 1.05},
},
)
assistant_message = response.choices[0].message.content
print(assistant_message)
