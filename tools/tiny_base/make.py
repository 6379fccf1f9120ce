"""Makes busray's embedded base from nothing: corpus, autoencoder, latents, denoiser, checkpoint. Restartable.

python jobs/make_tiny_base.py WORK [--out busray/model/tiny] [--stage all] [--seed 1]
"""

import argparse
from pathlib import Path

import torch

from tools.tiny_base import autoencoder as tiny_vae
from tools.tiny_base import denoiser as tiny_base

STAGES = ("corpus", "vae", "scans", "latents", "decoder", "unet", "texture", "save")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for everything in between (1 GB)")
    parser.add_argument("--out", type=Path, default=Path(tiny_base.__file__).parent / "tiny")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--autoencoder", type=Path, help="take it from this saved base instead of training one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--phantoms", type=int, default=8000)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--scans", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        print(line, flush=True)
        with open(args.work / "log.txt", "a") as file:
            file.write(line + "\n")

    stages = STAGES if args.stage == "all" else (args.stage,)
    if args.autoencoder:
        tiny_vae.take_autoencoder(args.autoencoder, args.work)
        stages = tuple(stage for stage in stages if stage not in ("corpus", "vae", "decoder"))
    if "corpus" in stages:
        tiny_base.make_corpus(args.work, args.seed, args.phantoms, args.pictures, args.threads)
    if "vae" in stages:
        tiny_vae.train_vae(args.work, args.seed, log)
    if "scans" in stages:
        tiny_base.make_scans(args.work, args.seed, args.scans, args.threads)
    if "latents" in stages:
        tiny_vae.encode_scans(args.work, log)
    if "decoder" in stages:
        tiny_vae.train_decoder(args.work, args.seed, log)
    if "unet" in stages:
        tiny_base.train_unet(args.work, args.seed, log, args.threads)
    if "texture" in stages:
        tiny_base.train_texture(args.work, args.seed, log, args.threads)
    if "save" in stages:
        tiny_base.save_base(args.work, args.out)


if __name__ == "__main__":
    main()
