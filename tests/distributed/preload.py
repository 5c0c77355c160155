"""What the fork server imports once: everything a run uses."""

import accelerate.data_loader
import deepspeed
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2
import peft
import torch
import transformers.models.clip.modeling_clip
import transformers.models.llama.modeling_llama
import transformers.trainer

import vwlmm.data.templates
import vwlmm.training

__all__ = ["accelerate", "deepspeed", "peft", "torch", "transformers", "vwlmm"]
torch.set_num_threads(1)
