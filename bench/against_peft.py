"""The bank side by side with PEFT, in one run: the error of a blend, and a batch with an adapter in each row.

    python bench/against_peft.py [--threads 1]

Blends: two random adapters on the embedded base's own shapes; the target is the weighted sum of their updates,
the error its Frobenius norm over the target's, all modules together. Mixed batches: 8 rows, 4 adapters, one new token
each (decoding), time of a forward pass, interleaved, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from scumble import Bank
from scumble.models.embedded import ensure

warnings.filterwarnings("ignore")
NAMES = ("a", "b", "c", "d")


def make_adapters(folder: str, rslora: bool) -> list[str]:
    """Random adapters of rank 8 on q and v, written by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(ensure().folder)
    paths = []
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], use_rslora=rslora)
        peft = get_peft_model(model, config, adapter_name="default")
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(0, 0.02)
        paths.append(f"{folder}/{name}-{rslora}")
        peft.save_pretrained(paths[-1])
        model = peft.unload()
    return paths


def exact_updates(paths: list[str], weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    """sum w_i s_i B_i A_i for each module, in fp64, from the files alone."""
    from safetensors.torch import load_file

    total: dict[str, torch.Tensor] = {}
    for path, weight in zip(paths, weights, strict=False):
        config = json.loads(Path(path, "adapter_config.json").read_text())
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        tensors = load_file(f"{path}/adapter_model.safetensors")
        for key, A in tensors.items():
            if key.endswith("lora_A.weight"):
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                B = tensors[key.replace("lora_A", "lora_B")]
                total[module] = total.get(module, 0) + weight * scale * (B.double() @ A.double())
    return total


def error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    missing = sum(float((found[key] - wanted[key]).square().sum()) for key in wanted)
    return (missing / sum(float(value.square().sum()) for value in wanted.values())) ** 0.5


def peft_blend(paths: list[str], weights: tuple[float, float], kind: str) -> dict[str, torch.Tensor]:
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(ensure().folder), paths[0], adapter_name="a"
    )
    peft.load_adapter(paths[1], adapter_name="b")
    peft.add_weighted_adapter(["a", "b"], list(weights), "both", combination_type=kind)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("both").detach().double()
        for name, module in peft.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def bank_blend(paths: list[str], weights: tuple[float, float]) -> dict[str, torch.Tensor]:
    """What the bank really adds at each module: its output for the unit vectors, less the base's."""
    bank = Bank(AutoModelForCausalLM.from_pretrained(ensure().folder))
    for name, path in zip("ab", paths, strict=False):
        bank.add(name, path)
    found = {}
    for path, module in bank.model.named_modules():
        if type(module).__name__ == "BankLayer":
            x = torch.eye(module.shape()[1])[None]
            with bank.using({"a": weights[0], "b": weights[1]}), torch.no_grad():
                both = module(x)[0].double()
            with bank.using({}), torch.no_grad():
                found[path] = (both - module(x)[0].double()).T
    return found


def mixed_batches(paths: list[str], repeats: int = 25) -> dict[str, float]:
    """Seconds of a forward pass of 8 rows of one token, four adapters among them."""
    rows = [NAMES[i % 4] for i in range(8)]
    ids = torch.randint(0, 40_000, (8, 1), generator=torch.Generator().manual_seed(0))
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(ensure().folder), paths[0], adapter_name="a"
    ).eval()
    bank = Bank(AutoModelForCausalLM.from_pretrained(ensure().folder).eval())
    bank.add("a", paths[0])
    for name, path in zip(NAMES[1:], paths[1:], strict=True):
        peft.load_adapter(path, adapter_name=name)
        bank.add(name, path)
    bank.use_rows(rows)
    seconds: dict[str, list[float]] = {"PEFT": [], "bank": [], "base": []}
    with torch.no_grad():
        gap = (peft(input_ids=ids, adapter_names=rows).logits - bank.model(input_ids=ids).logits).abs().max()
        for _ in range(repeats):
            for name, way in (
                ("PEFT", lambda: peft(input_ids=ids, adapter_names=rows)),
                ("bank", lambda: bank.model(input_ids=ids)),
                ("base", lambda: _base(bank, ids)),
            ):
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
    print(f"largest logit difference between the two: {float(gap):.1e}")
    return {name: statistics.median(times) for name, times in seconds.items()}


def _base(bank: Bank, ids: torch.Tensor) -> None:
    with bank.using({}):
        bank.model(input_ids=ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    with tempfile.TemporaryDirectory() as folder:
        print("error of a blend against the exact weighted sum of the updates")
        for rslora in (False, True):
            paths = make_adapters(folder, rslora)
            for weights in ((0.7, 0.3), (1.0, -1.0)):
                wanted = exact_updates(paths[:2], weights)
                shown = [f"bank {error(bank_blend(paths[:2], weights), wanted):.1e}"]
                for kind in ("linear", "svd", "cat"):
                    try:
                        shown.append(f"PEFT {kind} {error(peft_blend(paths[:2], weights, kind), wanted):.0%}")
                    except Exception as reason:
                        shown.append(f"PEFT {kind} refused ({type(reason).__name__})")
                print(f"  {'rsLoRA' if rslora else 'LoRA  '} weights {weights}: {', '.join(shown)}")
        found = mixed_batches(make_adapters(folder, False))
        print(
            "8 rows of one token, 4 adapters: " + ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in found.items())
        )
        print(f"PEFT / bank: {found['PEFT'] / found['bank']:.2f}")


if __name__ == "__main__":
    main()
