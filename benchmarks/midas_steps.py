"""MIDAS: do our step and scmidas' do the same? From the same weights, on the same minibatches, without dropout and noise.

    python benchmarks/midas_steps.py --peer PEER_PYTHON [--data FOLDER] [--steps 60]

With everything that is drawn taken out, two programs that do the same must lose the same in every step: forward pass, gradients, three steps of the
discriminators, and AdamW with its weight decay and its averages. The table goes to benchmarks/results/midas_steps.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from midas_vs_scmidas import Bench
from torch import Tensor, nn

from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.study import load_study
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.loop import Trainer
from cellweave.core.training.sources import Loader

HERE = Path(__file__).resolve().parent
RATE, SIZE = 3e-4, 128


class Start:
    """Puts the weights that scmidas begins with into our network; every tensor must be used, and fit."""

    def __init__(self, path: Path) -> None:
        self.known = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
        self.used: set[str] = set()

    def of(self, name: str) -> Tensor:
        self.used.add(name)
        return self.known[name]

    @torch.no_grad()
    def put(self, target: Tensor, value: Tensor) -> None:
        assert target.numel() == value.numel(), (tuple(target.shape), tuple(value.shape))
        target.copy_(value.reshape(target.shape))

    def linear(self, module: nn.Linear, name: str) -> None:
        for part in ("weight", "bias"):
            self.put(getattr(module, part), self.of(f"net.{name}.{part}"))

    def norm(self, module: nn.Module, name: str) -> None:
        for part in ("weight", "bias"):
            self.put(getattr(module, part), self.of(f"net.{name}.{part}"))

    def mlp(self, module: nn.Module, name: str) -> None:
        """Layers at 0, 2, 4 ... of theirs, each with its norm after it, and a bare map at the end where ours has one."""
        for place, layer in enumerate(module.layers):
            self.linear(layer.linear, f"{name}.{2 * place}")
            self.norm(layer.after, f"{name}.{2 * place + 1}.net.0")
        if module.end is not None:
            self.linear(module.end, f"{name}.{2 * len(module.layers)}")

    def blocks(self, name: str, n_blocks: int, *, transposed: bool = False) -> list[Tensor]:
        found = [self.of(f"net.{name.format(block)}") for block in range(n_blocks)]
        return [value.t() for value in found] if transposed else found

    def fill(self, model: nn.Module, sizes: dict[str, list[int]]) -> None:
        for name, own in sizes.items():
            (self.whole if len(own) == 1 else self.chunked)(model, name, len(own))
        self.mlp(model.shared_encoder, f"encoder.encoders.{next(iter(sizes))}.1.net")
        for name in sizes:  # theirs are one module under every name
            self.used |= {key for key in self.known if key.startswith(f"net.encoder.encoders.{name}.1.")}
        self.mlp(model.shared_decoder, "decoder.shared_decoder.net")
        at, weight, bias = 0, self.of("net.decoder.shared_decoder.net.4.weight"), self.of("net.decoder.shared_decoder.net.4.bias")
        for name in sizes:
            head = model.decoders[name].head
            self.put(head.weight, weight[at : at + len(head.bias)])
            self.put(head.bias, bias[at : at + len(head.bias)])
            at += len(head.bias)
        self.mlp(model.batch_decoder, "s_decoder.s_decoder.net")
        batch = "s_encoder.s_encoder.net"
        self.put(model.batch_encoder.table, self.of(f"net.{batch}.0.weight").t())
        self.put(model.batch_encoder.bias, self.of(f"net.{batch}.0.bias"))
        self.norm(model.batch_encoder.after, f"{batch}.1.net.0")
        self.linear(model.batch_encoder.rest.layers[0].linear, f"{batch}.2")
        self.norm(model.batch_encoder.rest.layers[0].after, f"{batch}.3.net.0")
        self.linear(model.batch_encoder.rest.end, f"{batch}.4")
        order = ("0.weight", "0.bias", "1.net.0.weight", "1.net.0.bias", "2.weight", "2.bias", "3.net.0.weight", "3.net.0.bias", "4.weight", "4.bias")
        for key in ("joint", *sizes):
            parts = [self.of(f"dsc.predictors.{key}.net.{part}").reshape(-1) for part in order]
            self.put(model.discriminators.weights[f"of_{key}"], torch.cat(parts))
        unused = set(self.known) - self.used
        assert not unused, sorted(unused)

    def whole(self, model: nn.Module, name: str, _n_blocks: int) -> None:
        own, theirs = model.encoders[name], f"encoder.encoders.{name}.0.net"
        self.put(own.first.weight, self.of(f"net.{theirs}.0.weight").t())
        self.put(own.first.bias, self.of(f"net.{theirs}.0.bias"))
        self.norm(own.after, f"{theirs}.1.net.0")

    def chunked(self, model: nn.Module, name: str, n: int) -> None:
        own, theirs = model.encoders[name], f"encoder.pre_encoders.{name}.{{}}.net"
        self.put(own.first.weight, torch.cat(self.blocks(f"{theirs}.0.weight", n, transposed=True)))
        self.put(own.first.bias, torch.stack(self.blocks(f"{theirs}.0.bias", n)))
        for part in ("weight", "bias"):
            self.put(getattr(own.after, part), torch.stack(self.blocks(f"{theirs}.1.net.0.{part}", n)))
        self.put(own.inner[0].weight, torch.stack(self.blocks(f"{theirs}.2.weight", n, transposed=True)))
        self.put(own.inner[0].bias, torch.stack(self.blocks(f"{theirs}.2.bias", n)))
        self.norm(own.joined, f"encoder.transform_concat.{name}.net.0")
        self.linear(own.out.linear, f"encoder.encoders.{name}.0.net.0")
        self.norm(own.out.after, f"encoder.encoders.{name}.0.net.1.net.0")
        out, theirs = model.decoders[name], f"decoder.post_decoders.{name}.{{}}.net"
        self.norm(out.joined, f"decoder.transform_concat.{name}.net.0")
        self.put(out.inner[0].weight, torch.stack(self.blocks(f"{theirs}.0.weight", n, transposed=True)))
        self.put(out.inner[0].bias, torch.stack(self.blocks(f"{theirs}.0.bias", n)))
        for part in ("weight", "bias"):
            self.put(getattr(out.inner_after[0], part), torch.stack(self.blocks(f"{theirs}.1.net.0.{part}", n)))
        self.put(out.out.weight, torch.cat(self.blocks(f"{theirs}.2.weight", n)))
        self.put(out.out.bias, torch.cat(self.blocks(f"{theirs}.2.bias", n)))


def ours(path: Path, sizes: dict[str, list[int]], start: Path, peer: dict, folder: Path) -> list[dict[str, float]]:
    """Do the same steps with our loop and return the losses of each."""
    spec = RunSpec().with_changes({
        "model.kind": "midas", "data.paths": (str(path),), "covariates.batch": "batch", "model.dropout_rate": 0.0, "model.batch_drop": 0.0,
        "training.max_epochs": 1, "training.batch_size": SIZE, "training.learning_rate": RATE, "training.validation_share": 0.0,
        "training.kl_warmup_epochs": 0, "training.threads": 1, "training.precision": "32",
    })  # fmt: skip
    study = load_study(spec.data)
    data = prepare(spec, study)
    model = spec.family.build(data.context(spec))
    Start(start).fill(model, sizes)
    torch.randn = _no_noise
    trainer = Trainer(spec, model, Loader(data, torch.device("cpu"), resident=False), Journal(RunFolder.create(folder, spec), None), RunControl(), None)
    rows, whole, place = [], model.whole_step, {name: row for row, name in enumerate(study.obs.index)}
    model.whole_step = lambda *arguments: rows.append(found := whole(*arguments)) or found
    model.train()
    for level, cells in peer["order"]:
        trainer._step(trainer.loader.minibatch(np.array([place[peer["names"][level][cell]] for cell in cells])))
        trainer.at.step += 1
    means = [{name.removeprefix("reconstruction_"): value for name, value in row.items()} for row in rows]
    return [{**row, "s": row["batch"], "kl": row["kl_c"] + 5 * row["kl_u"]} for row in means]


def _no_noise(*_size: object, out: Tensor, **_named: object) -> Tensor:
    """Stand in for the draws of the posteriors: zeros, so that the means are taken."""
    return out.zero_()


def report(name: str, mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> Iterator[str]:
    """Yield a line of the table: the largest relative difference of each loss in any step that has it."""
    cells = []
    for key in ("rna", "adt", "atac", "s", "kl", "alignment", "adversarial"):
        apart = [abs(a[key] - b[key]) / max(abs(b[key]), 1e-9) for a, b in zip(mine, theirs, strict=True) if key in b]
        cells.append(f"{max(apart):.1e}" if apart else "\N{EN DASH}")
    yield f"| {name} | {len(theirs)} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="interpreter of an environment with scmidas")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CELLWEAVE_DATA", HERE.parent.parent / "shared" / "data")))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sets", nargs="+", default=("bmmc", "pbmc"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "# MIDAS: the same steps as scmidas\n",
        "Made by `python benchmarks/midas_steps.py --peer PEER_PYTHON`: from the same weights and on the same minibatches of 128, without dropout and noise "
        "and always told of the batch, learning rate 3e-4. Largest relative difference of each loss in any of the steps, float32 on both sides.\n",
        "| data | steps | RNA | ADT | ATAC | batch | KL | alignment | discriminators |", "|---" * 9 + "|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(options.peer.absolute(), options.data, folder)
        for name in options.sets:
            path, sizes = bench.prepare(name)
            job = {"data": str(path), "dims_x": sizes, "seed": 0, "rate": RATE, "batch_size": SIZE, "steps": options.steps,
                   "start": str(folder / f"{name}.npz"), "result": str(folder / f"{name}.json")}  # fmt: skip
            (folder / "job.json").write_text(json.dumps(job))
            clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            done = subprocess.run(
                [str(options.peer), str(HERE / "midas_jobs" / "scmidas_steps.py"), str(folder / "job.json")],
                env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                sys.exit(f"scmidas failed:\n{done.stderr[-3000:]}")
            peer = json.loads(Path(job["result"]).read_text())
            lines += report(name, ours(path, sizes, Path(job["start"]), peer, folder / f"run-{name}"), peer["rows"])
            print(lines[-1], flush=True)
    (HERE / "results" / "midas_steps.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
