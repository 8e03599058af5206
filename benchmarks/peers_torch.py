"""The same in PyTorch: training with autograd and fused AdamW, generation by hand and by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from benchmarks import torch_models
from benchmarks.workers import Library
from benchmarks.workloads import Workload
from xpformer.models.vit import ViT


class Training(Library):
    """Autograd, fused AdamW with two groups, clipping if there is one, the same host batches.

    The job says which ``attention``, on which ``device``, and whether to ``compile``.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.device = _device(job)
        work = Workload(**job["work"])
        self.batches, self.config = work.make_batches(), work.train
        model: Any = work.make_model().to("numpy:portable", "float32")
        self.parameters = torch_models.parameters(model.state(), self.device)
        groups = []
        for decays in (True, False):
            chosen = [self.parameters[n] for n, p in model.named_parameters().items() if p.decay is decays]
            groups.append({"params": chosen, "weight_decay": self.config.weight_decay * decays})
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        c = self.config
        self.optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(c.beta1, c.beta2), eps=c.eps, fused=True)
        table, config, forward = None, model.config, getattr(torch_models, work.model)
        if isinstance(model, ViT):
            table = torch.tensor(np.array(model.positions.table.data), device=self.device)
        attend = torch_models.ATTENTION[job["attention"]]

        def objective(parameters: dict[str, Any], x: Any, y: Any) -> Any:
            logits = forward(parameters, config, table, x, attend)
            return F.cross_entropy(logits.flatten(0, -2), y.flatten())

        self.objective = torch.compile(objective) if job.get("compile") else objective
        self.done = 0
        self.schedule = c.make_schedule(c.total_steps(self.batches.steps_per_epoch))

    def _step(self) -> Any:
        x, y = (
            torch.from_numpy(np.ascontiguousarray(host)).to(self.device)
            for host in self.batches.train(self.done, 0, self.batches.batch_size)
        )
        self.optimizer.zero_grad()
        loss = self.objective(self.parameters, x, y)
        loss.backward()
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.done)
        self.optimizer.step()
        self.done += 1
        return loss

    def step(self) -> float:
        """The loss."""
        return float(self._step().detach())

    def launch(self) -> None:
        """A step whose loss is not read."""
        self._step()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Generation(Library):
    """Greedy, with a cache written by hand; a step is a whole text."""

    checked = 1

    def __init__(self, job: dict[str, Any]) -> None:
        device, work = _device(job), Workload(**job["work"])
        self.p, self.tokens, model = torch_models.parameters(work.weights(), device), work.tokens, work.make_model()
        self.config = getattr(model, "config")  # noqa: B009
        self.attend, self.prompt = torch_models.ATTENTION[job["attention"]], torch.tensor(work.make_prompt())[None]

    @torch.inference_mode()
    def step(self) -> list[int]:
        """The tokens."""
        return torch_models.write(self.p, self.config, self.prompt, self.tokens, self.attend)


class Transformers(Library):
    """``generate`` of transformers' GPT-2."""

    checked = 1

    def __init__(self, job: dict[str, Any]) -> None:
        from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

        _device(job)
        work = Workload(**job["work"])
        c: Any = getattr(work.make_model(), "config")  # noqa: B009
        config = GPT2Config(
            vocab_size=c.vocabulary, n_positions=c.context, n_embd=c.dim, n_layer=c.depth, n_head=c.heads,
            n_inner=c.hidden or 4 * c.dim, activation_function={"gelu": "gelu", "gelu_tanh": "gelu_new"}[c.activation],
            layer_norm_epsilon=c.norm_eps, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        self.model.load_state_dict(
            {their_name(name): torch.from_numpy(array) for name, array in work.weights().items()}, strict=False
        )
        self.how = GenerationConfig(
            max_new_tokens=work.tokens, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
        )
        self.prompt = torch.tensor(work.make_prompt())[None]

    @torch.inference_mode()
    def step(self) -> list[int]:
        """The tokens."""
        ids = self.model.generate(self.prompt, attention_mask=torch.ones_like(self.prompt), generation_config=self.how)
        tokens: list[int] = ids[0, self.prompt.shape[1] :].tolist()
        return tokens


_NAMES = {
    "embedding": "wte", "positions": "wpe", "norm": "ln_f", "blocks": "h", "norm1": "ln_1", "norm2": "ln_2",
    "attention": "attn", "qkv": "c_attn", "projection": "c_proj", "mlp": "mlp", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip


def their_name(name: str) -> str:
    """transformers' name of a weight of our GPT-2: ``transformer.h.0.ln_1.bias`` of ``blocks.0.norm1.bias``."""
    return ".".join(["transformer", *(_NAMES.get(part, part) for part in name.split("."))])


def _device(job: dict[str, Any]) -> torch.device:
    """The device, with as many threads and as exact products as the job has."""
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    device = torch.device(job.get("device", "cpu"))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU; install a build of torch with CUDA")
        torch.backends.cuda.matmul.fp32_precision = "tf32" if job["precision"] == "high" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision
    return device
