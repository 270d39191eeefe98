"""A model of Hugging Face transformers in our loop: any causal language model will do, here a small GPT-NeoX.

It learns, is saved and goes on like our own, and stays theirs: python examples/transformers_model.py [STEPS]
"""

import sys

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import trainwell as tw

BYTES = 257  # the demo's tokenizer: 256 bytes, and an end-of-text


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.manual_seed(0)
    shape = GPTNeoXConfig(
        vocab_size=BYTES,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,  # the demo's data.seq_len
        bos_token_id=BYTES - 1,
        eos_token_id=BYTES - 1,
    )
    model = GPTNeoXForCausalLM(shape)
    with tw.build("demo", model=model, duration=steps, run_dir="runs/transformers-model") as run:
        tw.fit(run)
        print(f"loss on text it has not seen: {run.evaluate().loss:.4f}")

    prompt = torch.tensor([list(b"The ")])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False)
    text = bytes(token for token in ids[0].tolist() if token < 256).decode(errors="replace")
    print(f"transformers goes on: {text!r}")


if __name__ == "__main__":
    main()
