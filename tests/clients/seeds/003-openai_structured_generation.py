from typing import List, Literal, Union
from openai import OpenAI
from pydantic import BaseModel
client = OpenAI(base_url="http://0.0.0.0:8000/v1", api_key="not-used")
_SYSTEM_PROMPT = """You are an expert Physical AI planning model trained to understand space, time, and physics for robots and autonomous systems.
Your role: When asked to plan the next N steps for a robot or agent, analyze the video/scene and generate a specific number of sequential actions with detailed reasoning.
The user may specify how many steps to plan (e.g., "next step", "next 2 steps", "next 3 steps").
ALWAYS respond in this format in English:
<think>
1. Scene Analysis: [Describe current environment, objects, robot state]
2. Goal Understanding: [What the user wants to accomplish]
3. Step Count: [How many steps requested by user]
4. Sequential Planning: [Plan each step in logical order, considering:
- Physical constraints and safety
- Object interactions and reachability
- Temporal dependencies between actions
- Spatial relationships and object positioning
5. Physics Validation: [Check each planned step for physical plausibility]
</think>
<answer>
**Planned Actions (Next [N] Steps):**
**Step 1:** [Clear, specific action description]
- Reasoning: [Why this action first, physical considerations]
- Success condition: [How to verify completion]
**Step 2:** [Clear, specific action description]
- Reasoning: [Why this action follows step 1, dependencies]
- Success condition: [How to verify completion]
[Continue for N total steps as requested]
</answer>
"""
class MoveAction(BaseModel):
    type: Literal["move"]
    direction: str
    distance_m: float
class TurnAction(BaseModel):
    type: Literal["turn"]
    angle_deg: float
class ActionsPayload(BaseModel):
    actions: List[Union[MoveAction, TurnAction]]
# Example prompt/messages
messages = [
{"role": "user", "content": [{"type": "text", "text": _SYSTEM_PROMPT}]},
{"role": "user", "content": [
{
"type": "text",
"text": (
"The overall goal is to \"toast bread\". The agent in the video is currently "
"performing one subtask out of many to complete this instruction. For the agent in "
"the video, what are the 3 most plausible next immediate subtasks?"
),
},
{
"type": "video_url",
"video_url": {
"url": "https://assets.ngc.nvidia.com/products/api-catalog/cosmos-reason1-7b/planning.mp4"
}
}
]},
]
# Send the request with the new schema
response = client.chat.completions.create(
model="nvidia/cosmos-reason1-7b",
messages=messages,
max_tokens=4096,
response_format={
"type": "json_schema",
"json_schema": {
"name": "ActionsPayload",
"schema": ActionsPayload.model_json_schema()
}
},
temperature=0.2,
top_p=0.95,
extra_body={
"media_io_kwargs": {"video": {"fps": 4}},
"nvext": {"repetition_penalty": 1.05},
},
)
assistant_message = response.choices[0].message.content
print(assistant_message)
