"""Prints the losses of TRL's DPOTrainer on random pairs of a random model, with their log-ratios, as JSON; see test_preference.py."""

import json
import tempfile
import warnings

import torch
import trl
from datasets import Dataset  # noqa: TID253 - a program for an environment with TRL
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: TID253

warnings.simplefilter("ignore")
torch.manual_seed(0)
words = {"<pad>": 0, "<eos>": 1, **{f"w{number}": number for number in range(2, 32)}}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
)
config = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.mul_(8)
folder = tempfile.mkdtemp()
model.save_pretrained(folder)  # the trainer loads its reference from there
model = LlamaForCausalLM.from_pretrained(folder)
pairs = Dataset.from_list([{"prompt": "w2 w3", "chosen": " w4", "rejected": " w5"}] * 4)
rows = []
for loss in ("sigmoid", "ipo", "apo_zero"):
    for beta in (0.1, 0.5):
        settings = trl.DPOConfig(
            output_dir=folder, loss_type=[loss], beta=beta, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True
        )
        trainer = trl.DPOTrainer(model=model, args=settings, train_dataset=pairs, processing_class=tokenizer)
        trainer.precompute_ref_logps = True
        for _ in range(3):
            token_ids, mask = torch.randint(2, 32, (2, 9)), torch.zeros(2, 9, dtype=torch.int64)
            num_tokens = torch.randint(2, 7, (2,)).tolist()
            for row, count in enumerate(num_tokens):
                mask[row, 3 : 3 + count] = 1
            with torch.no_grad():
                logits = model(input_ids=token_ids).logits
            logprobs = logits[:, :-1].log_softmax(-1).gather(-1, token_ids[:, 1:, None])[..., 0]
            own = (logprobs * mask[:, 1:]).sum(1)
            reference = own + 3 * torch.randn(2)
            inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
            inputs |= {"ref_chosen_logps": reference[:1], "ref_rejected_logps": reference[1:]}
            value = trainer._compute_loss(model, inputs, False).item()
            log_ratios = (own - reference).tolist()
            rows.append(
                {"loss": loss, "beta": beta, "log_ratios": log_ratios, "num_tokens": num_tokens, "value": value}
            )
print(json.dumps({"trl": trl.__version__, "rows": rows}))
