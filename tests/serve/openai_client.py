"""Asks a latentmesh server what the official client can ask: openai_client.py BASE_URL."""
import json
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
model = client.models.list().data[0].id

whole = client.completions.create(model=model, prompt="In the beginning", max_tokens=16, temperature=0, logprobs=2)
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 16
assert len(whole.choices[0].logprobs.tokens) == 16
text, usage = "", None
for event in client.completions.create(model=model, prompt="In the beginning", max_tokens=16, temperature=0, stream=True,
                                       stream_options={"include_usage": True}):
    text += event.choices[0].text if event.choices else ""
    usage = event.usage or usage
assert text == whole.choices[0].text, (text, whole.choices[0].text)
assert usage.completion_tokens == 16

chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Who was Moses?"}], n=2, seed=3,
                                      max_tokens=12, logprobs=True, top_logprobs=2)
assert len(chat.choices) == 2 and len(chat.choices[0].logprobs.content) == 12
again = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Who was Moses?"}], n=2, seed=3,
                                       max_tokens=12)
assert [c.message.content for c in again.choices] == [c.message.content for c in chat.choices]

schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
                                           "kind": {"enum": ["man", "beast"]}},
          "required": ["name", "age", "kind"], "additionalProperties": False}
for seed in range(6):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Who?"}], seed=seed, max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "who", "schema": schema, "strict": True}})
    value = json.loads(answer.choices[0].message.content)
    assert list(value) == ["name", "age", "kind"] and 0 <= value["age"] <= 130 and value["kind"] in ("man", "beast"), value
    assert answer.choices[0].finish_reason == "stop"
    free = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Who?"}], seed=seed, max_tokens=400,
                                          response_format={"type": "json_object"})
    assert free.choices[0].finish_reason == "length" or isinstance(json.loads(free.choices[0].message.content), dict)

try:
    client.completions.create(model=model, prompt="x", temperature=-1)
    raise AssertionError("a negative temperature was accepted")
except openai.BadRequestError as error:
    assert error.param == "temperature", error
try:
    client.completions.create(model="other", prompt="x")
    raise AssertionError("an unknown model was accepted")
except openai.NotFoundError:
    pass
print("the openai client", openai.__version__, "got what it asked for")
