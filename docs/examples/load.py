"""Load the exported model as any other, and let it write."""

from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("runs/first/model")
tokenizer = AutoTokenizer.from_pretrained("runs/first/model")
prompt = tokenizer("The opposite of hot is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=10)[0]))  # noqa: T201
